"""`Classifier`: any network that maps a batch to class logits, of images, features or texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from frugal.errors import SettingsError
from frugal.models.module import Batch, MakeOptimizer, MakeSchedule, Module, full_precision


class Classifier(Module):
    """Trains `network`, (B, ...) -> logits (B, classes), by cross entropy.

    `label_smoothing` is that of the training loss; validation and test report plain cross entropy, accuracy and macro
    F1 (the mean over classes of the F1 score; a class that is neither there nor predicted is left out).
    `metrics` are further torchmetrics, by name, updated with (logits, y) and logged as `val/<name>` and `test/<name>`.
    A callback may replace `criterion`, (logits, y) -> mean loss, to change what is trained.
    `confusion` holds the counts of the last evaluation, (classes, classes) int64, rows true and columns predicted.
    """

    metrics: nn.ModuleDict
    sums: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer | None = None,
        schedule: MakeSchedule | None = None,
        label_smoothing: float = 0.0,
        metrics: dict[str, Metric] | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        if not 0 <= label_smoothing < 1:
            raise SettingsError(f"model.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.criterion: Callable[[Tensor, Tensor], Tensor] = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.metrics = nn.ModuleDict(metrics or {})
        self.confusion: Tensor | None = None

    def logged_metrics(self) -> list[str]:
        further = ["macro_f1", *self.metrics]
        return super().logged_metrics() + [f"{stage}/{name}" for stage in ("val", "test") for name in further]

    def count_batch(self, batch: Batch) -> tuple[int, int | Tensor | None]:
        """Samples, and of texts, (B, T) ids padded with 0, the tokens without the padding."""
        x, y = batch
        return len(y), None if x.is_floating_point() else torch.count_nonzero(x)

    def training_loss(self, batch: Batch) -> tuple[Tensor, int | Tensor, dict[str, Tensor]]:
        x, y = batch
        logits = self.network(x)
        loss = self.criterion(full_precision(logits), y)
        return loss, len(y), {"loss": loss.detach() * len(y), "accuracy": _correct(logits, y)}

    def evaluation_sums(self, batch: Batch) -> tuple[int | Tensor, dict[str, Tensor]]:
        x, y = batch
        logits = full_precision(self.network(x))
        predicted, classes = logits.argmax(dim=1), logits.shape[1]
        counts = torch.bincount(y * classes + predicted, minlength=classes * classes).view(classes, classes)
        self.confusion = counts if self.confusion is None else self.confusion + counts
        for _, metric in self._named_metrics():
            metric.update(logits, y)
        return len(y), {"loss": F.cross_entropy(logits, y, reduction="sum"), "accuracy": (predicted == y).sum()}

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.confusion = None

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self.confusion = None

    def derived(self, stage: str, means: dict[str, Tensor]) -> dict[str, Tensor]:
        if stage == "train":
            return {}
        further = {}
        if self.confusion is not None:
            self.confusion = self._sum_over_ranks(self.confusion)
            further["macro_f1"] = macro_f1(self.confusion)
        for name, metric in self._named_metrics():
            further[name] = metric.compute()
            metric.reset()
        return further

    def _named_metrics(self) -> Iterable[tuple[str, Metric]]:
        return cast("Iterable[tuple[str, Metric]]", self.metrics.items())

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "confusion":  # counts, no state of the module
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def macro_f1(confusion: Tensor) -> Tensor:
    """Mean over classes of 2 TP / (2 TP + FP + FN), from counts (classes, classes) with rows true."""
    confusion = confusion.double() if confusion.device.type != "mps" else confusion.float()
    total = confusion.sum(dim=0) + confusion.sum(dim=1)  # 2 TP + FP + FN
    there = total > 0
    return (2 * confusion.diagonal()[there] / total[there]).mean()


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == y).sum()
