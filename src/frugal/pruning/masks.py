"""Masks as torch parametrizations: a pruned weight is zero in every forward pass, whatever the optimizer does to the
value beneath it.

Prunable are the weights of linear and convolutional layers. Norms, biases and embeddings are left alone, and so is a
weight that two modules share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from frugal.errors import SettingsError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Mask(nn.Module):
    """weight -> weight where `mask`, else 0."""

    mask: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(like, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled() or torch.compiler.is_compiling():
            return torch.where(self.mask, weight, 0)
        # In training a product, forward and backward, takes little more than half the time; its zeros may have a sign.
        return weight * self.mask.to(weight.dtype)


def prunable(network: nn.Module, exclude: Iterable[str] = (), key: str = "pruning.exclude") -> dict[str, nn.Module]:
    """The layers with a weight to prune or quantize, by path, in the network's order. `exclude` holds paths or shell
    patterns; one that no layer answers to is refused (SettingsError)."""
    owners: dict[int, int] = {}
    for module in network.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, LAYERS):
            weight = original(module)
            if weight is not None and owners[id(weight)] == 1:
                found[name] = module
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise SettingsError(f"{key}: no layer is called {pattern}; there are {', '.join(found)}")
    return {name: layer for name, layer in found.items() if not any(fnmatchcase(name, p) for p in exclude)}


def original(layer: nn.Module) -> nn.Parameter | None:
    """The parameter beneath a layer's weight; None where other parametrizations have split it."""
    if not parametrize.is_parametrized(layer, "weight"):
        weight = layer._parameters.get("weight")
    else:
        weight = layer.parametrizations["weight"]._parameters.get("original")  # type: ignore[index,union-attr]
    return weight if isinstance(weight, nn.Parameter) else None


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight as it acts."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def per_layer(
    values: Mapping[str, float] | Sequence[float] | None, layers: Sequence[str], default: float, key: str
) -> dict[str, float]:
    """A number for each layer: from a list in the network's order, or from patterns, the first that fits, and `default`
    for the others. Raises SettingsError for a pattern without a layer and a list of another length."""
    if values is None:
        return dict.fromkeys(layers, default)
    if not isinstance(values, Mapping):
        if len(values) != len(layers):
            raise SettingsError(f"{key}: {len(values)} values for {len(layers)} layers, {', '.join(layers)}")
        return dict(zip(layers, values, strict=True))
    for pattern in values:
        if not any(fnmatchcase(name, str(pattern)) for name in layers):
            raise SettingsError(f"{key}: no layer is called {pattern}; there are {', '.join(layers)}")
    return {
        name: next((value for pattern, value in values.items() if fnmatchcase(name, str(pattern))), default)
        for name in layers
    }


def add_masks(network: nn.Module, exclude: Iterable[str] = ()) -> dict[str, Mask]:
    """A mask of ones on each prunable weight that has none yet; all masks, by layer."""
    for layer in prunable(network, exclude).values():
        if _mask(layer) is None:
            add_mask(layer, Mask(original(layer)))  # type: ignore[arg-type]
    return masks_of(network)


def add_mask(layer: nn.Module, mask: Mask) -> None:
    """Before what quantizes the weight, whichever was there first: scales are those of the weights that are left."""
    parametrize.register_parametrization(layer, "weight", mask.to(original(layer).device))  # type: ignore[union-attr]
    parts: nn.ModuleList = layer.parametrizations["weight"]  # type: ignore[index, assignment]
    ordered = sorted(parts, key=lambda part: getattr(part, "follows_masks", False))
    for i, part in enumerate(ordered):
        parts[i] = part


def masks_of(network: nn.Module) -> dict[str, Mask]:
    found = {name: _mask(module) for name, module in network.named_modules() if isinstance(module, LAYERS)}
    return {name: mask for name, mask in found.items() if mask is not None}


def masked_weight(layer: nn.Module) -> Tensor:
    """A layer's weight with its mask, but without what follows the mask: quantized values would tie."""
    weight: Tensor = original(layer)  # type: ignore[assignment]
    if not parametrize.is_parametrized(layer, "weight"):
        return weight.detach()
    for part in layer.parametrizations["weight"]:  # type: ignore[index]
        weight = part(weight)
        if isinstance(part, Mask):
            break
    return weight.detach()


def bake(network: nn.Module) -> None:
    """Take all parametrizations off, masks and others; the weights stay as they act."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                remove_parametrizations(module, str(name))


def remove_parametrizations(module: nn.Module, name: str) -> None:
    """torch's own, which leaves the tensor as it acts, but safe for a module with copies: torch deletes the property
    from the class that `copy.deepcopy` shares."""
    kind = type(module)
    body = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, body)
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def remove_masks(network: nn.Module) -> None:
    """Bake the masks of weights that carry nothing else. A weight that is also quantized keeps both: who converts it
    needs the value beneath."""
    for name in masks_of(network):
        layer = network.get_submodule(name)
        if len(layer.parametrizations["weight"]) == 1:  # type: ignore[index]
            remove_parametrizations(layer, "weight")


@torch.no_grad()
def largest(scores: Tensor, count: int) -> Tensor:
    """True at exactly `count` of the largest scores; of equal ones the first in memory come first. On the CPU, so that
    every machine chooses alike."""
    flat = scores.detach().flatten().cpu()
    flat = torch.nan_to_num(flat if flat.dtype == torch.float64 else flat.float(), nan=0.0)
    if not 0 < count < flat.numel():
        return torch.full(scores.shape, count > 0, device=scores.device)
    least = flat.kthvalue(flat.numel() - count + 1).values
    chosen = flat > least
    ties = (flat == least).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.view(scores.shape).to(scores.device)


def count_of(numel: int, density: float) -> int:
    """How many of `numel` weights a density leaves: the nearest whole number, at least one."""
    return max(1, round(density * numel))


def _mask(layer: nn.Module) -> Mask | None:
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    parts = layer.parametrizations["weight"]  # type: ignore[index]
    return next((part for part in parts if isinstance(part, Mask)), None)
