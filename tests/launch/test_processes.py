"""`launch=processes`: a job in a process of its own, with its slot, and nothing else goes down with it."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import project
from command import TINY, frugal, runs, until
from frugal.record import Record
from hydra_plugins.frugal_launch import processes

pytest_plugins = ("users_home",)

# Kills itself for seed 1, without a word, until a file says that it was mended.
KILLER = """

class Killer(DropoutNet):
    def __init__(self, input_shape: list[int], classes: int) -> None:
        import torch

        super().__init__(input_shape, classes)
        self.bad = torch.initial_seed() == 1

    def forward(self, x: Tensor) -> Tensor:
        import os, signal
        from pathlib import Path

        if self.bad and self.training and not Path("mended.txt").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Slow(DropoutNet):
    def forward(self, x: Tensor) -> Tensor:
        import time

        time.sleep(0.05)
        return super().forward(x)
"""


@pytest.fixture
def lab(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("frugal.report.verb.Report._plot", lambda self, path: None)
    module = home / "mine" / "__init__.py"
    module.write_text(module.read_text() + KILLER)
    for name, target in (("killer", "Killer"), ("slow", "Slow")):
        text = project.OPTION.format(name=name, what="for tests", target=target)
        (home / "configs" / "model" / f"{name}.yaml").write_text(text)
    return home


def statuses(logs: Path) -> Counter[str]:
    return Counter(Record.read(run).status for run in runs(logs))


def settings(**launch: object):  # type: ignore[no-untyped-def]
    trainer = {"devices": 1, "threads": None, "accelerator": "cpu"}
    trainer |= {key: launch.pop(key) for key in list(launch) if key in trainer}
    return OmegaConf.create({"trainer": trainer, "launch": {"jobs": None, **launch}})


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert [slot.cores for slot in processes.slots(settings())] == [(i,) for i in range(8)]
    assert [slot.cores for slot in processes.slots(settings(threads=3))] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [slot.cores for slot in processes.slots(settings(devices=4))] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [slot.cores for slot in processes.slots(settings(jobs=3))] == [(0, 1), (2, 3), (4, 5)]
    assert processes.slots(settings(jobs=9)) == [processes.Slot()] * 9  # more than there are cores: the system's choice
    assert processes.slots(settings(threads=99)) == [processes.Slot(tuple(range(8)))]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,GPU-5,7")
    found = processes.slots(settings(accelerator="auto"))
    assert [slot.gpus for slot in found] == [("0",), ("2",), ("GPU-5",), ("7",)]
    assert [slot.cores for slot in found] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [slot.gpus for slot in processes.slots(settings(accelerator="gpu", devices=2))] == [
        ("0", "2"),
        ("GPU-5", "7"),
    ]
    assert [slot.gpus for slot in processes.slots(settings(accelerator="gpu", jobs=6))][4:] == [("0",), ("2",)]
    assert all(not slot.gpus for slot in processes.slots(settings(accelerator="cpu")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert all(not slot.gpus for slot in processes.slots(settings(accelerator="auto")))


def test_a_killed_job_takes_nothing_else_down(lab: Path, tmp_path: Path) -> None:
    words = ["train", "-m", "launch=processes", "launch.jobs=2", *TINY, "model=killer", "seed=0,1,2"]
    outcome = frugal(*words)
    assert outcome.code == 1, outcome.err
    assert len(re.findall(r"^Running .* \(job \d of 3\)", outcome.out, flags=re.MULTILINE)) == 3
    assert "(job 2 of 3) was killed by signal 9 after" in outcome.out
    records = {record.run.seed: record for record in map(Record.read, runs(tmp_path / "logs"))}
    assert {seed: record.status for seed, record in records.items()} == {
        0: "completed",
        1: "interrupted",
        2: "completed",
    }
    assert records[1].error == "killed by signal 9"
    (sweep,) = (tmp_path / "logs" / "default" / "sweeps").iterdir()
    assert sorted(path.name for path in (sweep / "jobs").glob("*.txt")) == [f"{i:05d}.txt" for i in range(3)]
    assert "epoch 1/1" in (sweep / "jobs" / "00000.log").read_text() and "epoch 1/1" not in outcome.out

    (lab / "mended.txt").touch()
    outcome = frugal(*words)
    assert (
        outcome.code == 0
        and outcome.out.count("Done before: ") == 2
        and statuses(tmp_path / "logs") == {"completed": 3}
    )

    # as in one process, bit for bit
    files = {record.run.seed: tmp_path / "logs" / "default" / record.run.name for record in records.values()}
    frugal("train", "-m", *TINY, "model=killer", "seed=2", "run.experiment=again")
    (again,) = runs(tmp_path / "logs", "again")
    assert (again / "model.safetensors").read_bytes() == (files[2] / "model.safetensors").read_bytes()


def test_what_is_refused_or_bad_input_needs_no_process(lab: Path, tmp_path: Path) -> None:
    outcome = frugal("train", "-m", "launch=processes", *TINY, "trainer.max_epochs=null")
    assert outcome.code == 1 and "in a process" not in outcome.out
    assert statuses(tmp_path / "logs") == {"failed": 1} and "trains without end" in outcome.out


# ------------------------------------------------------------------------------------------------------------- kills
SLOW = ["-m", "launch=processes", "launch.jobs=2", "measure=none", "trainer.max_epochs=3", "trainer.threads=1"]
SLOW += ["model=slow", "run.checkpoint_every_steps=1"]


def start(home: Path, logs: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """A command in a process group of its own."""
    environment = {**os.environ, "FRUGAL_LOG_DIR": str(logs)}
    command = [sys.executable, "-m", "frugal", "train", *words]
    logs.mkdir(exist_ok=True)
    with (logs / "output.txt").open("ab") as out:
        return subprocess.Popen(command, cwd=home, env=environment, stdout=out, stderr=out, start_new_session=True)


def children_of(logs: Path) -> list[int]:
    """Processes of the jobs, as the command told them."""
    said = (logs / "output.txt").read_text()
    return [int(pid) for pid in re.findall(r"in a process of its own, (\d+)", said)]


def gone(pid: int, timeout: float = 20) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def training(logs: Path, count: int, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while len(list((logs / "default").glob("*/checkpoints/last.ckpt"))) < count:
        assert time.monotonic() < deadline, (logs / "output.txt").read_text()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_an_interrupt_ends_all_jobs_with_a_checkpoint(number: signal.Signals, lab: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    command = start(lab, logs, [*SLOW, "seed=0,1,2"])
    training(logs, 2)
    os.kill(command.pid, number)
    assert command.wait(60) == 130, (logs / "output.txt").read_text()
    assert statuses(logs) == {"interrupted": 2}
    assert {Record.read(run).error for run in runs(logs)} == {"interrupted by SIGTERM"}  # as the command asked them
    assert all(gone(pid) for pid in children_of(logs))
    again = start(lab, logs, [*SLOW, "seed=0,1,2"])
    assert again.wait(120) == 0, (logs / "output.txt").read_text()
    assert statuses(logs) == {"completed": 3}
    records = [Record.read(run) for run in runs(logs)]
    assert sorted(record.run.resumed for record in records) == [0, 1, 1]
    assert all(record.run.steps_executed == records[0].run.steps_executed for record in records)


@pytest.mark.slow
def test_jobs_die_with_the_command(lab: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    command = start(lab, logs, [*SLOW, "seed=0,1"])
    training(logs, 2)
    command.kill()
    command.wait()
    assert len(children_of(logs)) == 2 and all(gone(pid) for pid in children_of(logs))
    assert statuses(logs) == {"running": 2}
    assert start(lab, logs, [*SLOW, "seed=0,1"]).wait(120) == 0
    assert statuses(logs) == {"completed": 2} and all(Record.read(run).run.resumed == 1 for run in runs(logs))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_hundred_jobs_of_which_twenty_are_killed(home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    words = ["-m", "launch=processes", "measure=none", "trainer.max_epochs=1", "logger=none", "seed=range(200)"]
    command = start(home, logs, words)
    killed: set[int] = set()
    draw = random.Random(0)

    def kill() -> None:
        until(logs / "output.txt")
        while command.poll() is None and len(killed) < 20:
            time.sleep(draw.uniform(0.1, 1.5))
            alive = [pid for pid in children_of(logs)[-4:] if pid not in killed and not gone(pid, 0.001)]
            if alive:
                victim = draw.choice(alive)
                with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(victim, signal.SIGKILL)
                    killed.add(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    code = command.wait(1200)
    killer.join()
    said = (logs / "output.txt").read_text()
    assert len(killed) == 20
    unfinished = said.count("killed by signal 9 after")
    assert code == 1 and 0 < unfinished <= 20, said[-2000:]
    found = statuses(logs)
    assert found["completed"] == 200 - unfinished and sum(found.values()) == 200
    assert all("killed by signal 9" in (Record.read(run).error or "") for run in runs(logs) if not _done(run))
    again = start(home, logs, words)
    assert again.wait(600) == 0, (logs / "output.txt").read_text()[-2000:]
    records = [Record.read(run) for run in runs(logs)]
    assert len(records) == 200 and {record.status for record in records} == {"completed"}
    assert sorted(record.run.seed or 0 for record in records) == list(range(200))
    assert len({record.run.hash for record in records}) == 200
    assert (logs / "output.txt").read_text().count("Done before: ") == 200 - unfinished


def _done(run: Path) -> bool:
    return Record.read(run).status == "completed"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_commands_run_each_job_once(home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    jobs = [project.start(home, logs, ["-m", *TINY, "seed=range(6)"]) for _ in range(20)]
    assert [project.finish(job, 600) for job in jobs] == [0] * 20, (logs / "output.txt").read_text()[-2000:]
    said = (logs / "output.txt").read_text()
    assert len(re.findall(r"^Running ", said, flags=re.MULTILINE)) == 6 and said.count("6 completed") == 20
    assert [Record.read(run).run.steps_executed for run in runs(logs)] == [2] * 6


@pytest.mark.slow
def test_slurms_launcher_on_this_machine(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    logs = tmp_path / "logs"
    words = ["-m", "launch=slurm_local", *TINY, "model=dropout_net", "seed=0,1"]
    assert start(home, logs, words).wait(300) == 0, (logs / "output.txt").read_text()
    assert statuses(logs) == {"completed": 2}
    assert "2 completed" in (logs / "output.txt").read_text()
    (sweep,) = (logs / "default" / "sweeps").iterdir()
    assert {path.name for path in (sweep / "jobs").iterdir()} == {"00000.txt", "00001.txt"}
    assert (sweep / "slurm").is_dir()
    before = [Record.read(run).run.started_at for run in runs(logs)]
    # and another launcher finds them done
    assert start(home, logs, [word for word in words if not word.startswith("launch=")]).wait(120) == 0
    assert [Record.read(run).run.started_at for run in runs(logs)] == before


def test_a_launcher_that_is_not_installed(home: Path) -> None:
    """submitit's other launchers are named as those that `launch=slurm` looks for."""
    line = frugal("train", "-m", "hydra/launcher=submitit_nowhere", "seed=0,1").error
    assert line == "frugal: launch: SLURM's launcher is not installed; install it with: pip install 'frugal-ml[slurm]'"
