"""The command line: verbs, help, completion, Hydra's own flags; and that asking costs no import of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import frugal as package
from command import TINY, frugal, runs, snapshot
from frugal.record import Record

pytest_plugins = ("users_home",)

HEAVY = {"torch", "lightning", "torchmetrics", "matplotlib", "sklearn", "pandas"}
# The command; the heavy modules that it had imported are noted at its end (a job that was run leaves without one).
PROBE = f"""
import atexit, os, sys
atexit.register(lambda: open(os.environ["NOTE"], "w").write(" ".join({HEAVY!r} & sys.modules.keys())))
from frugal.cli import main
main(sys.argv[1:])
"""
SOURCE = str(Path(package.__file__).parents[1])


def process(*words: str, cwd: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """`frugal WORDS` in a process of its own, and the heavy modules that it imported."""
    note = cwd.parent / "note.txt"
    note.write_text("no note")
    environment = {**os.environ, "PYTHONPATH": SOURCE, "NOTE": str(note), **environment}
    command = [sys.executable, "-c", PROBE, *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    heavy = set(note.read_text().split())
    note.unlink()
    return done, heavy


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], "usage: frugal VERB"),
        (["--help"], "usage: frugal VERB"),
        (["--version"], package.__version__),
        (["train", "--help"], "Options by group"),
        (["evaluate", "--help"], "Options (as in frugal train --help): data=, measure="),
        (["train", "--hydra-help"], "--multirun"),
        (["train", "--cfg", "job"], "max_epochs: 10"),
        (["train", "--cfg", "job", "--package", "optim"], "momentum: 0.9"),
        (["train", "--info", "defaults"], "train_schema"),
        (["train", "--info", "config"], "working-directory"),
        (["train", "model=lenet5", "--cfg", "job"], "lenet5.LeNet5"),
        (["evaluate", "--cfg", "job"], "source:"),
        (["evaluate", "some/run", "--cfg", "job"], "some/run"),
        (["trian"], "did you mean train?"),
        (["train", "modl=x"], "did you mean model?"),
        (["train", "+trainer.max_epoch=3"], "did you mean trainer.max_epochs?"),
        (["-sc", "install=bash"], "complete -o nospace"),
        (["report", "--help"], "usage: frugal report"),
        (["doctor", "--help"], "usage: frugal doctor"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_asking_imports_nothing_heavy_and_leaves_nothing(
    words: list[str], shown: str, home: Path, tmp_path: Path
) -> None:
    before = snapshot(tmp_path)
    done, heavy = process(*words, cwd=home)
    assert shown in done.stdout + done.stderr
    assert not heavy
    assert "Traceback" not in done.stderr
    assert snapshot(tmp_path) == before


def test_python_m_frugal_is_frugal(home: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    command = [sys.executable, "-m", "frugal"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=home, env=environment)
    assert (done.returncode, done.stdout) == (0, package.__version__ + "\n")
    done = subprocess.run([*command, "trian"], capture_output=True, text=True, cwd=home, env=environment)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_help_lists_every_verb_and_option(home: Path) -> None:
    from frugal import cli, settings

    shown = frugal("--help").out
    assert all(verb in shown for verb in (*cli.COMPOSED, *cli.PLAIN))
    shown = frugal("train", "--help").out
    for option in settings.config_folder().glob("*/*.yaml"):
        assert option.stem in shown, option
    assert "dropout_net" in shown  # a user's own stand beside them


# --------------------------------------------------------------------------------------------------------- completion
def complete(line: str, home: Path) -> set[str]:
    done, heavy = process(
        "-sc", "query=bash", cwd=home, COMP_LINE=line, COMP_POINT=str(len(line)), COMP_CWORD=str(line.count(" "))
    )
    assert done.returncode == 0 and done.stderr == "" and not heavy
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("frugal ", {"train", "evaluate", "report", "doctor"}),
        ("frugal t", {"train"}),
        ("frugal train mod", {"model=", "model."}),
        ("frugal train model=", {"model=simple_net", "model=lenet5", "model=lenet_300_100", "model=dropout_net"}),
        ("frugal train model=le", {"model=lenet5", "model=lenet_300_100"}),
        ("frugal train trainer.max_", {"trainer.max_epochs=", "trainer.max_steps="}),
        ("frugal train model=lenet5 optim=a", {"optim=adam", "optim=adamw"}),
        ("frugal train optim=adam optim.b", {"optim.betas."}),
        ("frugal evaluate measure=q", {"measure=quick"}),
        ("frugal report lo", set()),
    ],
)
def test_completion(line: str, offered: set[str], home: Path) -> None:
    found = complete(line, home)
    assert offered <= found if offered else not found
    typed = line.rsplit(" ", 1)[1]
    assert all(word.startswith(typed) for word in found)


# ------------------------------------------------------------------------------------------------------------ running
def test_a_run_without_a_terminal_prints_plain_lines(home: Path, tmp_path: Path) -> None:
    done, _ = process("train", *TINY, "run.experiment=a_rather_long_name_for_an_experiment", cwd=home, COLUMNS="40")
    assert done.returncode == 0 and done.stderr == ""
    assert "\x1b" not in done.stdout and "\r" not in done.stdout and "…" not in done.stdout
    (run,) = runs(tmp_path / "logs", "a_rather_long_name_for_an_experiment")
    assert f"Record: {run / 'record.json'}" in done.stdout  # in one piece, however narrow
    assert "test/accuracy" in done.stdout
    assert Record.read(run).run.command == "frugal train " + " ".join(
        [*TINY, "run.experiment=a_rather_long_name_for_an_experiment"]
    )
    log = (run / "run.log").read_text()
    assert "step 2/2" in log


def test_evaluate_takes_a_path(home: Path, tmp_path: Path) -> None:
    assert frugal("train", *TINY).code == 0
    (run,) = runs(tmp_path / "logs")
    strange = tmp_path / "it's a=b, [really] {so} $x"
    run.rename(strange)
    for words in (
        ("evaluate", str(strange), "measure=none"),
        ("evaluate", "measure=none", str(strange)),
        ("evaluate", str(strange / "checkpoints" / "last.ckpt"), "measure=none"),
    ):
        outcome = frugal(*words)
        assert outcome.code == 0, outcome.err
    assert len(runs(tmp_path / "logs", "evaluate")) == 3


def test_an_interpolation_on_the_command_line_is_the_jobs(home: Path, tmp_path: Path) -> None:
    assert frugal("train", *TINY, "data.batch_size=${measure.warmup_steps}").code == 0
    (run,) = runs(tmp_path / "logs")
    assert Record.read(run).config["data"]["batch_size"] == 10


def test_what_a_users_model_does_wrong_is_shown_whole_and_told_in_one_line(home: Path, tmp_path: Path) -> None:
    outcome = frugal("train", *TINY, "model=broken")
    assert outcome.code == 1
    *trace, line = outcome.err.splitlines()
    assert line == "frugal: ValueError: broken on purpose"
    assert trace[0].startswith("Traceback") and any("mine/__init__.py" in text for text in trace)


def test_a_second_command_in_one_process_knows_nothing_of_the_first(home: Path, tmp_path: Path) -> None:
    assert frugal("train", "-m", *TINY, "model=dropout_net,broken").code == 1
    outcome = frugal("train", *TINY)
    assert outcome.code == 0 and "broken" not in outcome.out
