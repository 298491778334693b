"""Sweeps: each job leaves its record, and the same command again does only what is missing."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

import frugal as package
import project
from command import KILLED_AT, TINY, Outcome, die_in_training, forget, frugal, runs, snapshot, until, wait_in_training
from frugal.record import Record
from test_cli import process

pytest_plugins = ("users_home",)

# Of twelve jobs one fails, until a file says that it was mended (no source file, so the others stay as they are).
FRAGILE = """

class Fragile(DropoutNet):
    def __init__(self, input_shape: list[int], classes: int, width: int = 16, dropout: float = 0.3) -> None:
        import torch

        super().__init__(input_shape, classes, width, dropout)
        self.weak = torch.initial_seed() == 1

    def forward(self, x: Tensor) -> Tensor:
        from pathlib import Path

        if self.weak and len(x) == 32 and not Path("mended.txt").exists():
            raise ValueError("broken on purpose")
        return super().forward(x)
"""
# Six steps, a checkpoint after each.
THREE = [TINY[0], "trainer.max_epochs=3", *TINY[2:], "run.checkpoint_every_steps=1"]
GRID = ["-m", *TINY, "model=dropout_net,fragile", "data.batch_size=32,64,128", "seed=0,1"]


@pytest.fixture(autouse=True)
def _no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second or two for each sweep's plots; one test has them."""
    if request.function is not test_twelve_jobs_of_which_one_fails:
        monkeypatch.setattr("frugal.report.verb.Report._plot", lambda self, path: None)


@pytest.fixture
def lab(home: Path) -> Path:
    module = home / "mine" / "__init__.py"
    module.write_text(module.read_text() + FRAGILE)
    (home / "configs" / "model" / "fragile.yaml").write_text(
        project.OPTION.format(name="fragile", what="fails for one seed and batch size", target="Fragile")
    )
    (home / "configs" / "data").mkdir()
    (home / "configs" / "data" / "curve.yaml").write_text(
        "task: regression\nsource: {_target_: frugal.data.digits.Digits}\nbatch_size: 64\n"
    )
    forget()
    return home


def statuses(logs: Path) -> Counter[str]:
    return Counter(Record.read(run).status for run in runs(logs))


def ran(outcome: Outcome) -> int:
    """How many jobs were begun or continued."""
    return len(re.findall(r"^(Running|Continuing) .*\(job \d+ of \d+\)", outcome.out, flags=re.MULTILINE))


