"""What the meters have in common: they stay out of the training step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl


class Lean(pl.Callback):
    """A callback that costs the training step only the hooks that it defines.

    Lightning spends about 3 µs on each hook of each callback, even on empty ones, and calls ten of them a step; it
    passes over hooks that are not callable. So the per-batch hooks are None here, and a subclass defines those it
    needs.
    """

    on_train_batch_start: Any = None
    on_train_batch_end: Any = None
    on_before_zero_grad: Any = None
    on_before_backward: Any = None
    on_after_backward: Any = None
    on_before_optimizer_step: Any = None
    on_validation_batch_start: Any = None
    on_validation_batch_end: Any = None
    on_test_batch_start: Any = None
    on_test_batch_end: Any = None


class Meter(Lean):
    """A callback that measures. `figures()` gives its section of the record, `absent` the reasons for what is None."""

    def __init__(self) -> None:
        super().__init__()
        self.absent: dict[str, str] = {}

    def when_warm(self, trainer: pl.Trainer, steps: int, act: Callable[[], None]) -> None:
        """Call `act` once the warm-up is over, and keep a per-batch hook until then only."""
        last = trainer.global_step + warmup_of(trainer, steps)
        if trainer.global_step >= last:
            act()
            return

        def after_batch(trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step >= last:
                self.on_train_batch_end = None
                act()

        self.on_train_batch_end = after_batch


def warmup_of(trainer: pl.Trainer, steps: int) -> int:
    """Optimizer steps to take as warm-up: `steps`, but at most a tenth of the steps that this fit has left.

    Must be called with the loaders set up (`on_train_start` or later).
    """
    total = trainer.estimated_stepping_batches
    if not math.isfinite(total):
        return steps
    return max(0, min(steps, int(total - trainer.global_step) // 10))


def ranks_with_the_same_batch(trainer: pl.Trainer) -> int:
    """How many ranks train on each batch together, as with tensor parallelism: sums over ranks count it as often."""
    shared = trainer.distributed_sampler_kwargs or {}
    return trainer.world_size // shared.get("num_replicas", trainer.world_size)
