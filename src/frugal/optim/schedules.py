"""Learning-rate schedules over a run of known length, stepped once an optimizer step.

Each takes (optimizer, total_steps) and durations as fractions of the run; the optimizer's own `lr` is the peak. Step t
counts from 0 to total_steps - 1. A checkpoint holds the position only, never the length: a finished run that is resumed
with more epochs goes on with the schedule of the longer run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from frugal.errors import SettingsError


class RunSchedule(LRScheduler, ABC):
    """Base: a subclass says the factor of the peak learning rate at each step."""

    def __init__(self, optimizer: Optimizer, total_steps: int) -> None:
        self.total_steps = max(1, total_steps)
        super().__init__(optimizer)

    @abstractmethod
    def factor(self, step: int) -> float:
        """Factor of the peak learning rate at `step`, 0 to `total_steps` (the value after the run)."""

    def get_lr(self) -> list[float | Tensor]:
        factor = self.factor(min(self.last_epoch, self.total_steps))
        return [lr * factor for lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr  # the checkpoint's was that of a run of its own length


class Cosine(RunSchedule):
    """Linear warm-up, then half a cosine down to `final` times the peak; it begins anew at the peak at each of
    `restarts`, fractions of the run (Loshchilov and Hutter 2017)."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup: float = 0.05,
        final: float = 0.0,
        restarts: list[float] | tuple[float, ...] = (),
    ) -> None:
        _check_fraction("warmup", warmup)
        _check_fraction("final", final)
        total = max(1, total_steps)
        self.warmup_steps = round(warmup * total)
        self.final = final
        for earlier, later in pairwise([warmup, *restarts]):
            _check_fraction("restarts", later)
            if later <= earlier:
                raise SettingsError(f"schedule.restarts: {later} does not come after {earlier}")
        self.begins = [self.warmup_steps, *(round(fraction * total) for fraction in restarts)]
        super().__init__(optimizer, total_steps)

    def factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        round_ = bisect_right(self.begins, step) - 1
        begin = self.begins[round_]
        end = [*self.begins, self.total_steps][round_ + 1]
        progress = (step - begin) / max(1, end - begin)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class WarmupStableDecay(RunSchedule):
    """Linear warm-up, a plateau, then decay over the last part of the run to `final` times the peak.

    `shape` of the decay: linear, or sqrt (1 minus the square root of progress), which Hägele et al. 2024 found best.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup: float = 0.05,
        decay: float = 0.2,
        final: float = 0.0,
        shape: Literal["linear", "sqrt"] = "linear",
    ) -> None:
        _check_fraction("warmup", warmup)
        _check_fraction("decay", decay)
        _check_fraction("final", final)
        if warmup + decay > 1:
            raise SettingsError(f"schedule.warmup={warmup} and schedule.decay={decay} are more than the whole run")
        if shape not in ("linear", "sqrt"):
            raise SettingsError(f"schedule.shape={shape} is unknown; choose linear or sqrt")
        self.warmup_steps = round(warmup * max(1, total_steps))
        self.decay_steps = min(round(decay * max(1, total_steps)), max(1, total_steps) - self.warmup_steps)
        self.final = final
        self.shape = shape
        super().__init__(optimizer, total_steps)

    def factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        into_decay = step - (self.total_steps - self.decay_steps)
        if into_decay < 0:
            return 1.0
        # The last step of the run is not wasted on a learning rate of 0: that comes after it.
        progress = (into_decay + 1) / (self.decay_steps + 1)
        left = 1 - progress if self.shape == "linear" else 1 - math.sqrt(progress)
        return self.final + (1 - self.final) * left


class OneCycle(RunSchedule):
    """Cosine up from peak / `div` over `warmup`, cosine down to peak / (`div` * `final_div`) at the last step.

    The learning rates of `torch.optim.lr_scheduler.OneCycleLR` (Smith and Topin 2018), whose own state would pin the
    length of the run. Momentum is left as it is.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup: float = 0.3,
        div: float = 25.0,
        final_div: float = 1e4,
    ) -> None:
        _check_fraction("warmup", warmup)
        if div < 1 or final_div < 1:
            raise SettingsError(f"schedule.div={div} and schedule.final_div={final_div} must be at least 1")
        self.peak_step = max(0.0, warmup * max(1, total_steps) - 1)  # in torch too a fraction of a step
        self.first = 1 / div
        self.last = 1 / (div * final_div)
        super().__init__(optimizer, total_steps)

    def factor(self, step: int) -> float:
        if step < self.peak_step:
            return _cosine(self.first, 1.0, step / self.peak_step)
        down = self.total_steps - 1 - self.peak_step
        return _cosine(1.0, self.last, min(1.0, (step - self.peak_step) / down) if down > 0 else 1.0)


class Step(RunSchedule):
    """The learning rate is multiplied by `gamma` at each milestone, a fraction of the run."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        milestones: list[float] | tuple[float, ...] = (0.5, 0.75),
        gamma: float = 0.1,
    ) -> None:
        for milestone in milestones:
            _check_fraction("milestones", milestone)
        self.milestone_steps = [round(milestone * max(1, total_steps)) for milestone in milestones]
        self.gamma = gamma
        super().__init__(optimizer, total_steps)

    def factor(self, step: int) -> float:
        return self.gamma ** sum(step >= milestone for milestone in self.milestone_steps)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _check_fraction(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise SettingsError(f"schedule.{key}={value} must be a fraction, 0 to 1")
