"""`Float16Flush`: which share of the gradients float16 would flush to zero, at several loss scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from frugal.measure.meter import Lean

SMALLEST = 2.0**-25  # half of float16's smallest subnormal number: it and all below round to zero


class Float16Flush(Lean):
    """Logs `train/fp16_flushed_S` each epoch: of the gradients of weights and biases that are not zero, the share whose
    S-fold float16 would round to zero (Micikevicius et al. 2018, section 3.2).

    Counted at every optimizer step, on gradients as the optimizer sees them, unscaled. In a run in float16 those that
    its own scale flushed are zero already: take the figure in fp32 or bf16.
    """

    def __init__(self, scales: Sequence[float] = (1, 8, 1024, 65536)) -> None:
        super().__init__()
        self.scales = [float(scale) for scale in scales]
        self._counts: Tensor | None = None  # not zero, then those flushed at each scale

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._counts = torch.zeros(1 + len(self.scales), dtype=torch.float64, device=_countable(pl_module.device))

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if self._counts is None:  # a resume inside an epoch
            self.on_train_epoch_start(trainer, pl_module)
        assert self._counts is not None
        for parameter in pl_module.parameters():
            if parameter.grad is None:
                continue
            size = parameter.grad.detach().abs()
            found = [size > 0, *((size > 0) & (size * scale <= SMALLEST) for scale in self.scales)]
            self._counts += torch.stack([part.sum() for part in found]).to(self._counts)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        counts, self._counts = self._counts, None
        if counts is None:
            return
        for scale, flushed in zip(self.scales, counts[1:], strict=True):
            share = flushed / counts[0].clamp(min=1)
            pl_module.log(f"train/fp16_flushed_{scale:g}", share.float(), sync_dist=True, batch_size=1)


def _countable(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device  # MPS has no 64-bit floats
