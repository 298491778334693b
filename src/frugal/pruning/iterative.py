"""`pruning=iterative`: prune the smallest weights, train on, prune again (Han et al. 2015)."""

from __future__ import annotations

from itertools import pairwise

from lightning.pytorch import LightningModule, Trainer

from frugal.errors import SettingsError
from frugal.pruning.base import Densities, MaskPruning, Scope
from frugal.steps import Steps


class IterativePruning(MaskPruning):
    """After the k-th of n rounds density^(k/n) is left.

    Args (others: `MaskPruning`):
        at: when each round prunes: steps, shares of the run ("30%") or epochs ("2ep"), in order.
        lr_factor: the learning rates are multiplied by it after the first pruning, and stay so; a schedule goes on from
            there. Han et al. retrain with a tenth.
    """

    def __init__(
        self,
        density: float = 0.1,
        densities: Densities | None = None,
        scope: Scope = "layer",
        at: list[int | str] | tuple[int | str, ...] = ("40%", "60%", "80%"),
        lr_factor: float = 0.1,
        exclude: list[str] | tuple[str, ...] = (),
    ) -> None:
        super().__init__(density, densities, scope, exclude)
        self.at = [Steps.parse(when, f"pruning.at.{i}") for i, when in enumerate(at)]
        if not self.at:
            raise SettingsError("pruning.at=[]: name when to prune, as in pruning.at=[40%,60%,80%]")
        if not lr_factor > 0:
            raise SettingsError(f"pruning.lr_factor={lr_factor}: needs to be above 0")
        self.lr_factor = lr_factor

    def events(self, trainer: Trainer) -> list[int]:
        steps = [when.resolve(trainer) for when in self.at]
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise SettingsError(f"pruning.at: steps {', '.join(map(str, steps))} are not one after the other")
        return steps

    def density_at(self, event: int, density: float) -> float:
        return density ** ((event + 1) / len(self.at))

    def pruned(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(self.pruned_at) == 1 and self.lr_factor != 1:
            scale_rates(trainer, self.lr_factor)


def scale_rates(trainer: Trainer, factor: float) -> None:
    """Of all optimizers and of what their schedules return to; both are in a checkpoint."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
            if "initial_lr" in group:
                group["initial_lr"] = group["initial_lr"] * factor
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if hasattr(schedule, "base_lrs"):
            schedule.base_lrs = [lr * factor for lr in schedule.base_lrs]