# ----------------------------------------------------------------------------------------------- the sweep
def test_twelve_jobs_of_which_one_fails(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = tmp_path / "logs"
    outcome = frugal("train", *GRID)
    assert outcome.code == 1
    assert ran(outcome) == 12 and statuses(logs) == {"completed": 11, "failed": 1}
    (failed,) = [Record.read(run) for run in runs(logs) if Record.read(run).status == "failed"]
    assert failed.error == "ValueError: broken on purpose"
    assert failed.config["choices"]["model"] == "fragile"
    assert (failed.config["data"]["batch_size"], failed.run.seed) == (32, 1)
    assert "11 completed, 1 failed" in outcome.out and failed.run.name in outcome.out
    (sweep,) = (logs / "default" / "sweeps").iterdir()
    assert {path.name for path in sweep.iterdir()} >= {"report.csv", "report.md", "pareto.png", "jobs"}
    assert len(list((sweep / "jobs").iterdir())) == 12

    monkeypatch.setattr("frugal.report.verb.Report._plot", lambda self, path: None)

    # the same command again runs the failed one, and only that
    done = [run for run in runs(logs) if Record.read(run).status == "completed"]
    before = {run: snapshot(run) for run in done}
    outcome = frugal("train", *GRID)
    assert outcome.code == 1 and ran(outcome) == 1
    assert statuses(logs) == {"completed": 11, "failed": 1} and len(runs(logs)) == 12
    assert outcome.out.count("Done before: ") == 11
    assert all(str(run / "record.json") in outcome.out for run in done)  # a pointer to each
    assert {run: snapshot(run) for run in done} == before

    # and once it was mended, the sweep is whole
    (lab / "mended.txt").touch()
    outcome = frugal("train", *GRID)
    assert outcome.code == 0 and ran(outcome) == 1
    assert statuses(logs) == {"completed": 12} and "12 completed" in outcome.out
    assert {run: snapshot(run) for run in done} == before


def test_finished_jobs_are_skipped_before_torch_is_imported(home: Path, tmp_path: Path) -> None:
    words = ["train", "-m", *TINY, "seed=0,1"]
    assert frugal(*words).code == 0
    before = {run: snapshot(run) for run in runs(tmp_path / "logs")}
    done, heavy = process(*words, cwd=home)
    assert done.returncode == 0 and "2 completed" in done.stdout
    assert not heavy & {"torch", "lightning", "torchmetrics"}
    assert {run: snapshot(run) for run in runs(tmp_path / "logs")} == before


def test_widening_a_sweep_reuses_its_jobs(home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    assert ran(frugal("train", "-m", *TINY, "seed=0,1")) == 2
    before = {run: snapshot(run) for run in runs(logs)}
    outcome = frugal("train", "-m", *TINY, "seed=0,1,2", "optim.lr=0.01,0.1")  # 0.01 is the default
    assert outcome.code == 0 and ran(outcome) == 4 and len(runs(logs)) == 6
    assert {run: snapshot(run) for run in before} == before
    assert ran(frugal("train", "-m", "seed=2,1", *reversed(TINY))) == 0  # in another order


def test_a_single_runs_result_is_reused_too(home: Path, tmp_path: Path) -> None:
    package.run([*TINY, "seed=1"])
    outcome = frugal("train", "-m", *TINY, "seed=0,1")
    assert ran(outcome) == 1 and len(runs(tmp_path / "logs")) == 2
    # but never the other way round: a single command always runs
    package.run([*TINY, "seed=1"])
    assert len(runs(tmp_path / "logs")) == 3


def test_a_change_of_the_users_code_runs_its_jobs_again(home: Path, tmp_path: Path) -> None:
    words = ["train", "-m", *TINY, "model=dropout_net", "seed=0,1"]
    assert ran(frugal(*words)) == 2
    module = home / "mine" / "__init__.py"
    module.write_text(module.read_text() + "\n# another version\n")
    forget()
    outcome = frugal(*words)
    assert outcome.code == 0 and ran(outcome) == 2
    folders = runs(tmp_path / "logs")
    assert len(folders) == 4 and sum(run.name.endswith("-2") for run in folders) == 2
    assert ran(frugal(*words)) == 0  # both versions stay, and the new one is known


# ------------------------------------------------------------------------------------------ cells that cannot be run
def test_a_meaningless_cell_is_refused_and_fails_nothing(lab: Path, tmp_path: Path) -> None:
    outcome = frugal("train", "-m", *TINY, "data=digits,curve", "model=dropout_net,simple_net")
    assert outcome.code == 0, outcome.err
    assert statuses(tmp_path / "logs") == {"completed": 2, "refused": 2}
    refused = [Record.read(run) for run in runs(tmp_path / "logs") if Record.read(run).status == "refused"]
    assert all("needs data.task to be classification, data=curve has regression" in (r.error or "") for r in refused)
    assert all(record.run.steps_executed == 0 for record in refused)
    assert "2 completed, 2 refused" in outcome.out and "refused: model=" in outcome.out


def test_a_sweep_of_nothing_but_meaningless_cells(lab: Path, tmp_path: Path) -> None:
    done, heavy = process("train", "-m", *TINY, "data=curve", "seed=0,1", cwd=lab)
    assert done.returncode == 0 and not heavy & {"torch", "lightning"}
    assert statuses(tmp_path / "logs") == {"refused": 2}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("optim.lr=0.1,fast", "optim.lr=fast: needs a number"),
        ("data.source.size=28,9", "data.source.size=9"),
        ("data=digits,mnist", "missing"),
        ("model.network._target_=frugal.models.simple_net.SimpleNet,os.system", "os.system"),
        ("model.init_from=null,nowhere", "nowhere: does not exist"),
        ("trainer.max_epochs=1,null", "trainer.max_epochs=null"),
        ("optim.lr=0.1,${oc.env:FRUGAL_NO_SUCH_VARIABLE}", "FRUGAL_NO_SUCH_VARIABLE"),
    ],
)
def test_bad_input_in_one_cell_is_recorded_and_the_others_go_on(
    word: str, says: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "-m", *TINY, word, f"paths.data_dir={tmp_path / 'data'}"]
    monkeypatch.setattr("frugal.data.mnist.MNIST.public_mirrors", ())
    outcome = frugal(*words)
    assert outcome.code == 1
    assert statuses(tmp_path / "logs") == {"completed": 1, "failed": 1}, outcome.out
    (failed,) = [Record.read(run) for run in runs(tmp_path / "logs") if Record.read(run).status == "failed"]
    assert failed.error is not None and says in failed.error and "Traceback" not in outcome.err
    assert ran(frugal(*words)) == 1


