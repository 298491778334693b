"""Killed runs on text, continued in the middle of an epoch, end bit for bit where the uninterrupted run ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import project
from frugal.record import Record
from project import bits, run_of

COMMON = ["measure=none", "trainer.max_epochs=2", "run.checkpoint_every_steps=7", "schedule=cosine"]
SHORT = ["trainer.limit_train_batches=40", "trainer.limit_val_batches=2", "trainer.limit_test_batches=2"]
NET = ["model.network.layers=1", "model.network.heads=2", "model.network.width=16", "model.network.dropout=0.2"]
JOBS = {
    "language model": [
        "data=pydocs", "data.block_size=32", "data.batch_size=8", "model=gpt", *NET, "optim=muon",
        "curriculum=length_warmup", *SHORT,
    ],
    "random blocks": [
        "data=pydocs", "data.block_size=32", "data.batch_size=8", "data.sampling=random", "model=gpt", *NET, *SHORT,
        "model.network.checkpointing=true",
    ],
    "packed documents": [
        "data=text_file", "data.source.path=letters.txt", "data.source.documents=line", "tokenizer=bytes",
        "tokenizer.separator=true", "data.documents=pack", "data.block_size=32", "data.batch_size=4", "model=gpt", *NET,
    ],
    "classifier": [
        "data=csv_text", "data.source.path=reviews.csv", "data.batch_size=8", "model=text_cnn",
        "model.network.dropout=0.5",
    ],
    "bag of n-grams": [
        "data=csv_text", "data.source.path=reviews.csv", "data.batch_size=8", "model=bag_of_ngrams",
        "model.network.dropout=0.5", "tokenizer=bytes",
    ],
}  # fmt: skip
DIES_AT = 24  # steps, of some 35 and more: in the first or second epoch, beyond the third checkpoint


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = project.make(tmp_path_factory.mktemp("home"))
    lines = (f"line {i} says {'abc' * (i % 7)} and {i * i}" for i in range(300))
    (folder / "letters.txt").write_text("\n".join(lines) + "\n")
    rows = (f'"a {"good" if i % 2 else "bad"} film number {i}, seen {"twice " * (i % 5)}",{i % 2}' for i in range(240))
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return folder


def die_in_training() -> None:
    from frugal.callbacks import exact

    original = exact.ExactRandomness.on_train_batch_start

    def dying(self, trainer, *rest):  # type: ignore[no-untyped-def]
        if trainer.global_step == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, trainer, *rest)

    exact.ExactRandomness.on_train_batch_start = dying  # type: ignore[method-assign]


QUICK = ("language model", "classifier")


@pytest.mark.parametrize("job", [pytest.param(j, marks=[] if j in QUICK else [pytest.mark.slow]) for j in JOBS])
def test_killed_in_mid_epoch(job: str, home: Path, tmp_path: Path) -> None:
    words = [*COMMON, *JOBS[job]]
    logs = {name: tmp_path / name for name in ("whole", "0", "2")}
    for folder in logs.values():
        folder.mkdir()
    assert project.finish(project.start(home, logs["whole"], words)) == 0, (logs["whole"] / "output.txt").read_text()
    steps = Record.read(run_of(logs["whole"])).run.steps_executed
    assert steps > DIES_AT + 10
    for workers in (0, 2):
        with_workers, place = [*words, f"data.workers={workers}"], logs[str(workers)]
        killed = project.start(home, place, with_workers, before=die_in_training)
        assert project.finish(killed) == -signal.SIGKILL, (place / "output.txt").read_text()
        again = project.start(home, place, [*with_workers, "run.resume=true"])
        assert project.finish(again) == 0, (place / "output.txt").read_text()
        record = Record.read(run_of(place))
        # a restart from zero would end in the same bits: the record must show that it was a resume
        assert record.run.resumed_at_step == [21] and record.run.steps_executed == steps + DIES_AT - 21
        assert bits(run_of(place)) == bits(run_of(logs["whole"])), f"{workers} workers"
