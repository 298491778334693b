"""Budgets: training ends where the last step that still fits ends, and all that asks for the run's length knows it."""

from __future__ import annotations

import csv
import itertools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import frugal as package
from command import frugal, runs
from frugal.callbacks.budget import Budget, samples_after
from frugal.data.loaders import TrainLoader
from frugal.data.order import BucketOrder, RandomOffsets, Shuffled
from frugal.data.sampler import BatchOrder
from frugal.errors import SettingsError
from frugal.record import Record

pytest_plugins = ("users_home",)
SHORT = ["measure=none", "trainer.threads=1", "trainer.log_every_n_steps=1"]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda rank, ranks: BatchOrder(107, 10, 0, rank=rank, ranks=ranks),
        lambda rank, ranks: BatchOrder(107, 10, 0, drop_last=True, rank=rank, ranks=ranks),
        lambda rank, ranks: BucketOrder(np.arange(107), 10, 0, rank, ranks),
        lambda rank, ranks: Shuffled(107, 10, 0, rank, ranks),
        lambda rank, ranks: RandomOffsets(500, 7, 10, 0, rank, ranks),
    ],
    ids=["arrays", "drop_last", "texts", "tokens", "random"],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_samples_are_counted_beforehand(make: Any, ranks: int, limit: int | None, accumulate: int) -> None:
    """As many as the loaders of all ranks really give, step by step."""
    loaders = [
        TrainLoader(lambda indices: (indices, indices), make(rank, ranks), epoch_batches=limit) for rank in range(ranks)
    ]
    counted, seen = samples_after(loaders[0], accumulate), [0]
    for _ in range(3):
        epoch = [sum(len(batch[0]) for batch in together) for together in zip(*loaders, strict=True)]
        for i in range(0, len(epoch), accumulate):
            seen.append(seen[-1] + sum(epoch[i : i + accumulate]))
    assert [counted(step) for step in range(len(seen))] == seen


def test_a_run_ends_at_its_last_step_that_fits(home: Path, tmp_path: Path) -> None:
    record = package.run([*SHORT, "budget.samples=1000", "schedule=cosine", "schedule.warmup=0", "data.batch_size=64"])
    assert record.budget == {"unit": "samples", "amount": 1000, "spent": 960, "steps": 15}
    assert record.run.steps_executed == 15 and "val/loss" in record.quality
    (run,) = runs(tmp_path / "logs")
    with (run / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    # the schedule is over where the budget is
    assert rates == pytest.approx([0.01 * (1 + np.cos(np.pi * step / 15)) / 2 for step in range(1, 16)])

    step = record.compute.flops_per_step
    assert step is not None
    flops = package.run([*SHORT, f"budget.flops={15.9 * step}", "trainer.max_epochs=1", "data.batch_size=64"])
    assert flops.run.steps_executed == 15 and flops.budget["unit"] == "flops"
    assert flops.budget["spent"] == pytest.approx(flops.compute.flops_total, rel=1e-6)
    assert flops.budget["spent"] <= flops.budget["amount"]


def test_an_epochs_smaller_batch_counts_as_what_it_is(home: Path) -> None:
    record = package.run([*SHORT, "budget.samples=2000"])
    samples = record.data["samples"]["train"]
    batches, last = divmod(samples, 64)
    assert last > 1
    assert package.run([*SHORT, f"budget.samples={samples}"]).budget["spent"] == samples
    assert package.run([*SHORT, f"budget.samples={samples + 63}"]).run.steps_executed == batches + 1
    assert record.budget["spent"] == samples + (2000 - samples) // 64 * 64


@pytest.mark.slow
def test_a_continued_run_keeps_what_was_spent(home: Path, tmp_path: Path) -> None:
    words = [*SHORT, "schedule=cosine", "model=dropout_net", "data.batch_size=64"]
    whole = package.run([*words, "budget.samples=1920"])
    package.run([*words, "budget.samples=960", "run.experiment=parts"])
    (part,) = runs(tmp_path / "logs", "parts")
    # the schedule of the longer run is another one, so only its rest is compared: steps and samples
    longer = package.run([*words, "budget.samples=1920", f"run.resume={part}"])
    assert longer.budget == whole.budget and longer.run.steps_executed == whole.run.steps_executed == 30
    assert longer.run.resumed_at_step == [15]


def test_a_cut_off_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SHORT, "schedule=cosine", "model=dropout_net", "budget.samples=1700", "run.checkpoint_every_steps=1"]
    package.run(words)

    def interrupt(self: Budget, trainer: Any, *rest: Any) -> None:
        Budget._by_steps(self, trainer, *rest)
        if trainer.global_step == 11:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        original = Budget.on_train_start
        patch.setattr(
            Budget,
            "on_train_start",
            lambda self, *rest: (original(self, *rest), setattr(self, "on_train_batch_end", interrupt.__get__(self)))[
                0
            ],
        )
        assert frugal("train", *words, "run.experiment=parts").code == 130
    (part,) = runs(tmp_path / "logs", "parts")
    assert Record.read(part).status == "interrupted"
    assert frugal("train", *words, "run.experiment=parts", "run.resume=true").code == 0
    (whole,) = runs(tmp_path / "logs")
    assert Record.read(part).run.resumed == 1 and Record.read(part).budget == Record.read(whole).budget
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


