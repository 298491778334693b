"""`Distillation`: what the options that learn from a teacher share. A subclass says what it adds to the loss.

Works with any LightningModule that has a `criterion`, (output, target) -> mean loss, and batches (x, y).
"""

from __future__ import annotations

import contextlib
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from frugal import console
from frugal.distillation.teacher import Teacher, charge_of, load_teacher, train_teacher
from frugal.errors import RefusedError, SettingsError
from frugal.technique import Technique

ALL = 1 << 62  # samples: more than any data set has
IGNORED = -100  # a target where nothing is to be predicted


class Distillation(Technique):
    """Replaces the module's `criterion` while it trains. All of the teacher's time is in the ledger's `distillation`.

    Args:
        teacher: a run, checkpoint or artefact with the teacher's network.
        teacher_model: or the name of a model option, which is trained first, on the same data.
        teacher_epochs: for so many epochs.
        teacher_overrides: and with these settings, as [optim.lr=0.05, schedule=cosine]; of data and trainer the run's
            own count.
        cache: ask the teacher once about each training sample, before the first step, and keep what it says, on the
            CPU. Refused where inputs are augmented, and for language models.
    """

    per_sample: tuple[str, ...] = (
        "classification",
        "regression",
        "text_classification",
    )  # tasks whose outputs can be kept

    def __init__(
        self,
        teacher: str | None,
        teacher_model: str | None,
        teacher_epochs: int,
        teacher_overrides: list[str] | tuple[str, ...],
        cache: bool = False,
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
        self.passed = 0  # samples that the student was taught
        self.cache = Cache() if cache else None
        self._teacher_figures: dict[str, Any] = {}
        self._restore: Callable[[], None] | None = None
        self._x: Tensor | None = None
        self._charge: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        self._cache_figures: dict[str, Any] = {}

    @abstractmethod
    def ask(self, x: Tensor) -> list[Tensor]:
        """What of the teacher's is matched, for inputs (B, ...): tensors (B, ...)."""

    @abstractmethod
    def loss(self, criterion: Any, output: Tensor, target: Tensor, said: list[Tensor]) -> Tensor:
        """What is minimized: of the student's output and of what the teacher said, where `criterion` is what it would
        be without a teacher."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if getattr(pl_module, "criterion", None) is None:
            raise SettingsError(
                f"distillation: {type(pl_module).__name__} has no `criterion`, (output, target) -> mean loss"
            )
        if self.cache is not None:
            self._check_cache(getattr(trainer, "datamodule", None))
        if self.teacher is not None:  # given as it is, by `frugal.compress`
            pass
        elif self.source is not None:
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
            with self._charge:
                said = self._said(self._x)
            return self.loss(criterion, output, target, said)

        owner, name = (whole, "forward") if isinstance(whole, nn.Module) else (pl_module, "criterion")
        setattr(owner, name, taught)
        self._restore = lambda: setattr(owner, name, criterion)
        self._charge = charge_of(trainer)
        if self.cache is not None:
            with self._charge:
                self._fill(trainer, self.cache)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch as the network gets it: on its device, normalized and augmented."""
        self._x = batch[0]
        self.passed += len(batch[1])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restore is not None:
            self._restore()
        if self.cache is not None:
            self.cache.clear()
        self.teacher = self._restore = self._x = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def figures(self) -> dict[str, Any]:
        return {"teacher": self._teacher_figures, "samples_taught": self.passed, **self._cache_figures}

    def state_dict(self) -> dict[str, Any]:
        return {"passed": self.passed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.passed = state_dict["passed"]

    # ---------------------------------------------------------------------------------------------------- the cache
    def _check_cache(self, data: Any | None) -> None:
        key = "distillation.cache=true"
        if data is None or not hasattr(data, "calibration_batches"):
            raise SettingsError(f"{key}: needs one of Frugal's data modules, which know whether inputs are augmented")
        if getattr(data.preprocess, "random", False):
            raise RefusedError(f"{key}: inputs are augmented, so that the teacher never sees the same one twice")
        if data.source.task not in self.per_sample:
            raise RefusedError(
                f"{key}: {data.source.task} has outputs of other lengths or of each token; leave it false"
            )

    @torch.no_grad()
    def _fill(self, trainer: Any, cache: Cache) -> None:
        """From all training samples in an order of their own: what is kept does not depend on where a run was cut
        off."""
        data, device = trainer.datamodule, trainer.strategy.root_device
        for x in data.calibration_batches(ALL):
            x = trainer.precision_plugin.convert_input(x)
            with trainer.precision_plugin.forward_context():
                cache.keep(x, self.ask(x.to(device)))
        self._cache_figures = {"cached_samples": len(cache.rows), "cache_bytes": cache.bytes}
        console.say(f"Keeping what the teacher says of {len(cache.rows)} samples: {cache.bytes / 1e6:.1f} MB")

    def _said(self, x: Tensor) -> list[Tensor]:
        found = self.cache.find(x) if self.cache is not None else None
        return self.ask(x) if found is None else found


class Cache:
    """What a teacher says, by the bytes of its input."""

    def __init__(self) -> None:
        self.rows: dict[bytes, int] = {}
        self._parts: list[list[Tensor]] = []
        self._whole: list[Tensor] = []

    @property
    def bytes(self) -> int:
        """Of memory, keys not counted."""
        parts = [self._whole, *self._parts] if self._whole else self._parts
        return sum(tensor.numel() * tensor.element_size() for part in parts for tensor in part)

    def keep(self, x: Tensor, said: list[Tensor]) -> None:
        count = sum(len(part[0]) for part in self._parts)
        self.rows.update({key: count + i for i, key in enumerate(keys(x))})
        self._parts.append([tensor.detach().cpu() for tensor in said])

    def find(self, x: Tensor) -> list[Tensor] | None:
        """None where one of these samples is not kept."""
        if self._parts:
            self._whole, self._parts = [torch.cat(column) for column in zip(*self._parts, strict=True)], []
        rows = [self.rows.get(key, -1) for key in keys(x)]
        if -1 in rows:
            return None
        where = torch.tensor(rows)
        return [tensor.index_select(0, where).to(x.device) for tensor in self._whole]

    def clear(self) -> None:
        self.rows, self._parts, self._whole = {}, [], []


def keys(x: Tensor) -> Iterator[bytes]:
    """One for each sample; of a text without its padding, zeros at the end, of which batches have more or less."""
    for row in x.detach().cpu().contiguous().flatten(1):
        if not row.is_floating_point():
            row = row[: int(row.count_nonzero())]
        yield hashlib.blake2b(row.view(torch.uint8).numpy().tobytes(), digest_size=16).digest()
