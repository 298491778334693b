"""A Lightning project of a few lines, with sleeps to plant, for the meters to measure."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

BATCH = 8


@dataclass
class Sleeps:
    """Seconds to sleep at each place, and what a clock of the test's own saw there."""

    seconds: dict[str, float] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)

    def at(self, place: str) -> None:
        seconds = self.seconds.get(place, 0.0)
        if seconds:
            begin = time.perf_counter()
            time.sleep(seconds)
            self.spent[place] = self.spent.get(place, 0.0) + time.perf_counter() - begin


class Rows(Dataset[Tensor]):
    """Fetched a batch at a time, by a list of indices."""

    def __init__(self, sleeps: Sleeps, batches: int, place: str) -> None:
        self.x = torch.linspace(-1, 1, batches * BATCH * 4).view(-1, 4)
        self.sleeps, self.place = sleeps, place

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, indices: Any) -> Tensor:
        self.sleeps.at(self.place)
        return self.x[indices]


class Toy(pl.LightningModule):
    def __init__(self, sleeps: Sleeps, batches: int, val_batches: int, workers: int) -> None:
        super().__init__()
        self.network = nn.Linear(4, 2)
        self.sleeps, self.batches, self.val_batches, self.workers = sleeps, batches, val_batches, workers

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.sleeps.at("step")
        return self.network(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.sleeps.at("validation")
        self.log("val/loss", self.network(batch).square().mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.sleeps.at("test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.sleeps.at("checkpoint")

    def train_dataloader(self) -> Any:
        return self._loader(self.batches, "data", self.workers)

    def val_dataloader(self) -> Any:
        return self._loader(self.val_batches, "validation_data", 0)

    def test_dataloader(self) -> Any:
        return self._loader(self.val_batches, "test_data", 0)

    def _loader(self, batches: int, place: str, workers: int) -> Any:
        rows = Rows(self.sleeps, batches, place)
        sampler = BatchSampler(SequentialSampler(rows), BATCH, drop_last=False)
        return DataLoader(rows, batch_size=None, sampler=sampler, num_workers=workers)


class SlowLogger(DummyLogger):
    def __init__(self, sleeps: Sleeps) -> None:
        super().__init__()
        self.sleeps = sleeps
        self.finalized = 0

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self.sleeps.at("logger")

    def finalize(self, status: str) -> None:
        self.finalized += 1
        self.sleeps.at("finalize")


@dataclass
class Run:
    trainer: pl.Trainer
    module: Toy
    sleeps: Sleeps
    wall_s: float


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(before)


@pytest.fixture
def fit(tmp_path: Any) -> Callable[..., Run]:
    """`fit([meters], sleeps={"data": 0.01}, epochs=2, batches=10)` trains the toy and returns what happened."""

    def run(
        callbacks: list[pl.Callback],
        sleeps: dict[str, float] | None = None,
        epochs: int = 2,
        batches: int = 10,
        val_batches: int = 2,
        workers: int = 0,
        checkpoint: bool = False,
        logger: Any = None,
        module: type[Toy] = Toy,
        ckpt_path: str | None = None,
        **options: Any,
    ) -> Run:
        planted = Sleeps(sleeps or {})
        toy = module(planted, batches, val_batches, workers)
        if logger is None:
            logger = SlowLogger(planted)
        elif isinstance(logger, SlowLogger):
            logger.sleeps = planted
        saver = [ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_last=True)] if checkpoint else []
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[*callbacks, *saver],
            logger=logger,
            default_root_dir=tmp_path,
            enable_checkpointing=checkpoint,
            enable_progress_bar=False,
            enable_model_summary=False,
            **{"log_every_n_steps": 1, "num_sanity_val_steps": 0, **options},
        )
        begin = time.perf_counter()
        trainer.fit(toy, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return Run(trainer, toy, planted, time.perf_counter() - begin)

    return run