# ------------------------------------------------------------------------------------------ cut off, beside each other
def test_a_cut_off_job_is_continued_in_its_middle(home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    words = ["-m", *THREE, "model=dropout_net", "seed=0,1"]
    assert project.finish(project.start(home, logs, words, before=die_in_training)) == -signal.SIGKILL
    assert statuses(logs) == {"running": 1}
    outcome = frugal("train", *words)
    assert outcome.code == 0 and ran(outcome) == 2 and statuses(logs) == {"completed": 2}
    resumed, other = sorted((Record.read(run) for run in runs(logs)), key=lambda record: -record.run.resumed)
    assert (resumed.run.resumed_at_step, resumed.run.steps_executed) == ([KILLED_AT], 6)
    assert (other.run.resumed, other.run.steps_executed) == (0, 6)
    # it ended where an uninterrupted run of its own ends
    whole = package.run([word for word in words if word not in ("-m", "seed=0,1")])
    files = [logs / "default" / record.run.name / "model.safetensors" for record in (resumed, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_two_processes_on_one_sweep_do_each_job_once(home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    words = ["-m", *TINY, "seed=0,1,2,3"]
    jobs = [project.start(home, logs, words) for _ in range(2)]
    assert [project.finish(job) for job in jobs] == [0, 0], (logs / "output.txt").read_text()
    assert statuses(logs) == {"completed": 4}
    assert [Record.read(run).run.steps_executed for run in runs(logs)] == [2] * 4
    said = (logs / "output.txt").read_text()
    assert len(re.findall(r"^Running ", said, flags=re.MULTILINE)) == 4
    assert said.count("4 completed") == 2  # each reports on the whole


@pytest.mark.slow
def test_a_job_that_another_process_does_is_waited_for(home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    words = [*THREE, "seed=0,1"]
    first = project.start(home, logs, ["-m", *words], before=wait_in_training)
    until(logs / "waiting")
    second = project.start(home, logs, ["-m", *words])
    deadline = time.monotonic() + 60
    while "waiting for it" not in (logs / "output.txt").read_text():
        assert time.monotonic() < deadline and second.is_alive()
        time.sleep(0.05)
    (logs / "go").touch()
    assert [project.finish(first), project.finish(second)] == [0, 0]
    assert [Record.read(run).run.steps_executed for run in runs(logs)] == [6, 6]


def test_ctrl_c_ends_the_sweep_and_it_goes_on_later(home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    words = ["-m", *THREE, "seed=0,1"]
    job = project.start(home, logs, words, before=wait_in_training)
    until(logs / "waiting")
    assert job.pid is not None
    os.kill(job.pid, signal.SIGINT)
    (logs / "go").touch()
    assert project.finish(job) == 130, (logs / "output.txt").read_text()
    assert statuses(logs) == {"interrupted": 1}
    assert "Traceback" not in (logs / "output.txt").read_text()
    outcome = frugal("train", *words)
    assert outcome.code == 0 and statuses(logs) == {"completed": 2}
    assert sorted(Record.read(run).run.resumed for run in runs(logs)) == [0, 1]


def test_a_jobs_time_starts_where_the_one_before_it_ended(home: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    assert frugal("train", "-m", *TINY, "seed=0,1,2").code == 0
    took = time.monotonic() - started
    records = sorted((Record.read(run) for run in runs(tmp_path / "logs")), key=lambda record: record.run.seed or 0)
    for record in records:
        assert sum(record.time.ledger_s.values()) == pytest.approx(record.time.wall_s, rel=0.01)
    assert sum(record.time.wall_s or 0 for record in records[1:]) <= took
