"""A budget: training ends where so many samples, operations or seconds are spent: methods compare at equal cost.

The last step is the last one that still fits. Samples and operations are counted beforehand from the order of the data,
so the run has a known number of steps: schedules and shares of the run ("30%") scale to it, and a resume is exact.
Seconds are those of training, as the ledger counts them (data, steps, warm-up and the loop; neither start-up nor
validation, checkpoints or compilation). There a schedule follows the share that is spent, and how many steps there
will be nobody knows, so that a share of them is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from frugal.data.loaders import TrainLoader
from frugal.errors import SettingsError
from frugal.measure.ledger import Ledger
from frugal.measure.meter import Lean
from frugal.measure.time_ledger import ledger_of

SCHEDULE_UNITS = 1_000_000  # of a schedule that follows the clock


class Budget(Lean):
    """Ends training where the budget is spent.

    Args:
        unit: what is counted.
        amount: how much of it may be spent, by all ranks together.
        ledger: the clock of the seconds; by default that of the Trainer's `TimeLedger`.
        flops_per_sample: operations of forward and backward, for a budget of them.
    """

    def __init__(
        self,
        unit: Literal["seconds", "flops", "samples"],
        amount: float,
        ledger: Ledger | None = None,
        flops_per_sample: float | None = None,
    ) -> None:
        self.unit, self.amount = unit, amount
        self.ledger = ledger
        self.flops_per_sample = flops_per_sample
        self.total_steps: int | None = None  # known beforehand of samples and operations
        self._samples: Callable[[int], int] | None = None  # after so many optimizer steps
        self._before = 0.0
        self._spent = 0.0
        self._step = -1
        if unit == "seconds":
            self.on_train_batch_end = self._by_the_clock
        else:
            self.on_train_batch_end = self._by_steps

    def figures(self) -> dict[str, Any]:
        """Unit, amount, what of it was spent and in how many steps."""
        return {"unit": self.unit, "amount": self.amount, "spent": self._spent, "steps": max(self._step, 0)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the optimizer and its schedule are made: they ask for the run's length."""
        if stage != "fit":
            return
        if self.unit == "seconds":
            pl_module.schedule_steps = SCHEDULE_UNITS  # type: ignore[assignment]
            return
        self._samples = samples_after(trainer.datamodule.train_dataloader(), trainer.accumulate_grad_batches)  # type: ignore[attr-defined]
        self.total_steps = self._steps_within(self._samples)
        trainer.fit_loop.epoch_loop.max_steps = self.total_steps

    def _steps_within(self, samples: Callable[[int], int]) -> int:
        if self.unit == "flops" and not self.flops_per_sample:
            raise SettingsError(f"budget.flops={self.amount:g}: the operations of a step could not be counted")
        most = int(self.amount) if self.unit == "samples" else int(self.amount / (self.flops_per_sample or 1))
        if samples(1) > most:
            what = f"{samples(1)} samples" if self.unit == "samples" else f"{self._cost(samples(1)):.3g} operations"
            raise SettingsError(f"budget.{self.unit}={self.amount:g}: one step takes {what}")
        low, high = 1, 2
        while samples(high) <= most:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if samples(middle) <= most else (low, middle)
        return low

    def _cost(self, samples: int) -> float:
        return samples * (self.flops_per_sample or 1) if self.unit == "flops" else samples

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if self.unit == "seconds":
            self.ledger = self.ledger or ledger_of(trainer)
            self._before = self._spent = self._clock(trainer)
            self._follow(trainer)
            if trainer.global_step and self._spent >= self.amount:
                trainer.should_stop = True
        elif self._samples is not None:
            self._spent = self._cost(self._samples(self._step))

    def _by_steps(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:  # an accumulating micro-batch
            return
        self._step = trainer.global_step
        assert self._samples is not None
        if self._step == self.total_steps:
            self._spent = self._cost(self._samples(self._step))
            trainer.should_stop = True  # which also validates, where `max_steps` alone would not

    def _by_the_clock(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        now = self._clock(trainer)
        took, self._before, self._spent = now - self._before, now, now
        self._follow(trainer)
        if now + took > self.amount:  # the next one would be as long as this one
            trainer.should_stop = True

    def _clock(self, trainer: Trainer) -> float:
        """Seconds of training. Of several ranks rank 0's: no two clocks agree, a rank that stops alone leaves the
        others waiting, and with learning rates of their own their weights would part."""
        assert self.ledger is not None
        now = self.ledger.fit_s()
        if trainer.world_size > 1:
            own = now if trainer.is_global_zero else 0.0
            told = torch.tensor(own, dtype=torch.float64, device=trainer.strategy.root_device)
            now = float(cast(Tensor, trainer.strategy.reduce(told, reduce_op="max")))
        return now

    def _follow(self, trainer: Trainer) -> None:
        """Put the schedules where the clock is."""
        unit = min(SCHEDULE_UNITS, int(SCHEDULE_UNITS * self._spent / self.amount))
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            if config.interval != "step" or not hasattr(scheduler, "factor"):
                continue
            scheduler.last_epoch = unit
            scheduler._last_lr = scheduler.get_lr()
            for group, lr in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
                group["lr"] = lr


def samples_after(loader: TrainLoader, accumulate: int = 1) -> Callable[[int], int]:
    """A function from optimizer steps to the samples that all ranks together have seen by then."""
    batches, size = loader.epoch_batches, loader.order.batch_size
    last = loader.order.last_batch if batches == len(loader.order) else size
    steps = -(-batches // accumulate)
    epoch = (batches - 1) * size + last

    def samples(step: int) -> int:
        whole, rest = divmod(step, steps)
        return whole * epoch + rest * accumulate * size

    return samples
