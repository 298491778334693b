"""The one LightningDataModule for data that fits in memory; works in any Lightning project.

    data = ArrayDataModule(Digits(), Preprocess())
    Trainer().fit(module, data)

A batch is `(x, y)`. Samples stay as stored (uint8 for images) until they are on the device, where `preprocess` makes
floats of them. Training continues in mid-epoch where the Trainer's own progress says, batch for batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from frugal.data.loaders import Batch, EvalLoader, TrainLoader
from frugal.data.preprocess import Preprocess
from frugal.data.sampler import BatchOrder, permutation
from frugal.data.source import Source, Split
from frugal.data.split import holdout
from frugal.errors import SettingsError


class ArrayDataModule(pl.LightningDataModule):
    """`batch_size` is that of all ranks together, `eval_batch_size` that of one.

    Validation is the data set's own split, or `val_fraction` of its training split, cut with `split_seed` and
    stratified. `seed` orders the training batches and seeds the augmentation. `workers` processes gather training
    batches; 0 gathers them in this one, which is faster for what fits in memory.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        batch_size: int = 64,
        eval_batch_size: int = 1000,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        workers: int = 0,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        for key, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("workers", workers, 0),
        ):
            if value < least:
                raise SettingsError(f"data.{key}={value}: it is {least} or more")
        self.source, self.preprocess = source, preprocess
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.workers, self.seed, self.drop_last = workers, seed, drop_last
        self.splits: dict[str, Batch] = {}  # after setup: "train", "test" and, where there is one, "val"
        self._train_loader: TrainLoader | None = None
        self._generators: dict[torch.device, torch.Generator] = {}

    def prepare_data(self) -> None:
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load, cut validation from training, take the training split's statistics. Raises DataError."""
        if self.splits:
            return
        loaded = self.source.load()
        if "val" not in loaded and self.val_fraction:
            train = loaded["train"]
            held = holdout(train.y, self.val_fraction, self.split_seed)
            loaded |= {"train": Split(train.x[~held], train.y[~held]), "val": Split(train.x[held], train.y[held])}
        self.splits = {name: (torch.from_numpy(s.x), torch.from_numpy(s.y)) for name, s in loaded.items()}
        if not self.preprocess.fitted:
            self.preprocess.fit(self.splits["train"][0])

    def teardown(self, stage: str | None = None) -> None:
        if self._train_loader is not None:
            self._train_loader.close()

    def dims(self) -> dict[str, Any]:
        """What a network takes from the data: `input_shape` of one sample and, for classification, `classes`."""
        self.setup()
        x, y = self.splits["train"]
        dims: dict[str, Any] = {"input_shape": tuple(x.shape[1:])}
        if self.source.task == "classification":
            dims["classes"] = self.source.classes or int(y.max()) + 1
        return dims

    def sha256(self) -> str:
        return self.source.sha256()

    def state_dict(self) -> dict[str, Any]:
        return {"preprocess": self.preprocess.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.preprocess.load_state_dict(state_dict["preprocess"])

    def train_dataloader(self) -> TrainLoader:
        rank, ranks = self._rank()
        x, y = self.splits["train"]
        order = BatchOrder(len(x), self.batch_size, self.seed, self.drop_last, rank, ranks)
        trainer = self.trainer
        if self._train_loader is not None:
            self._train_loader.close()
        self._train_loader = TrainLoader(
            x,
            y,
            order,
            epoch_batches=_limited(len(order), trainer.limit_train_batches) if trainer else None,
            reshuffle=not getattr(trainer, "overfit_batches", 0),
            done=self._batches_done if trainer else None,
            workers=self.workers,
            pin=self._on_cuda(),
        )
        return self._train_loader

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        return self._eval_loader("val") if "val" in self.splits else []

    def test_dataloader(self) -> EvalLoader:
        return self._eval_loader("test")

    def calibration_batches(self, samples: int = 512) -> Iterator[Tensor]:
        """So many preprocessed training inputs, the same at each call, in batches on the CPU; without augmentation."""
        x, _ = self.splits["train"]
        rows = torch.from_numpy(permutation(len(x), self.split_seed, 0)[:samples])
        for part in rows.split(self.batch_size):
            yield self.preprocess(x.index_select(0, part), training=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        x, y = batch
        trainer = self.trainer
        training = trainer is not None and trainer.training
        generator = self._seeded_generator(x.device) if training and self.preprocess.random else None
        x = self.preprocess(x, training, generator)
        # Lightning's own conversion, for precisions like bf16-true, came too early: these were bytes then
        return (x if trainer is None else trainer.precision_plugin.convert_input(x)), y

    def _seeded_generator(self, device: torch.device) -> torch.Generator:
        """Draws for the batch at hand, by seed, batch and rank alone.

        A batch is transferred before `on_train_batch_start`, where others seed torch for the step, so that torch's own
        generator would stand elsewhere in a resumed run.
        """
        generator = self._generators.get(device)
        if generator is None:
            generator = self._generators[device] = torch.Generator(device)
        mixed = self.seed * 0x9E3779B97F4A7C15 + self._batches_done() * 0xBF58476D1CE4E5B9
        mixed = (mixed + self._rank()[0] * 0x94D049BB133111EB) & (1 << 64) - 1
        return generator.manual_seed(mixed >> 33 ^ mixed & (1 << 31) - 1)

    def _batches_done(self) -> int:
        """Training batches whose step is done, in all epochs; restored by Lightning on a resume."""
        assert self.trainer is not None
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        # not `ready`: that is one ahead of the weights in a checkpoint written while a step fails
        return total.processed

    def _eval_loader(self, split: str) -> EvalLoader:
        rank, ranks = self._rank()
        x, y = self.splits[split]
        if len(x) < ranks:
            raise SettingsError(f"the {split} split has {len(x)} samples for {ranks} ranks; take fewer devices")
        return EvalLoader(x, y, self.eval_batch_size, rank, ranks, pin=self._on_cuda())

    def _rank(self) -> tuple[int, int]:
        """This process's place among those that share the data: with tensor parallelism fewer than there are."""
        shared = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {}
        return shared.get("rank", 0), shared.get("num_replicas", 1)

    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def _limited(batches: int, limit: int | float) -> int:
    """How many batches Lightning makes an epoch of under `limit_train_batches`: a number, or a fraction of them."""
    return max(1, min(batches, limit) if isinstance(limit, int) else int(batches * limit))
