"""Activations by name, as modules, so that techniques and exporters see them in the network."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from frugal.errors import SettingsError

Activation = Literal["relu", "sigmoid", "tanh", "gelu"]

_MODULES: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU}


def activation_module(name: Activation) -> nn.Module:
    """A new module each call: hooks and observers on one activation must not act on another."""
    if name not in _MODULES:
        raise SettingsError(
            f"model.network.activation={name} is unknown; choose one of {', '.join(get_args(Activation))}"
        )
    return _MODULES[name]()
