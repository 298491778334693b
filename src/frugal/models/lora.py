"""Low-rank adapters for fine-tuning (Hu et al. 2021): of a frozen network, a small product is learnt beside each of
some linear layers' weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from frugal.errors import SettingsError
from frugal.instantiate import configurable


class LowRankUpdate(nn.Module):
    """W (out, in) -> W + scale * B A, with A (rank, in) and B (out, rank). B starts at 0, so that nothing changes."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.A = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as torch's nn.Linear, and the paper's code

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addmm(weight, self.B, self.A, alpha=self.scale)


@configurable
class LowRank:
    """Adapters of `rank` on the linear layers whose names end with one of `targets`; all other weights are frozen.

    The update counts `alpha / rank` times, so that a learning rate serves any rank. Rank 0 does nothing.
    """

    def __init__(self, rank: int = 0, alpha: float = 16.0, targets: list[str] | tuple[str, ...] = ("qkv",)) -> None:
        if rank < 0:
            raise SettingsError(f"model.lora.rank={rank}: needs to be 0 (no adapters) or above")
        self.rank, self.alpha, self.targets = rank, alpha, list(targets)
        self._figures: dict[str, Any] = {}

    def apply(self, network: nn.Module) -> None:
        """Add the adapters to `network`, before a checkpoint with adapters is loaded. Raises SettingsError for a
        target that no linear layer answers to."""
        if self.rank == 0:
            return
        linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        chosen: dict[str, nn.Linear] = {}
        for target in self.targets:
            found = {name: module for name, module in linear.items() if f".{name}".endswith(f".{target}")}
            if not found:
                raise SettingsError(
                    f"model.lora.targets: no linear layer is called {target}; there are {', '.join(_kinds(linear))}"
                )
            chosen |= found
        if not chosen:
            raise SettingsError(f"model.lora.targets=[]: name linear layers; there are {', '.join(_kinds(linear))}")
        for name, module in chosen.items():
            if self.rank > min(module.weight.shape):
                raise SettingsError(
                    f"model.lora.rank={self.rank}: {name} is {tuple(module.weight.shape)}, whose rank is lower already"
                )
        network.requires_grad_(False)
        for module in chosen.values():
            update = LowRankUpdate(module.weight, self.rank, self.alpha / self.rank)
            parametrize.register_parametrization(module, "weight", update)
        self._figures = {
            "rank": self.rank,
            "alpha": self.alpha,
            "layers": len(chosen),
            "trainable_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        }

    def merge(self, network: nn.Module) -> None:
        merge(network)

    def figures(self) -> dict[str, Any]:
        """What was added; empty where nothing was. Plain values."""
        return self._figures


def merge(network: nn.Module) -> None:
    """Add all adapters to the weights that they stand beside: the network is a plain one again, with plain names."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            updates = module.parametrizations["weight"]  # type: ignore[index]
            if any(isinstance(update, LowRankUpdate) for update in updates):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _kinds(linear: dict[str, nn.Linear]) -> list[str]:
    """Names of layers, once for all blocks: `blocks.0.attention.qkv` and its like as `attention.qkv`."""
    kinds: dict[str, None] = {}
    for name in linear:
        words = name.split(".")
        last_number = max((i for i, word in enumerate(words) if word.isdigit()), default=-1)
        kinds[".".join(words[last_number + 1 :]) or name] = None
    return list(kinds)
