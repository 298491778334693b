"""What Frugal's DataModules have in common: the checks, this process's share, where training stands, what it is told.

A LightningDataModule of arrays, of running text or of labelled texts derives from it; each works in any Lightning
project. Training continues in mid-epoch where the Trainer's own progress says, batch for batch.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from frugal.data.corpus import settings_of
from frugal.data.loaders import Batch, EvalLoader, Order, TrainLoader
from frugal.data.sampler import Part
from frugal.errors import DataError, SettingsError
from frugal.tokenizer.base import Tokenizer


class DataModule(pl.LightningDataModule, ABC):
    """`batch_size` is that of all ranks together, `eval_batch_size` that of one."""

    source: Any
    preprocess: Any  # what cleans or normalizes: has `state_dict` and `load_state_dict`
    tokenizer: Tokenizer | None = None
    class_names: list[str] | None = None  # in the order of the labels, a trained network's where its state was loaded
    splits: Mapping[str, Any]  # after setup: "train" and, where there are such, "val" and "test"

    def __init__(self, batch_size: int, eval_batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        for key, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("workers", workers, 0),
        ):
            if value < least:
                raise SettingsError(f"data.{key}={value}: it is {least} or more")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.workers, self.seed = workers, seed
        self.splits = {}
        self._train_loader: TrainLoader | None = None
        self._generators: dict[torch.device, torch.Generator] = {}

    def prepare_data(self) -> None:
        self.source.prepare()

    def teardown(self, stage: str | None = None) -> None:
        if self._train_loader is not None:
            self._train_loader.close()

    # ---------------------------------------------------------------------------------------------- what others ask
    @abstractmethod
    def dims(self) -> dict[str, Any]:
        """Keyword arguments that a network takes from the data."""

    def facts(self) -> dict[str, Any]:
        """Keyword arguments that a LightningModule may take from the data."""
        return {}

    def figures(self) -> dict[str, Any]:
        """What the data is, in plain values, for the record."""
        return {}

    @abstractmethod
    def example(self, samples: int, device: torch.device | str = "meta") -> Tensor:
        """A network's input for so many samples of typical shape; its values mean nothing."""

    @abstractmethod
    def calibration_batches(self, samples: int = 512) -> Iterator[Tensor]:
        """So many training inputs as the network takes them, the same at each call, in batches on the CPU."""

    def sha256(self) -> str:
        """Identity of the data; of text, as the tokens that it becomes."""
        if self.tokenizer is None:
            return self.source.sha256()
        return _hash(self.text_sha256(), _learnt(self.tokenizer))

    def text_sha256(self) -> str:
        """Identity of cleaned text before it is tokenized: what runs with different tokenizers have in common."""
        return _hash(self.source.sha256(), settings_of(self.preprocess))

    def state_dict(self) -> dict[str, Any]:
        state = {"preprocess": self.preprocess.state_dict()}
        if self.tokenizer is not None:
            state["tokenizer"] = self.tokenizer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what another one learnt of its training split. Raises DataError where text was encoded or classes were
        numbered otherwise."""
        self.preprocess.load_state_dict(state_dict["preprocess"])
        known = state_dict.get("class_names")
        if self.splits and self._new_numbers(known) is not None:
            raise DataError("the checkpoint was trained on classes in another order than this data has them in")
        self.class_names = known or self.class_names
        if self.tokenizer is None:
            return
        before = self.tokenizer.sha256() if self.splits else None
        self.tokenizer.load_state_dict(state_dict["tokenizer"])
        if before not in (None, self.tokenizer.sha256()):
            raise DataError("the checkpoint was trained with another tokenizer than this data is encoded with")

    def _new_numbers(self, known: list[str] | None) -> np.ndarray | None:
        """The label that each of the source's classes has in a list `known` to a trained network; None where they are
        the same, or have no names. Raises DataError for a class that is not in it."""
        names = getattr(self.source, "class_names", None)
        if known is None or names is None or known == names:
            return None
        strangers = [name for name in names if name not in known]
        if strangers:
            shown = ", ".join(strangers[:3])
            raise DataError(f"data.source: its classes are not those that the network was trained on ({shown})")
        return np.array([known.index(name) for name in names], dtype=np.int64)

    # ------------------------------------------------------------------------------------------------------- loaders
    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        return self._eval_loader("val") if "val" in self.splits else []

    def test_dataloader(self) -> EvalLoader:
        """Of the test split; where the data set has none, of the validation split."""
        split = next((name for name in ("test", "val") if name in self.splits), None)
        if split is None:
            raise SettingsError("data.val_fraction=0: there is no test split either, so nothing is left to test on")
        return self._eval_loader(split)

    @abstractmethod
    def _eval_loader(self, split: str) -> EvalLoader: ...

    def _new_train_loader(self, gather: Callable[[np.ndarray], Batch], order: Order) -> TrainLoader:
        trainer = self.trainer
        if self._train_loader is not None:
            self._train_loader.close()
        self._train_loader = TrainLoader(
            gather,
            order,
            epoch_batches=_limited(len(order), trainer.limit_train_batches) if trainer else None,
            reshuffle=not getattr(trainer, "overfit_batches", 0),
            done=self._batches_done if trainer else None,
            workers=self.workers,
            pin=self._on_cuda(),
        )
        return self._train_loader

    def _new_eval_loader(
        self, split: str, stretch: Callable[[int, int], Batch], samples: int, mixed: bool = False
    ) -> EvalLoader:
        rank, ranks = self._rank()
        if samples < ranks:
            raise SettingsError(f"the {split} split has {samples} samples for {ranks} ranks; take fewer devices")
        return EvalLoader(stretch, samples, self.eval_batch_size, rank, ranks, self._on_cuda(), mixed)

    # --------------------------------------------------------------------------------------------- where training is
    def part(self, behind: int = 0) -> Part:
        """This process's part of the training batch at hand, or of one that lies so many behind."""
        assert self._train_loader is not None
        return self._train_loader.part(self._batches_done() - behind)

    def weight(self) -> float:
        """By how much more this rank's mean over the batch at hand counts than another's; 1 where all have as much."""
        return 1.0 if self._rank()[1] == 1 or self._train_loader is None else self.part().weight

    def counts(self, behind: int = 0) -> bool:
        """Whether the batch at hand counts in sums over ranks; False where another rank has the same samples. With
        `behind` 1, of the batch whose step is done."""
        return self._rank()[1] == 1 or self._train_loader is None or self.part(behind).counts

    def _seeded_generator(self, device: torch.device) -> torch.Generator:
        """Draws for the whole batch at hand, by seed and batch alone; each rank then takes those of its part.

        A batch is transferred before `on_train_batch_start`, where others seed torch for the step, so that torch's own
        generator would stand elsewhere in a resumed run.
        """
        generator = self._generators.get(device)
        if generator is None:
            generator = self._generators[device] = torch.Generator(device)
        mixed = self.seed * 0x9E3779B97F4A7C15 + self._batches_done() * 0xBF58476D1CE4E5B9
        mixed &= (1 << 64) - 1
        return generator.manual_seed(mixed >> 33 ^ mixed & (1 << 31) - 1)

    def _batches_done(self) -> int:
        """Training batches whose step is done, in all epochs; restored by Lightning on a resume."""
        assert self.trainer is not None
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        # not `ready`: that is one ahead of the weights in a checkpoint written while a step fails
        return total.processed

    def _rank(self) -> tuple[int, int]:
        """This process's place among those that share the data: with tensor parallelism fewer than there are."""
        shared = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {}
        return shared.get("rank", 0), shared.get("num_replicas", 1)

    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def _learnt(tokenizer: Tokenizer) -> Any:
    return tokenizer.sha256() if tokenizer.fitted else settings_of(tokenizer)


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _limited(batches: int, limit: int | float) -> int:
    """How many batches Lightning makes an epoch of under `limit_train_batches`: a number, or a fraction of them."""
    return max(1, min(batches, limit) if isinstance(limit, int) else int(batches * limit))
