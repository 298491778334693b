"""SIGTERM and SIGUSR1: a checkpoint, a record that says why, back into SLURM's queue, and on from there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import project
from command import TINY, frugal, runs, until, wait_in_training
from frugal import interrupts
from frugal.record import Record

pytest_plugins = ("users_home",)
WORDS = [TINY[0], "trainer.max_epochs=4", *TINY[2:], "model=dropout_net", "run.checkpoint_every_steps=1"]
SCONTROL = """#!/bin/sh
echo "$@" >> "$SCONTROL_CALLS"
[ "$1" = show ] && echo "JobId=$3 JobState=$SCONTROL_STATE"
exit ${SCONTROL_EXIT:-0}
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SLURM job's environment with a `scontrol` that writes its calls down; returns the file that holds them."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(SCONTROL)
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SCONTROL_STATE", "RUNNING")
    monkeypatch.setenv("SCONTROL_CALLS", str(tmp_path / "calls.txt"))
    for name in ("SLURM_RESTART_COUNT", "SUBMITIT_EXECUTOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "calls.txt"


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "last", None)


def test_the_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with interrupts.raising():
        for number in (signal.SIGTERM, signal.SIGUSR1):
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
                signal.pause()
            assert interrupts.last == number and interrupts.reason() == f"interrupted by {number.name}"
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before


@pytest.mark.parametrize(
    ("number", "state", "queued"),
    [
        (signal.SIGUSR1, "RUNNING", True),
        (signal.SIGTERM, "RUNNING", True),
        (signal.SIGTERM, "CANCELLED", False),  # by the user, who does not want it back
        (signal.SIGINT, "RUNNING", False),
        (None, "RUNNING", False),
    ],
)
def test_requeue(
    number: signal.Signals | None, state: str, queued: bool, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "last", number)
    monkeypatch.setenv("SCONTROL_STATE", state)
    assert interrupts.requeue() == ("queued again as SLURM job 77" if queued else None)
    assert ("requeue 77" in (slurm.read_text() if slurm.exists() else "")) == queued


def test_a_requeue_that_fails_says_so(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "last", signal.SIGUSR1)
    monkeypatch.setenv("SCONTROL_EXIT", "1")
    assert (interrupts.requeue() or "").startswith("scontrol requeue 77 failed: ")
    monkeypatch.setenv("PATH", "/nowhere")
    assert "No such file" in (interrupts.requeue() or "")


def test_submitit_queues_its_own_jobs(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "last", signal.SIGUSR1)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert interrupts.requeue() is None and not slurm.exists()


def test_without_slurm_nothing_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(interrupts, "last", signal.SIGUSR1)
    assert interrupts.requeue() is None


def stopped(home: Path, logs: Path, number: signal.Signals) -> str:
    """Stop a run in its fourth step; what it said. Its environment is the server's, so it is given there."""
    logs.mkdir(exist_ok=True)
    job = project.start(home, logs, WORDS, before=in_slurm)
    until(logs / "waiting")
    assert job.pid is not None
    os.kill(job.pid, number)
    (logs / "go").touch()
    assert project.finish(job) == 130
    return (logs / "output.txt").read_text()


def in_slurm() -> None:
    folder = Path(os.environ["FRUGAL_LOG_DIR"]).parent
    os.environ["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    os.environ |= {"SLURM_JOB_ID": "77", "SCONTROL_STATE": "RUNNING", "SCONTROL_CALLS": str(folder / "calls.txt")}
    wait_in_training()


@pytest.mark.slow
def test_a_run_that_slurm_stops_goes_on_when_it_is_started_again(
    home: Path, tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = stopped(home, tmp_path / "logs", signal.SIGUSR1)
    assert said.splitlines()[-1].endswith("give the same command and run.resume=true; queued again as SLURM job 77")
    assert slurm.read_text().splitlines()[-1] == "requeue 77"
    (run,) = runs(tmp_path / "logs")
    record = Record.read(run)
    assert (record.status, record.error) == ("interrupted", "interrupted by SIGUSR1")
    steps = record.run.steps_executed
    assert 3 <= steps <= 4 and (run / "checkpoints" / "last.ckpt").is_file()

    # another SLURM job with the same command starts anew ...
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    assert frugal("train", *WORDS, "run.experiment=other").code == 0
    monkeypatch.setenv("SLURM_JOB_ID", "77")  # ... and this very one goes on, with the command as it was
    outcome = frugal("train", *WORDS)
    assert outcome.code == 0 and "Continuing" in outcome.out
    assert runs(tmp_path / "logs") == [run]
    record = Record.read(run)
    assert (record.status, record.run.resumed, record.run.steps_executed) == ("completed", 1, 8)
    (other,) = runs(tmp_path / "logs", "other")
    assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
