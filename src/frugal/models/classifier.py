"""`Classifier`: any network that maps a batch to class logits, with its loss, metrics and optimizer.

It knows no technique. Nothing is logged by step: sums stay on the device as tensors, and the epoch's means are
logged once, so that a step costs what the network costs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from frugal.errors import SettingsError
from frugal.models.epoch_means import EpochMeans

Batch = tuple[Tensor, Tensor]  # x (B, ...), y (B,) int64


class Classifier(LightningModule):
    """Trains `network`, (B, ...) -> logits (B, classes), by cross entropy.

    `optimizer` makes an optimizer from parameters; None where the network is only evaluated. `schedule` makes a
    learning-rate schedule from (optimizer, total optimizer steps) and is stepped once an optimizer step.
    `label_smoothing` is that of the training loss; validation and test report plain cross entropy.
    `metrics` are further torchmetrics, by name, updated with (logits, y) and logged as `val/<name>` and `test/<name>`.
    A callback may replace `criterion`, (logits, y) -> mean loss, to change what is trained.
    """

    network: nn.Module
    metrics: nn.ModuleDict

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        schedule: Callable[[Optimizer, int], LRScheduler] | None = None,
        label_smoothing: float = 0.0,
        metrics: dict[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise SettingsError(f"model.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.network = network
        self.criterion: Callable[[Tensor, Tensor], Tensor] = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.metrics = nn.ModuleDict(metrics or {})
        self.last_loss: Tensor | None = None  # detached, of the last training batch
        self._optimizer = optimizer
        self._schedule = schedule
        self._train_means = EpochMeans("loss", "accuracy")
        self._eval_means = EpochMeans("loss", "accuracy")
        self._resumed_means: dict[str, float] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets `_current_fx_name` some forty times a step, and `nn.Module.__setattr__` looks for parameters in
        # each value: 70 microseconds a step.
        if name in ("_current_fx_name", "last_loss"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def logged_metrics(self) -> list[str]:
        """Names of all that is ever logged, so that a wrong name to monitor is refused before the training."""
        return [f"{stage}/{name}" for stage in ("train", "val", "test") for name in ("loss", "accuracy")] + [
            f"{stage}/{name}" for stage in ("val", "test") for name in self.metrics
        ]

    def count_batch(self, batch: Batch) -> tuple[int, int | None]:
        """Valid samples and tokens in a batch; a classifier of images has no tokens."""
        return len(batch[1]), None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx == 0:  # also where a resume begins an epoch without on_train_epoch_start, as Lightning can
            self._train_means.reset()
        x, y = batch
        logits = self.network(x)
        loss = self.criterion(_full_precision(logits), y)
        self.last_loss = loss.detach()
        self._train_means.add(len(y), loss=self.last_loss * len(y), accuracy=_correct(logits, y))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def _evaluate(self, batch: Batch) -> None:
        x, y = batch
        logits = _full_precision(self.network(x))
        self._eval_means.add(len(y), loss=F.cross_entropy(logits, y, reduction="sum"), accuracy=_correct(logits, y))
        for _, metric in self._named_metrics():
            metric.update(logits, y)

    # Epoch means. A resume in mid-epoch goes on with the checkpoint's sums, so that a logged mean covers the epoch.

    def on_train_start(self) -> None:
        self._train_means.reset()
        # The sums in a checkpoint are those of all ranks.
        if self._resumed_means is not None and self.trainer.is_global_zero:
            self._train_means.load(self._resumed_means, self.device)
        self._resumed_means = None

    def on_train_epoch_end(self) -> None:
        self._log_means("train", self._train_means)

    def on_validation_epoch_start(self) -> None:
        self._eval_means.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_means("val", self._eval_means)
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        self._eval_means.reset()

    def on_test_epoch_end(self) -> None:
        self._log_means("test", self._eval_means)
        self._log_metrics("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epoch_means"] = self._train_means.state(self._sum_over_ranks, self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed_means = checkpoint.get("epoch_means")

    def _log_means(self, stage: str, means: EpochMeans) -> None:
        for name, value in means.means(self._sum_over_ranks, self.device).items():
            # All ranks hold the same value already; sync_dist says so to Lightning, which would warn.
            self.log(f"{stage}/{name}", value, sync_dist=True, batch_size=1)
        means.reset()

    def _log_metrics(self, stage: str) -> None:
        for name, metric in self._named_metrics():
            self.log(f"{stage}/{name}", metric.compute(), sync_dist=True, batch_size=1)
            metric.reset()

    def _named_metrics(self) -> Iterable[tuple[str, Metric]]:
        return cast("Iterable[tuple[str, Metric]]", self.metrics.items())

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        attached = self._trainer is not None and self._trainer.world_size > 1
        return self.trainer.strategy.reduce(tensor, reduce_op="sum") if attached else tensor

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val is not None:  # Lightning looks up precision and algorithm first: 20 microseconds a step
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self._optimizer is None:
            raise SettingsError("this Classifier has no optimizer: it can be evaluated, but not trained")
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        if self._schedule is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise SettingsError("a schedule needs the length of the run: set trainer.max_epochs or trainer.max_steps")
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._schedule(optimizer, int(steps)), "interval": "step"},
        }


# Lightning inspects training_step's signature anew at every step; a ready one saves 25 microseconds of it.
Classifier.training_step.__signature__ = inspect.signature(Classifier.training_step)  # type: ignore[attr-defined]


def _full_precision(logits: Tensor) -> Tensor:
    """Cross entropy in half precision has three digits; the network may compute in half, the loss does not."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == y).sum()
