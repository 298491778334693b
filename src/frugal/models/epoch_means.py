"""Means over an epoch from sums that stay on the device: no host synchronization and no logging call in a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class EpochMeans:
    """Sums of named quantities over valid samples.

    Plain tensors, no torchmetrics state: a module cast to half precision would cast registered states with it, and a
    sum in half precision stops growing. Sums are float64, or float32 on MPS, which has no float64.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self.count: int | Tensor = 0
        self._sums: dict[str, Tensor] = {}

    def reset(self) -> None:
        self.count = 0
        self._sums = {}

    def add(self, count: int | Tensor, **sums: Tensor) -> None:
        """Sums (0-dimensional, over `count` samples, themselves a number or such a tensor) of one batch."""
        if not self._sums:
            device = next(iter(sums.values())).device
            self._sums = {name: torch.zeros((), dtype=_sum_dtype(device), device=device) for name in self.names}
        self.count += count
        for name, value in sums.items():
            self._sums[name].add_(value.detach())

    def means(self, reduce: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, Tensor]:
        """Means over all ranks; empty when no rank has seen a sample. `reduce` sums a tensor over ranks."""
        count, *sums = reduce(self._vector(device)).unbind()
        return {name: total / count for name, total in zip(self.names, sums, strict=True)} if count > 0 else {}

    def state(self, reduce: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Sums over all ranks as plain numbers, for a checkpoint."""
        return dict(zip(("count", *self.names), reduce(self._vector(device)).tolist(), strict=True))

    def load(self, state: dict[str, float], device: torch.device) -> None:
        self.count = int(state["count"])
        dtype = _sum_dtype(device)
        self._sums = {name: torch.tensor(state[name], dtype=dtype, device=device) for name in self.names}

    def _vector(self, device: torch.device) -> Tensor:
        dtype = _sum_dtype(device)
        vector = torch.zeros(1 + len(self.names), dtype=dtype, device=device)
        vector[0] = self.count
        for i, name in enumerate(self.names, start=1):
            if self._sums:
                vector[i] = self._sums[name]
        return vector


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
