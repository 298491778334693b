"""`pruning=n_m`: of every m consecutive inputs of a unit, the n largest weights stay (2:4, Mishra et al. 2021). NVIDIA
GPUs from Ampere on have kernels for that pattern."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from frugal.errors import SettingsError
from frugal.pruning.base import MaskPruning
from frugal.pruning.masks import Mask, add_mask, masked_weight, masks_of, original, prunable, weight_of
from frugal.steps import Steps


class NMPruning(MaskPruning):
    """A layer whose inputs do not divide by m is left alone and listed as such. Of a convolution the inputs are its
    channels, at each place of the kernel.

    The weights that are written are masked: a file has no kernels. `kernels` in the figures says whether this machine
    has any for them; where it has, the network is also timed with them (`accelerate`). Seen on no GPU yet.

    Args:
        n: how many are kept.
        m: of how many.
        at: when, as a step, a share of the run ("30%") or epochs ("2ep").
        exclude: layers to leave alone, as paths or shell patterns.
    """

    def __init__(
        self, n: int = 2, m: int = 4, at: int | str = "50%", exclude: list[str] | tuple[str, ...] = ()
    ) -> None:
        if not 1 <= n < m:
            raise SettingsError(f"pruning.n={n}: n of m are kept; 1 or more, and fewer than pruning.m={m}")
        super().__init__(n / m, exclude=exclude)
        self.n, self.m, self.at = n, m, Steps.parse(at, "pruning.at")
        self.left: list[str] = []

    def prepare(self, network: nn.Module) -> None:
        self.left = [name for name, layer in prunable(network, self.exclude).items() if not self._fits(layer)]
        super().prepare(network)
        if not masks_of(network):
            raise SettingsError(f"pruning.m={self.m}: no layer's inputs divide by it ({', '.join(self.left)})")

    def add_masks(self, network: nn.Module) -> None:
        there = masks_of(network)
        for name, layer in prunable(network, self.exclude).items():
            if name not in there and self._fits(layer):
                add_mask(layer, Mask(original(layer)))  # type: ignore[arg-type]

    def events(self, trainer: Trainer) -> list[int]:
        return [self.at.resolve(trainer)]

    @torch.no_grad()
    def scores(self, network: nn.Module) -> dict[str, Tensor]:
        """1 and 0: the pattern itself, which the density n / m then takes exactly."""
        weights = {name: masked_weight(network.get_submodule(name)) for name in masks_of(network)}
        return {name: pattern(weight, self.n, self.m).float() for name, weight in weights.items()}

    def _fits(self, layer: nn.Module) -> bool:
        return weight_of(layer).shape[1] % self.m == 0

    def _count(self, network: nn.Module) -> dict[str, Any]:
        return super()._count(network) | {
            "pattern": f"{self.n}:{self.m}",
            "left_alone": self.left,
            "kernels": no_kernels(self.n, self.m) or "available",
        }


def pattern(weight: Tensor, n: int, m: int) -> Tensor:
    """True at the n largest magnitudes of each m consecutive inputs, the second axis of `weight` (O, I, ...); of equal
    ones the first."""
    last = weight.movedim(1, -1)
    groups = last.abs().reshape(-1, m).cpu()
    order = groups.argsort(dim=1, descending=True, stable=True)[:, :n]
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True)
    return kept.view(last.shape).movedim(-1, 1).to(weight.device)


def no_kernels(n: int = 2, m: int = 4) -> str | None:
    """Why this machine has no kernels for the pattern; None where it has."""
    if (n, m) != (2, 4):
        return f"there are kernels for 2:4 only, not {n}:{m}"
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the CUDA device is older than Ampere"
    return None


def accelerate(network: nn.Module, exclude: Iterable[str] = ()) -> list[str]:
    """Put sparse kernels into the linear layers of a 2:4 network on a CUDA device, in half precision; their names.
    Raises SettingsError where there are none to put in."""
    reason = no_kernels()
    if reason:
        raise SettingsError(f"pruning=n_m: {reason}")
    done = []
    for name, layer in prunable(network, exclude).items():
        weight = original(layer)
        assert weight is not None
        half = weight.dtype in (torch.float16, torch.bfloat16) and weight.is_cuda
        aligned = isinstance(layer, nn.Linear) and weight.shape[0] % 32 == 0 and weight.shape[1] % 64 == 0
        if half and aligned and bool((torch.count_nonzero(weight.reshape(-1, 4), dim=1) <= 2).all()):
            sparse = torch.sparse.to_sparse_semi_structured(weight.detach())
            layer.weight = nn.Parameter(sparse, requires_grad=False)
            done.append(name)
    return done
