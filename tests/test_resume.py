"""A killed run, continued, ends bit for bit where the uninterrupted run ends."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

import project
from frugal.record import Record
from project import bits, run_of

# 3 epochs of 21 batches; a checkpoint every fifth step, so that most resumes begin inside an epoch.
JOB = [
    "model=dropout_net",
    "preprocess=shifts",
    "schedule=cosine",
    "measure=none",
    "trainer.max_epochs=3",
    "run.checkpoint_every_steps=5",
    "callbacks=early_stopping",
]
STEPS = 63


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project.make(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bits of the uninterrupted run."""
    logs = tmp_path_factory.mktemp("whole")
    assert project.finish(project.start(home, logs, JOB)) == 0, (logs / "output.txt").read_text()
    record = Record.read(run_of(logs))
    assert record.run.steps_executed == STEPS and record.run.resumed == 0
    return bits(run_of(logs))


def go_on(home: Path, logs: Path, workers: int) -> Record:
    words = [*JOB, f"data.workers={workers}"]
    cut_off = Record.read(run_of(logs))
    assert cut_off.status == "running", "the run had ended before it was killed"
    assert project.finish(project.start(home, logs, [*words, "run.resume=true"])) == 0, (
        logs / "output.txt"
    ).read_text()
    return Record.read(run_of(logs))


# ------------------------------------------------------------------------------------- kills at chosen moments
def die_in_training() -> None:
    from frugal.callbacks import exact

    original = exact.ExactRandomness.on_train_batch_start

    def dying(self, trainer, *rest):  # type: ignore[no-untyped-def]
        if trainer.global_step == 34:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, trainer, *rest)

    exact.ExactRandomness.on_train_batch_start = dying  # type: ignore[method-assign]


def die_in_validation() -> None:
    from frugal.models.classifier import Classifier

    original = Classifier.validation_step

    def dying(self, *rest):  # type: ignore[no-untyped-def]
        if self.trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *rest)

    Classifier.validation_step = dying  # type: ignore[method-assign]


def _die_in_write(name: str, count: int) -> None:
    """Die with half of the `count`-th file of that name on disk, under its temporary name."""
    original, seen = os.fsync, [0]

    def dying(handle: int) -> None:
        if f".{name}." in os.readlink(f"/proc/self/fd/{handle}"):
            seen[0] += 1
            if seen[0] == count:
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        original(handle)

    os.fsync = dying


def die_in_checkpoint() -> None:
    _die_in_write("last.ckpt", 7)


def die_in_best() -> None:
    _die_in_write("best.ckpt", 2)


def die_in_artefact() -> None:
    _die_in_write("model.safetensors", 1)


def die_in_record() -> None:
    _die_in_write("record.json", 1)  # the one before, which says "running", is not waited for


@pytest.mark.parametrize(
    "moment", [die_in_training, die_in_validation, die_in_checkpoint, die_in_best, die_in_artefact, die_in_record]
)
def test_killed_at_a_chosen_moment(moment, home: Path, whole: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert project.finish(project.start(home, tmp_path, JOB, before=moment)) == -signal.SIGKILL
    record = go_on(home, tmp_path, workers=0)
    assert bits(run_of(tmp_path)) == whole
    # a restart from zero would end in the same bits: the record must show that it was a resume
    (at,) = record.run.resumed_at_step
    assert record.run.resumed == 1 and at > 0 and at % 5 in (0, STEPS % 5)
    assert STEPS <= record.run.steps_executed <= STEPS + 6
    assert record.status == "completed" and record.time.wall_s is not None
    assert sum(record.time.ledger_s.values()) == pytest.approx(record.time.wall_s, rel=0.01)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_twice(workers: int, home: Path, whole: str, tmp_path: Path) -> None:
    words = [*JOB, f"data.workers={workers}"]
    assert project.finish(project.start(home, tmp_path, words, before=die_in_training)) == -signal.SIGKILL
    again = project.start(home, tmp_path, [*words, "run.resume=true"], before=die_in_checkpoint)
    assert project.finish(again) == -signal.SIGKILL
    record = go_on(home, tmp_path, workers)
    assert bits(run_of(tmp_path)) == whole
    assert record.run.resumed == 2 and all(at > 0 for at in record.run.resumed_at_step)


# --------------------------------------------------------------------------------------- kills at random moments
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_thirty_random_kills(home: Path, whole: str, tmp_path: Path) -> None:
    """Each of 30 runs is killed after its first checkpoint, at a moment drawn over the rest of its time."""
    draw, kills, resumed = random.Random(20261123), 0, 0
    spans = {0: 1.0, 2: 2.0}  # seconds from the first checkpoint to the end, by workers; learnt from what was too late
    for trial in range(120):
        if kills == 30:
            break
        logs = tmp_path / str(trial)
        logs.mkdir()
        workers = 2 * (trial % 2)
        process = project.start(home, logs, [*JOB, f"data.workers={workers}"])
        while process.is_alive() and not list(logs.glob("default/*/checkpoints/last.ckpt")):
            time.sleep(0.001)
        begun = time.monotonic()
        process.join(draw.random() * spans[workers])
        project.kill(process)
        if Record.read(run_of(logs)).status == "completed":
            spans[workers] = 0.7 * spans[workers] + 0.3 * min(spans[workers], time.monotonic() - begun)
            continue  # it was faster than the draw: no kill
        kills += 1
        record = go_on(home, logs, workers)
        assert bits(run_of(logs)) == whole, f"trial {trial} ({workers} workers) resumed at {record.run.resumed_at_step}"
        resumed += record.run.resumed_at_step[0] > 0
    assert kills == 30 and resumed == 30
