"""`quantization=fp8`: training with the matrix products of linear layers in 8-bit floats, by torchao, on hardware that
computes in them.

Never run on such hardware by its authors, who had none: `emulate` was.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from frugal.errors import FrugalError, RefusedError, SettingsError
from frugal.pruning.base import network_of
from frugal.technique import Technique

LEAST = (8, 9)  # compute capability of the first NVIDIA GPUs with products of 8-bit floats
MULTIPLE = 16  # of both sizes of a weight, which those products need


class FP8(Technique):
    """Inputs and weights become e4m3 and gradients e5m2 for each product, with a scale that is taken anew each time
    (Micikevicius et al. 2022); parameters, and what is written, stay as they are. It makes training faster, not the
    file smaller.

    Layers whose sizes do not divide by 16 stay and are listed, with all that is no linear layer.

    Args:
        emulate: the same roundings on any device, without its kernels: slow, to try what they cost in quality.
        exclude: layers that stay as they are, by path or shell pattern.
    """

    def __init__(self, emulate: bool = False, exclude: list[str] | tuple[str, ...] = ()) -> None:
        super().__init__()
        self.emulate, self.exclude = emulate, list(exclude)
        self._figures: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Not in `prepare`, which also runs where a checkpoint is only read. Raises RefusedError, SettingsError."""
        if stage != "fit":
            return
        reason = no_kernels(trainer.strategy.root_device)
        if reason is not None and not self.emulate:
            raise RefusedError(
                f"quantization=fp8: {reason}; quantization.emulate=true computes the same roundings slowly, "
                "precision=bf16 is the next smaller thing"
            )
        self.convert(network_of(pl_module))

    def convert(self, network: nn.Module) -> None:
        chosen, left = self.choose(network)
        if not chosen:
            raise SettingsError(f"quantization=fp8: no linear layer fits (sizes must divide by {MULTIPLE}): {left}")
        try:
            with _quietly():
                from torchao.float8 import Float8LinearConfig, convert_to_float8_training
        except ImportError:
            raise FrugalError('torchao is not installed; install it with: pip install "frugal-ml[torchao]"') from None
        convert_to_float8_training(
            network,
            config=Float8LinearConfig(emulate=self.emulate),
            module_filter_fn=lambda module, name: name in chosen,
        )
        self._figures = {"layers": chosen, "not_quantized": left, "emulated": self.emulate}

    def choose(self, network: nn.Module) -> tuple[list[str], list[str]]:
        """Layers to compute in 8-bit floats, and those with a weight matrix that stay."""
        named = {name: module for name, module in network.named_modules() if _matrix(module) is not None and name}
        for pattern in self.exclude:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise SettingsError(f"quantization.exclude: no layer is called {pattern}; there are {', '.join(named)}")
        chosen = [
            name
            for name, module in named.items()
            if isinstance(module, nn.Linear)
            and not any(size % MULTIPLE for size in module.weight.shape)
            and not any(fnmatchcase(name, pattern) for pattern in self.exclude)
        ]
        return chosen, [name for name in named if name not in chosen]

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        """Plain linear layers again, with the same parameters."""
        for name in self._figures.get("layers", ()):
            layer = network.get_submodule(name)
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")  # type: ignore[arg-type]
            plain.weight, plain.bias = layer.weight, layer.bias  # type: ignore[assignment]
            plain.train(layer.training)
            network.set_submodule(name, plain)
        return network

    def figures(self) -> dict[str, Any]:
        return {"training": "e4m3 and e5m2", **self._figures}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """torchao warns of kernels for other hardware as it is imported."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def no_kernels(device: torch.device) -> str | None:
    """Why a device does not compute in 8-bit floats; None where it does."""
    if device.type != "cuda":
        return f"needs an NVIDIA GPU of compute capability {LEAST[0]}.{LEAST[1]} or more, this is a {device.type}"
    found = torch.cuda.get_device_capability(device)
    if found < LEAST:
        return f"needs compute capability {LEAST[0]}.{LEAST[1]} or more, this GPU has {found[0]}.{found[1]}"
    return None


def _matrix(module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.ndim >= 2 else None