# --------------------------------------------------------------------------------------------------------- the clock
class Clock:
    """A ledger whose training takes a second a step."""

    def __init__(self) -> None:
        self.now = 0.0

    def fit_s(self) -> float:
        return self.now


def fake_trainer() -> Any:
    parameter = torch.nn.Parameter(torch.zeros(1))
    from frugal.optim.schedules import Cosine

    schedule = Cosine(torch.optim.SGD([parameter], lr=1.0), 1_000_000, warmup=0)
    config = SimpleNamespace(scheduler=schedule, interval="step")
    return SimpleNamespace(global_step=0, world_size=1, should_stop=False, lr_scheduler_configs=[config])


def test_seconds_end_before_the_step_that_no_longer_fits() -> None:
    clock, trainer = Clock(), fake_trainer()
    budget = Budget("seconds", 10.5, ledger=clock)  # type: ignore[arg-type]
    budget.on_train_start(trainer, None)  # type: ignore[arg-type]
    rates = []
    for step in itertools.count(1):
        clock.now, trainer.global_step = float(step), step
        budget.on_train_batch_end(trainer)
        rates.append(trainer.lr_scheduler_configs[0].scheduler.optimizer.param_groups[0]["lr"])
        if trainer.should_stop:
            break
    assert step == 10 and budget.figures() == {"unit": "seconds", "amount": 10.5, "spent": 10.0, "steps": 10}
    wanted = [(1 + np.cos(np.pi * spent / 10.5)) / 2 for spent in range(1, 11)]
    assert rates == pytest.approx(wanted, abs=1e-4)


def test_seconds_of_training(home: Path) -> None:
    begun = time.monotonic()
    record = package.run([*SHORT, "budget.seconds=0.5", "schedule=cosine", "trainer.max_epochs=1"])
    assert record.status == "completed" and time.monotonic() - begun < 30
    # a step that takes longer than the one before it ends late
    assert 0.2 < record.budget["spent"] <= 1 and record.run.steps_executed == record.budget["steps"] > 3
    buckets = ("warmup", "data_wait", "train_step", "callbacks")
    assert sum(record.time.ledger_s[name] for name in buckets) == pytest.approx(record.budget["spent"], abs=0.2)
    assert "val/loss" in record.quality


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["budget.samples=1000", "budget.flops=1e9"], "budget.flops and budget.samples: a run has one budget"),
        (["budget.samples=10"], "budget.samples=10: one step takes 64 samples"),
        (["budget.flops=10"], "budget.flops=10: one step takes 6"),
        (["budget.seconds=0"], "budget.seconds=0.0: needs to be above 0"),
        (["budget.samples=0"], "budget.samples=0: the least value is 1"),
        (["budget.seconds=1", "pruning=gradual"], "a share of a run of unknown length"),
    ],
)
def test_what_cannot_be(words: list[str], says: str, home: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        package.run([*SHORT, *words])
    assert says in str(caught.value)
