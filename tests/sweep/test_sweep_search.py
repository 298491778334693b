"""`sweep=random`, `tpe`, `pareto`: what is proposed, and that the search's state outlives a kill."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import project
from command import KILLED_AT, TINY, die_in_training, frugal, runs
from frugal.errors import SettingsError
from frugal.record import Record
from hydra_plugins.frugal_sweep import search

optuna = pytest.importorskip("optuna")
pytest_plugins = ("users_home",)


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frugal.report.verb.Report._plot", lambda self, path: None)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def proposals(*arguments: str, count: int = 30, **params: str) -> list[list[str]]:
    fixed, space = search.parameters(params, list(arguments))
    study = optuna.create_study(sampler=search.make_sampler("random", 0, 12))
    return [[*fixed, *(search.propose(study.ask(), override) for override in space)] for _ in range(count)]


def test_what_is_proposed() -> None:
    words = proposals(
        "seed=3", "optim.lr=tag(log,interval(0.001,1))", "data.batch_size=range(8,65,8)", "model=simple_net,lenet5",
        "model.network.hidden=[8],[16,4]", "x=int(interval(2,5))",
    )  # fmt: skip
    assert {row[0] for row in words} == {"seed=3"}
    rates = [float(row[1].removeprefix("optim.lr=")) for row in words]
    assert min(rates) >= 0.001 and max(rates) <= 1 and sum(rate < 0.0316 for rate in rates) in range(8, 23)
    assert all(len(row[1].removeprefix("optim.lr=")) < 12 for row in words)  # it becomes a run's name
    assert {int(row[2].partition("=")[2]) for row in words} <= set(range(8, 65, 8))
    assert {row[3] for row in words} == {"model=simple_net", "model=lenet5"}
    assert {row[4] for row in words} == {"model.network.hidden=[8]", "model.network.hidden=[16,4]"}
    assert {row[5] for row in words} == {"x=2", "x=3", "x=4", "x=5"}


def test_the_options_space_is_taken_where_the_command_has_none() -> None:
    given = {"optim.lr": "interval(0.1,0.2)", "seed": "1,2", "data.batch_size": "32"}
    fixed, space = search.parameters(given, ["model=lenet5", "seed=5"])
    assert fixed == ["model=lenet5", "seed=5", "data.batch_size=32"]
    assert [override.input_line for override in space] == ["optim.lr=interval(0.1,0.2)"]
    fixed, space = search.parameters(given, ["model=a,b"])
    assert (fixed, [override.input_line for override in space]) == ([], ["model=a,b"])
    with pytest.raises(SettingsError, match="nothing to search"):
        search.parameters({}, ["seed=1"])
    with pytest.raises(SettingsError, match="choose random, tpe or nsga2"):
        search.make_sampler("grid", 0, 12)


def test_a_trial_that_was_cut_off_is_tried_again_and_counts_once(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 's.sqlite'}"
    study = optuna.create_study(study_name="search", storage=storage)
    (_, (space,)) = search.parameters({}, ["x=interval(0.0,1.0)"])
    first, second = study.ask(), study.ask()
    search.propose(first, space)
    word = search.propose(second, space)
    study.tell(first, 1.0)

    after = optuna.create_study(study_name="search", storage=storage, load_if_exists=True)
    search.again(after)
    assert search.finished(after) == 1
    third = after.ask()
    assert search.propose(third, space) == word
    after.tell(third, state=optuna.trial.TrialState.FAIL)
    search.again(after)  # nothing is left to try again
    assert search.finished(after) == 2 and len(after.get_trials()) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sweep.objectives=[speed]"], "sweep.objectives: speed: "),
        (["sweep.objectives=[max size.bytes]"], "size.bytes: no record has such a figure"),
        (["sweep.objectives=[latency]"], "latency is not measured; set measure=quick"),
        (["sweep.objectives=[]"], "name one or more"),
        (["sweep.trials=0"], "sweep.trials=0: the least value is 1"),
    ],
)
def test_bad_input_leaves_no_folder(words: list[str], says: str, home: Path, tmp_path: Path) -> None:
    outcome = frugal("train", "sweep=tpe", *TINY, *words)
    assert says in outcome.error
    assert not (tmp_path / "logs").exists()


def states(logs: Path) -> list[tuple[int, str]]:
    (file,) = (logs / "default" / "sweeps").glob("*/search.sqlite")
    with sqlite3.connect(file) as base:
        return list(base.execute("select number, state from trials order by number"))


WORDS = ["sweep=tpe", TINY[0], "trainer.max_epochs=3", *TINY[2:], "run.checkpoint_every_steps=1", "model=dropout_net"]
WORDS += ["sweep.objectives=[accuracy]", "optim.lr=tag(log,interval(0.003,1))"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "pareto"])
def test_a_search_survives_a_kill(sampler: str, home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    search = WORDS if sampler == "tpe" else ["sweep=pareto", *WORDS[1:], "sweep.objectives=[accuracy,size]"]
    assert frugal("train", *search, "sweep.trials=2").code == 0
    words = [*search, "sweep.trials=4"]
    assert project.finish(project.start(home, logs, words, before=die_in_training)) == -signal.SIGKILL
    assert states(logs) == [(0, "COMPLETE"), (1, "COMPLETE"), (2, "RUNNING")]
    outcome = frugal("train", *words)
    assert outcome.code == 0 and "2 of 4 trials are done" in outcome.out
    assert states(logs) == [(0, "COMPLETE"), (1, "COMPLETE"), (2, "FAIL"), (3, "COMPLETE"), (4, "COMPLETE")]
    records = [Record.read(run) for run in runs(logs)]
    assert len(records) == 4 and {record.status for record in records} == {"completed"}
    # the job that was cut off went on in its middle
    assert [record.run.resumed_at_step for record in records if record.run.resumed] == [[KILLED_AT]]
    assert len({record.config["optim"]["lr"] for record in records}) == 4  # and nothing was drawn twice
    if sampler == "tpe":
        best = max(record.quality["val/accuracy"] for record in records)
        assert re.search(r"Best of 4 trials: max val/accuracy\n +" + f"{best:g}: ", outcome.out)
    else:
        assert re.search(r"Front, \d of 4 trials: max val/accuracy, min size.file_bytes", outcome.out)
    again = frugal("train", *words)
    assert again.code == 0 and "Running" not in again.out


def test_a_failed_trial_fails_nothing_else(home: Path, tmp_path: Path) -> None:
    outcome = frugal("train", "sweep=random", *TINY, "model=broken,dropout_net", "sweep.trials=4", "seed=range(99)")
    assert outcome.code == 1
    found = [state for _, state in states(tmp_path / "logs")]
    assert len(found) == 4 and set(found) == {"COMPLETE", "FAIL"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_pareto_search_dominates_the_default(home: Path, tmp_path: Path) -> None:
    """On digits: something smaller than the default network that is at least as accurate."""
    import frugal as package

    epochs = ["measure=none", "trainer.max_epochs=5", "trainer.threads=1", "logger=none"]
    default = package.run([*epochs, "run.experiment=default_run"])
    outcome = frugal("train", "sweep=pareto", "sweep.trials=36", *epochs)
    assert outcome.code == 0 and "Front, " in outcome.out
    records = [Record.read(run) for run in runs(tmp_path / "logs")]
    accuracy, size = default.quality["val/accuracy"], default.size.file_bytes or 0
    better = [r for r in records if r.quality["val/accuracy"] >= accuracy and (r.size.file_bytes or size) < size]
    assert better, (accuracy, size, [(r.quality["val/accuracy"], r.size.file_bytes) for r in records])
    head = re.search(r"Front, (\d+) of 36 trials: max val/accuracy, min size.file_bytes", outcome.out)
    assert head and int(head[1]) >= 2


@pytest.mark.slow
def test_two_commands_of_one_search_do_its_trials_once(home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    jobs = [project.start(home, logs, [*WORDS, "sweep.trials=3"]) for _ in range(2)]
    assert [project.finish(job) for job in jobs] == [0, 0], (logs / "output.txt").read_text()
    assert [state for _, state in states(logs)] == ["COMPLETE"] * 3 and len(runs(logs)) == 3


def test_a_space_of_ones_own_in_a_file(home: Path, tmp_path: Path) -> None:
    (home / "configs" / "sweep").mkdir()
    (home / "configs" / "sweep" / "mine.yaml").write_text(MINE)
    outcome = frugal("train", "sweep=mine", *TINY)
    assert outcome.code == 0, outcome.err
    found: list[Any] = [Record.read(run).config for run in runs(tmp_path / "logs")]
    assert 1 <= len(found) <= 2 and {config["data"]["batch_size"] for config in found} <= {16, 32}
    assert os.listdir(tmp_path / "logs" / "default" / "sweeps")[0].startswith("random-")


MINE = """# @package _global_
defaults:
  - random
  - _self_
sweep: {trials: 2, objectives: [max val/macro_f1]}
hydra:
  sweeper:
    params:
      optim.lr: 0.1,0.01
      data.batch_size: 16,32
"""
