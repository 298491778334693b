"""`callbacks=ema`: an exponential moving average of the weights, which is validated, kept and tested in their place.

Lightning's own callback does the averaging. Two things are mended: the average does not take the place of the weights
before the last checkpoint is written, so that a finished run is trained on from where it stood, and nothing is said
about it on each resume.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from frugal.errors import SettingsError

_LIGHTNING = logging.getLogger("lightning.pytorch.utilities.rank_zero")


class EMA(WeightAveraging):
    """average = d * average + (1 - d) * weights, after every `every` optimizer steps from `start` on.

    The first update copies the weights; until then they are used themselves. d grows to `decay` as
    min(decay, (1 + n) / (10 + n)) after n updates, so that a short run does not end at an average of its beginning.
    Statistics of batch normalization are averaged likewise.
    Checkpoints hold averages and weights; what is loaded from one for use are the averages.

    Args:
        decay: 0 to below 1; in the end the average reaches back over some 1 / (1 - decay) updates.
        every: optimizer steps from one update to the next.
        start: the optimizer step of the first update, counted from 0.
    """

    def __init__(self, decay: float = 0.999, every: int = 1, start: int = 0) -> None:
        if not 0 <= decay < 1:
            raise SettingsError(f"callbacks.ema.decay={decay}: it is at least 0 and below 1")
        if every < 1 or start < 0:
            raise SettingsError(f"callbacks.ema: every={every} is 1 or more, start={start} is 0 or more")
        super().__init__(multi_avg_fn=self._update)
        self.decay, self.every, self.start = decay, every, start

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx >= self.start and (step_idx - self.start) % self.every == 0

    @torch.no_grad()
    def _update(self, averages: list[Tensor], weights: list[Tensor], updates: Tensor | int) -> None:
        """Tensors of one type, `updates` after the copy of the first."""
        n = int(updates)
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + n) / (10 + n)))
        else:  # counters
            torch._foreach_copy_(averages, weights)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.start >= trainer.estimated_stepping_batches:
            steps = int(trainer.estimated_stepping_batches)
            raise SettingsError(f"callbacks.ema.start={self.start}: the run has {steps} steps, so there is no average")

    def _follow(self, pl_module: LightningModule) -> None:
        """Before the first update the average is the weights."""
        average = self._average_model
        if average is not None and int(average.n_averaged) == 0:
            average.module.load_state_dict(pl_module.state_dict())

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not yet: the last checkpoint is about to be written."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        level = _LIGHTNING.level
        _LIGHTNING.setLevel(logging.ERROR)
        try:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
        finally:
            _LIGHTNING.setLevel(level)
