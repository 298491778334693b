"""`Distillation`: what the options that learn from a teacher share. A subclass says what it adds to the loss.

Works with any LightningModule that has a `criterion`, (output, target) -> mean loss, and batches (x, y).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from frugal.distillation.teacher import Teacher, load_teacher, train_teacher
from frugal.errors import SettingsError
from frugal.technique import Technique

IGNORED = -100  # a target where nothing is to be predicted


class Distillation(Technique):
    """Replaces the module's `criterion` while it trains.

    Args:
        teacher: a run, checkpoint or artefact with the teacher's network.
        teacher_model: or the name of a model option, which is trained first, on the same data.
        teacher_epochs: for so many epochs.
        teacher_overrides: and with these settings, as [optim.lr=0.05, schedule=cosine]; of data and trainer the run's
            own count.
    """

    def __init__(
        self,
        teacher: str | None,
        teacher_model: str | None,
        teacher_epochs: int,
        teacher_overrides: list[str] | tuple[str, ...],
    ) -> None:
        super().__init__()
        if (teacher is None) == (teacher_model is None):
            what = "nobody teaches" if teacher is None else "two would teach"
            raise SettingsError(
                f"distillation.teacher={teacher or 'null'}, teacher_model={teacher_model or 'null'}: {what}; name a"
                " run to learn from, or a model option to train first"
            )
        if teacher_epochs < 1:
            raise SettingsError(f"distillation.teacher_epochs={teacher_epochs}: the least value is 1")
        self.source, self.model = teacher, teacher_model
        self.epochs, self.overrides = teacher_epochs, list(teacher_overrides)
        self.teacher: Teacher | None = None
        self.passed = 0  # samples through the teacher, in training
        self._teacher_figures: dict[str, Any] = {}
        self._restore: Callable[[], None] | None = None
        self._x: Tensor | None = None

    @abstractmethod
    def loss(self, criterion: Any, output: Tensor, target: Tensor, x: Tensor) -> Tensor:
        """What is minimized: of the student's output, where `criterion` is what it would be without a teacher."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if getattr(pl_module, "criterion", None) is None:
            raise SettingsError(
                f"distillation: {type(pl_module).__name__} has no `criterion`, (output, target) -> mean loss"
            )
        if self.source is not None:
            self.teacher = load_teacher(self.source, getattr(trainer, "datamodule", None))
        else:
            assert self.model is not None
            self.teacher = train_teacher(trainer, self.model, self.epochs, self.overrides)
        self._teacher_figures = self.teacher.figures

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.teacher is not None
        example = next(pl_module.parameters())
        self.teacher.network.to(example.device, example.dtype)
        whole: Any = pl_module.criterion
        # A module stays where it is, or its buffers would leave the checkpoint: only what it computes is replaced.
        criterion = whole.forward if isinstance(whole, nn.Module) else whole

        def taught(output: Tensor, target: Tensor) -> Tensor:
            if self._x is None or not torch.is_grad_enabled():
                return criterion(output, target)
            return self.loss(criterion, output, target, self._x)

        owner, name = (whole, "forward") if isinstance(whole, nn.Module) else (pl_module, "criterion")
        setattr(owner, name, taught)
        self._restore = lambda: setattr(owner, name, criterion)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch as the network gets it: on its device, normalized and augmented."""
        self._x = batch[0]
        self.passed += len(batch[1])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restore is not None:
            self._restore()
        self.teacher = self._restore = self._x = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def figures(self) -> dict[str, Any]:
        return {"teacher": self._teacher_figures, "samples_taught": self.passed}

    def state_dict(self) -> dict[str, Any]:
        return {"passed": self.passed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.passed = state_dict["passed"]
