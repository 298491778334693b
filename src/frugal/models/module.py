"""`Module`: what every LightningModule of Frugal shares: optimizer, schedule, means over an epoch, exact on a resume.

It knows no technique. Nothing is logged by step: sums stay on the device as tensors, and the epoch's means are
logged once, so that a step costs what the network costs.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from frugal.errors import SettingsError
from frugal.measure.meter import ranks_with_the_same_batch
from frugal.models.epoch_means import EpochMeans

Batch = tuple[Tensor, Tensor]  # what goes into the network, and its targets
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeSchedule = Callable[[Optimizer, int], LRScheduler]


class Module(LightningModule, ABC):
    """Base: a subclass says in `sums` what it adds up and in `step` how.

    `optimizer` makes an optimizer from parameters; None where the network is only evaluated. `schedule` makes a
    learning-rate schedule from (optimizer, total optimizer steps) and is stepped once an optimizer step.
    `last_loss` is the last training batch's loss, detached: progress bars and step loggers read it when they need it.
    """

    network: nn.Module
    # Added up over an epoch; each becomes the mean `<stage>/<name>`, but one that begins with _ is for `derived` alone.
    sums: ClassVar[tuple[str, ...]] = ("loss",)

    def __init__(
        self, network: nn.Module, optimizer: MakeOptimizer | None = None, schedule: MakeSchedule | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.last_loss: Tensor | None = None
        self.schedule_steps: int | None = None  # of a budget by the clock: the length in which its schedule counts
        self._optimizer = optimizer
        self._schedule = schedule
        self._train_means = EpochMeans(*self.sums)
        self._eval_means = EpochMeans(*self.sums)
        self._resumed_means: dict[str, float] | None = None
        self._data: Any = None  # where several ranks train: the data module, which knows what of a batch counts

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Lightning inspects training_step's signature anew at every step; a ready one saves 25 microseconds of it.
        cls.training_step.__signature__ = inspect.signature(cls.training_step)  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets `_current_fx_name` some forty times a step, and `nn.Module.__setattr__` looks for parameters in
        # each value: 70 microseconds a step.
        if name in ("_current_fx_name", "last_loss", "_data"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    # What a subclass says.

    @abstractmethod
    def training_loss(self, batch: Batch) -> tuple[Tensor, int | Tensor, dict[str, Tensor]]:
        """The loss to minimize, how many samples or tokens there are, and the sums over them, "loss" among them."""

    @abstractmethod
    def evaluation_sums(self, batch: Batch) -> tuple[int | Tensor, dict[str, Tensor]]:
        """How many samples or tokens, and the sums over them."""

    def count_batch(self, batch: Batch) -> tuple[int, int | Tensor | None]:
        """Valid samples and tokens in a batch; None where there are no tokens. A count that must be taken from the
        batch stays a tensor on its device: whoever reads it makes the device wait."""
        return len(batch[1]), None

    def derived(self, stage: str, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Further metrics of an epoch from its means, by name."""
        return {}

    def logged_metrics(self) -> list[str]:
        """Names of all that is ever logged, so that a wrong name to monitor is refused before the training."""
        return [f"{stage}/{name}" for stage in ("train", "val", "test") for name in self.sums if name[0] != "_"]

    # The steps.

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx == 0:  # also where a resume begins an epoch without on_train_epoch_start, as Lightning can
            self._train_means.reset()
        loss, count, sums = self.training_loss(batch)
        self.last_loss = sums["loss"] / count
        if self._data is None or self._data.counts():
            self._train_means.add(count, **sums)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        count, sums = self.evaluation_sums(batch)
        self._eval_means.add(count, **sums)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        count, sums = self.evaluation_sums(batch)
        self._eval_means.add(count, **sums)

    # Epoch means. A resume in mid-epoch goes on with the checkpoint's sums, so that a logged mean covers the epoch.

    def on_train_start(self) -> None:
        self._train_means.reset()
        data = getattr(self.trainer, "datamodule", None)
        self._data = data if self.trainer.world_size > 1 and hasattr(data, "counts") else None
        # The sums in a checkpoint are those of all ranks.
        first = (self.trainer.distributed_sampler_kwargs or {}).get("rank", 0) == 0
        if self._resumed_means is not None and first:
            self._train_means.load(self._resumed_means, self.device)
        self._resumed_means = None

    def on_train_epoch_end(self) -> None:
        self.log_epoch("train", self._train_means)

    def on_validation_epoch_start(self) -> None:
        self._eval_means.reset()

    def on_validation_epoch_end(self) -> None:
        self.log_epoch("val", self._eval_means)

    def on_test_epoch_start(self) -> None:
        self._eval_means.reset()

    def on_test_epoch_end(self) -> None:
        self.log_epoch("test", self._eval_means)

    def log_epoch(self, stage: str, sums: EpochMeans) -> None:
        means = sums.means(self._sum_over_ranks, self.device)
        shown = {name: value for name, value in means.items() if name[0] != "_"}
        for name, value in {**shown, **(self.derived(stage, means) if means else {})}.items():
            # All ranks hold the same value already; sync_dist says so to Lightning, which would warn.
            self.log(f"{stage}/{name}", value, sync_dist=True, batch_size=1)
        sums.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epoch_means"] = self._train_means.state(self._sum_over_ranks, self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed_means = checkpoint.get("epoch_means")

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        if self._trainer is None or self._trainer.world_size == 1:
            return tensor
        total: Tensor = self.trainer.strategy.reduce(tensor.clone(), reduce_op="sum")
        same = ranks_with_the_same_batch(self.trainer)
        return total if same == 1 else total / same if total.is_floating_point() else total // same

    # The optimizer.

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val is None:  # Lightning looks up precision and algorithm first: 20 microseconds a step
            return
        if getattr(self.trainer.strategy, "shares_out", False):
            from frugal.strategy.sharded import clip_norm

            clip_norm(list(self.parameters()), float(gradient_clip_val))
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self._optimizer is None:
            raise SettingsError(f"this {type(self).__name__} has no optimizer: it can be evaluated, but not trained")
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        if self._schedule is None:
            return optimizer
        steps = self.schedule_steps or self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise SettingsError("a schedule needs the length of the run: set trainer.max_epochs or trainer.max_steps")
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._schedule(optimizer, int(steps)), "interval": "step"},
        }


def full_precision(logits: Tensor) -> Tensor:
    """Cross entropy in half precision has three digits; the network may compute in half, the loss does not."""
    return logits if logits.dtype == torch.float64 else logits.float()
