"""The LightningDataModule for images and tables that fit in memory; works in any Lightning project.

    data = ArrayDataModule(Digits(), Preprocess())
    Trainer().fit(module, data)

A batch is `(x, y)`. Samples stay as stored (uint8 for images) until they are on the device, where `preprocess` makes
floats of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from frugal.data.loaders import Batch, EvalLoader, Rows, TrainLoader
from frugal.data.module import DataModule
from frugal.data.preprocess import Preprocess
from frugal.data.sampler import BatchOrder, permutation
from frugal.data.source import ArraySource, Split
from frugal.data.split import holdout_copies
from frugal.errors import DataError


class ArrayDataModule(DataModule):
    """`batch_size` is that of all ranks together, `eval_batch_size` that of one.

    Validation is the data set's own split, or `val_fraction` of its training split, cut with `split_seed` and
    stratified. `seed` orders the training batches and seeds the augmentation. `workers` processes gather training
    batches; 0 gathers them in this one, which is faster for what fits in memory.
    """

    def __init__(
        self,
        source: ArraySource,
        preprocess: Preprocess,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        workers: int = 0,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, workers, seed)
        self.source, self.preprocess = source, preprocess
        self.val_fraction, self.split_seed, self.drop_last = val_fraction, split_seed, drop_last
        self.splits: dict[str, Batch] = {}

    def setup(self, stage: str | None = None) -> None:
        """Load, cut validation from training, take the training split's statistics. Raises DataError."""
        if self.splits:
            return
        loaded = self.preprocess.clean(self.source.load(), self.source.feature_names)
        numbers = self._new_numbers(self.class_names)
        if numbers is not None:
            loaded = {name: Split(split.x, numbers[split.y]) for name, split in loaded.items()}
        self.class_names = self.class_names or self.source.class_names
        for name, split in loaded.items():
            if not len(split):
                raise DataError(f"data.source: no sample is left in the {name} split of {self.source}")
        if "val" not in loaded and self.val_fraction:
            train = loaded["train"]
            held = holdout_copies(train.x, train.y, self.val_fraction, self.split_seed)
            loaded |= {"train": Split(train.x[~held], train.y[~held]), "val": Split(train.x[held], train.y[held])}
        self.splits = {name: (torch.from_numpy(s.x), torch.from_numpy(s.y)) for name, s in loaded.items()}
        self.batch_size = min(self.batch_size, len(loaded["train"]))  # a larger one asks for the whole split at once
        if not self.preprocess.fitted:
            self.preprocess.fit(*self.splits["train"])

    def dims(self) -> dict[str, Any]:
        """What a network takes from the data: `input_shape` of one sample and, for classification, `classes`; for
        regression `outputs`, the numbers to predict of one."""
        self.setup()
        x, y = self.splits["train"]
        dims: dict[str, Any] = {"input_shape": tuple(x.shape[1:])}
        if self.source.task == "regression":
            dims["outputs"] = 1
        elif self.class_names is not None:
            dims["classes"] = len(self.class_names)
        else:
            dims["classes"] = self.source.classes or int(y.max()) + 1
        return dims

    def facts(self) -> dict[str, Any]:
        """Of a regression, the training targets' mean and deviation, by which a network's output is to be scaled."""
        if self.source.task != "regression":
            return {}
        self.setup()
        state = self.preprocess.state_dict()
        return {key: state[key] for key in ("target_mean", "target_std") if key in state}

    def state_dict(self) -> dict[str, Any]:
        names = {"class_names": self.class_names, "feature_names": self.source.feature_names}
        state = {**super().state_dict(), **{key: list(value) for key, value in names.items() if value is not None}}
        if self.splits:
            state["dtype"] = str(self.splits["train"][0].dtype).removeprefix("torch.")  # as samples are stored
        return state

    def figures(self) -> dict[str, Any]:
        found = {"samples": {name: len(y) for name, (_, y) in self.splits.items()}}
        for key, counts in (("cleaning", self.preprocess.counts), ("dropped", self.source.dropped)):
            if counts:
                found[key] = copy.deepcopy(dict(counts))
        return found

    def example(self, samples: int, device: torch.device | str = "meta") -> Tensor:
        return torch.zeros(samples, *self.dims()["input_shape"], device=device)

    def calibration_batches(self, samples: int = 512) -> Iterator[Tensor]:
        """So many preprocessed training inputs, the same at each call, in batches on the CPU; without augmentation."""
        x, _ = self.splits["train"]
        rows = torch.from_numpy(permutation(len(x), self.split_seed, 0)[:samples])
        for part in rows.split(self.batch_size):
            yield self.preprocess(x.index_select(0, part), training=False)

    def train_dataloader(self) -> TrainLoader:
        rank, ranks = self._rank()
        x, y = self.splits["train"]
        order = BatchOrder(len(x), self.batch_size, self.seed, self.drop_last, rank, ranks)
        return self._new_train_loader(Rows(x, y, pin=self._on_cuda() and not self.workers), order)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        x, y = batch
        trainer = self.trainer
        training = trainer is not None and trainer.training
        generator = self._seeded_generator(x.device) if training and self.preprocess.random else None
        if generator is not None and self._rank()[1] > 1:
            x = self.preprocess(x, training, generator, self.part())
        else:
            x = self.preprocess(x, training, generator)
        # Lightning's own conversion, for precisions like bf16-true, came too early: these were bytes then
        return (x if trainer is None else trainer.precision_plugin.convert_input(x)), y

    def _eval_loader(self, split: str) -> EvalLoader:
        x, y = self.splits[split]
        return self._new_eval_loader(split, Rows(x, y).stretch, len(x))
