"""A run's folder: numbered, locked, found again after a cut, and holding where the run came from without secrets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

import frugal as package
import project
from command import KILLED_AT, TINY, die_in_training, frugal, runs, snapshot, until, wait_in_training
from frugal import folder as folders
from frugal import manifest
from frugal.errors import FrugalError
from frugal.record import Record

pytest_plugins = ("users_home",)

# Six steps, a checkpoint after each, so that a kill before the fourth leaves one at step three.
SIX = [
    "measure=none",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=2",
    "trainer.threads=1",
    "model=dropout_net",
]
EVERY = [*SIX, "run.checkpoint_every_steps=1"]


def cut_off(home: Path, logs: Path, words: list[str]) -> Path:
    """A run that was killed before its fourth step; its folder."""
    logs.mkdir(exist_ok=True)
    before = set(logs.glob("default/*"))
    assert project.finish(project.start(home, logs, words, before=die_in_training)) == -signal.SIGKILL
    (folder,) = set(logs.glob("default/*")) - before
    return folder


# ----------------------------------------------------------------------------------------------------------- numbering
def test_each_run_has_a_folder_of_its_own(home: Path, tmp_path: Path) -> None:
    for _ in range(3):
        assert frugal("train", *TINY).code == 0
    first, second, third = runs(tmp_path / "logs")
    assert second.name == f"{first.name}-2" and third.name == f"{first.name}-3"
    assert len({Record.read(run).run.hash for run in (first, second, third)}) == 1
    assert first.name.endswith("-" + Record.read(first).run.hash)
    assert [Record.read(run).run.name for run in (first, second, third)] == [first.name, second.name, third.name]


def test_a_runs_folder_holds_what_it_left(home: Path, tmp_path: Path) -> None:
    words = [*SIX, "logger=csv", "trainer.log_every_n_steps=1"]
    assert frugal("train", *words).code == 0
    (run,) = runs(tmp_path / "logs")
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "overrides.yaml", "manifest.json", "record.json", "run.log", "metrics.csv",
        "model.safetensors", "checkpoints", "progress.bin", "confusion.csv",
    }  # fmt: skip
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert yaml.safe_load((run / "overrides.yaml").read_text()) == words
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["network"]["_target_"] == "mine.DropoutNet" and "${" not in (run / "config.yaml").read_text()
    assert {key: value for key, value in Record.read(run).config.items() if key != "choices"} == config


@pytest.mark.slow
def test_two_processes_that_begin_at_once_get_two_folders(home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    jobs = [project.start(home, logs, SIX) for _ in range(3)]
    assert [project.finish(job) for job in jobs] == [0, 0, 0]
    assert len(runs(logs)) == 3 and {Record.read(run).status for run in runs(logs)} == {"completed"}
    assert {Record.read(run).run.steps_executed for run in runs(logs)} == {6}


# ----------------------------------------------------------------------------------------------- locks, cut-off runs
def test_the_lock_holds_while_the_process_lives_and_no_longer(home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    job = project.start(home, logs, EVERY, before=wait_in_training)
    until(logs / "waiting")
    (run,) = runs(logs)
    assert folders.is_locked(run) and not folders.is_cut_off(run)
    before = {path: content for path, content in snapshot(run).items() if "heartbeat" not in path}
    assert "another process runs this run" in frugal("train", f"run.resume={run}").error
    assert "no cut-off run" in frugal("train", *EVERY, "run.resume=true").error
    assert before == {path: content for path, content in snapshot(run).items() if "heartbeat" not in path}

    outcome = frugal("train", *EVERY)  # a run of its own beside it
    assert outcome.code == 0 and "cut off" not in outcome.out
    assert [path.name for path in runs(logs)] == [run.name, f"{run.name}-2"]

    project.kill(job)
    assert not folders.is_locked(run) and folders.is_cut_off(run)
    assert Record.read(run).status == "running"


def test_a_cut_off_run_is_pointed_out_and_continued(home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    run = cut_off(home, logs, EVERY)
    assert folders.is_cut_off(run)

    outcome = frugal("train", *EVERY)  # nothing surprises: a plain command begins anew, and says what else there is
    (hint,) = [line for line in outcome.out.splitlines() if "cut off" in line]
    assert "run.resume=true" in hint and run.name in hint
    whole = Record.read(runs(logs)[1])
    assert whole.run.resumed == 0 and whole.run.steps_executed == 6

    outcome = frugal("train", *EVERY, "run.resume=true")
    assert outcome.code == 0 and f"Continuing at step {KILLED_AT}" in outcome.out
    record = Record.read(run)
    assert (record.status, record.run.resumed, record.run.resumed_at_step) == ("completed", 1, [KILLED_AT])
    assert record.run.steps_executed == 6  # three before the kill, three after
    assert (run / "model.safetensors").read_bytes() == (runs(logs)[1] / "model.safetensors").read_bytes()
    assert record.quality == whole.quality
    assert len(runs(logs)) == 2

    assert "no cut-off run" in frugal("train", *EVERY, "run.resume=true").error
    assert "cut off" not in frugal("train", *EVERY).out


@pytest.mark.slow
def test_of_several_cut_off_runs_the_last_is_continued(home: Path, tmp_path: Path) -> None:
    one, two = (cut_off(home, tmp_path / "logs", EVERY) for _ in range(2))
    assert frugal("train", *EVERY, "run.resume=true").code == 0
    assert [Record.read(run).status for run in (one, two)] == ["running", "completed"]
    assert frugal("train", *EVERY, "run.resume=true").code == 0
    assert [Record.read(run).status for run in (one, two)] == ["completed", "completed"]


@pytest.mark.slow
def test_another_commands_cut_off_run_is_not_continued(home: Path, tmp_path: Path) -> None:
    cut_off(home, tmp_path / "logs", EVERY)
    assert "no cut-off run" in frugal("train", *EVERY, "seed=1", "run.resume=true").error
    assert "cut off" not in frugal("train", *EVERY, "seed=1").out


def test_a_run_cut_off_before_its_first_checkpoint_begins_again(home: Path, tmp_path: Path) -> None:
    run = cut_off(home, tmp_path / "logs", SIX)
    assert not (run / "checkpoints" / "last.ckpt").exists()
    outcome = frugal("train", *SIX, "run.resume=true")
    assert outcome.code == 0 and "No checkpoint was written yet" in outcome.out
    record = Record.read(run)
    assert (record.status, record.run.resumed, record.run.resumed_at_step) == ("completed", 0, [])
    assert len(runs(tmp_path / "logs")) == 1


# ----------------------------------------------------------------------------------------------------------- extending
def test_a_finished_run_is_extended_with_its_own_words(home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    words = [*SIX, "seed=5", "data.batch_size=32"]
    assert frugal("train", *words).code == 0
    (run,) = runs(logs)
    outcome = frugal("train", f"run.resume={run}", "trainer.max_epochs=5")
    assert outcome.code == 0, outcome.err
    assert runs(logs) == [run]
    record = Record.read(run)
    assert (record.status, record.run.resumed, record.run.resumed_at_step) == ("completed", 1, [6])
    assert record.run.steps_executed == 10 and record.run.seed == 5
    assert record.config["trainer"]["max_epochs"] == 5 and record.config["data"]["batch_size"] == 32
    assert record.run.name == run.name
    # as if it had been asked for five epochs at once
    assert frugal("train", *words, "trainer.max_epochs=5").code == 0
    (other,) = set(runs(logs)) - {run}
    assert (other / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    # and can be extended again
    assert frugal("train", f"run.resume={run}", "trainer.max_epochs=6").code == 0
    assert Record.read(run).run.resumed_at_step == [6, 10]


@pytest.mark.parametrize(
    "word",
    ["optim.lr=0.5", "optim=adam", "seed=6", "data.batch_size=16", "preprocess=none", "model.label_smoothing=0.1"],
)
def test_what_a_checkpoint_fixes_cannot_be_changed_on_the_way(word: str, home: Path, tmp_path: Path) -> None:
    """It would be restored, ignored or mixed: the record would say what was not done."""
    assert frugal("train", *SIX).code == 0
    (run,) = runs(tmp_path / "logs")
    before = snapshot(tmp_path)
    line = frugal("train", f"run.resume={run}", "trainer.max_epochs=4", word).error
    assert word.split("=")[0].split(".")[0] in line and "run.resume" in line
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_an_unfinished_extension_leaves_a_record_that_can_be_continued(home: Path, tmp_path: Path) -> None:
    assert frugal("train", *EVERY).code == 0
    (run,) = runs(tmp_path / "logs")
    long = [f"run.resume={run}", "trainer.max_epochs=50", "trainer.limit_train_batches=2"]
    job = project.start(home, tmp_path / "logs", long)
    until(run / "heartbeat.json")
    project.kill(job)
    assert folders.is_cut_off(run)
    assert frugal("train", f"run.resume={run}", "trainer.max_epochs=50").code == 0
    assert Record.read(run).run.steps_executed >= 100


# -------------------------------------------------------------------------------------------------- where it came from
def test_the_manifest(home: Path, tmp_path: Path) -> None:
    assert frugal("train", *TINY).code == 0
    (run,) = runs(tmp_path / "logs")
    told = json.loads((run / "manifest.json").read_text())
    record = Record.read(run)
    assert told["command"] == record.run.command == " ".join(["frugal train", *TINY])
    assert told["git"] == {"commit": None, "dirty": None} and record.run.git_commit is None  # no repository here
    import platform

    import torch

    assert told["python"] == platform.python_version()
    assert told["packages"]["torch"] == torch.__version__ and "lightning" in told["packages"]
    assert told["machine"]["cores"] == os.cpu_count() and told["machine"]["processor"]
    assert told["threads"] == record.fingerprint.threads == 1
    assert told["device"] == record.fingerprint.device
    assert told["data_sha256"] == record.fingerprint.data_sha256 and len(told["data_sha256"]) == 64
    assert told["source_sha256"] == record.run.source_sha256 and len(told["source_sha256"]) == 64


SECRETS = {
    'api_key = "k9XvQ2mB7pLr"': "k9XvQ2mB7pLr",
    "api_key='k9XvQ2mB7pLs'": "k9XvQ2mB7pLs",
    'api_key: str = "k9XvQ2mB7pLt"': "k9XvQ2mB7pLt",
    '{"password": "hunter2 and more"}': "hunter2 and more",
    'os.environ["WANDB_API_KEY"] = "k9XvQ2mB7pLu"': "k9XvQ2mB7pLu",
    "export AWS_SECRET_ACCESS_KEY=k9XvQ2mB7pLv": "k9XvQ2mB7pLv",
    "token: k9XvQ2mB7pLw": "k9XvQ2mB7pLw",
    "url = 'https://me:k9XvQ2mB7pLx@example.org/x'": "k9XvQ2mB7pLx",
    'headers = {"Authorization": "Bearer k9XvQ2mB7pLy"}': "k9XvQ2mB7pLy",
    "login('hf_k9XvQ2mB7pLz00112233')": "hf_k9XvQ2mB7pLz00112233",
    "login('sk-k9XvQ2mB7pLz00112233')": "sk-k9XvQ2mB7pLz00112233",
}


def test_secrets_are_struck_out_and_code_is_not() -> None:
    for text, secret in SECRETS.items():
        assert secret not in manifest.redact(text), text
        assert manifest.redact(text) != text and "***" in manifest.redact(text)
    for text in (
        "frugal train data=mnist model=lenet5 optim.lr=0.05 tokenizer=bytes tokenizer.size=1024",
        "tokens_per_s = samples * tokens_per_sample",
        "def tokenize(text: str) -> list[int]:",
        "key = sorted(words, key=lambda word: word.lower())",
        "monkeypatch.setattr(keys, 'passing', True)",
        "https://example.org/a:b@c",
    ):
        assert manifest.redact(text) == text


def test_uncommitted_changes_are_kept_without_secrets(home: Path, tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *words]
        return subprocess.run(command, cwd=home, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (home / ".env").write_text("WANDB=1\n")
    git("add", "-A", "-f")
    git("commit", "-q", "-m", "begin")
    module = home / "mine" / "__init__.py"
    module.write_text(module.read_text() + "\n# changed\n" + "".join(f"# {text}\n" for text in SECRETS))
    (home / ".env").write_text("plain-value-in-a-secret-file\n")
    (home / "untracked.py").write_text("untracked\n")
    assert frugal("train", *TINY, "run.tags=['api_key=k9XvQ2mB7pLr']").code == 0
    (run,) = runs(tmp_path / "logs")
    record, told = Record.read(run), json.loads((run / "manifest.json").read_text())
    assert record.run.git_commit == told["git"]["commit"] == git("rev-parse", "HEAD").strip()
    assert record.run.git_dirty is told["git"]["dirty"] is True
    patch = (run / "git.patch").read_text()
    assert "+# changed" in patch and "plain-value-in-a-secret-file" not in patch
    for secret in SECRETS.values():
        assert secret not in patch
    assert "k9XvQ2mB7pLr" not in told["command"] and "k9XvQ2mB7pLr" not in record.run.command

    git("add", "-A", "-f")
    git("commit", "-q", "-m", "all")
    manifest.git_state.cache_clear()
    assert frugal("train", *TINY).code == 0
    clean = runs(tmp_path / "logs")[-1]
    clean = clean if clean != run else runs(tmp_path / "logs")[0]
    assert Record.read(clean).run.git_dirty is False and not (clean / "git.patch").exists()


# ------------------------------------------------------------------------------------------------------ steps, by hand
def test_steps_are_counted_through_a_kill(tmp_path: Path) -> None:
    counter = folders.StepCounter(tmp_path)
    counter.add(3)
    assert folders.StepCounter(tmp_path).value == 3  # read from the file, while the other is still open
    counter.add()
    counter.close()
    again = folders.StepCounter(tmp_path)
    assert again.value == 4
    again.close()
    (tmp_path / "progress.bin").write_bytes(b"123")  # no eight bytes: as if it were not there
    assert folders.StepCounter(tmp_path).value == 0


def test_a_folder_that_is_no_run(home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no run's folder" in frugal("train", f"run.resume={tmp_path / 'empty'}").error
    with pytest.raises(FrugalError):
        package.run([*TINY, f"run.resume={tmp_path / 'empty'}"])


def test_a_run_whose_data_changed_is_not_trained_on(home: Path, tmp_path: Path) -> None:
    import numpy as np

    words = ["data=array_file", "data.source.path=mine.npz", "model=simple_net", *SIX]
    draw = np.random.default_rng(0)
    for shift in (0, 1):
        x = draw.integers(0, 200, (80, 1, 8, 8)).astype(np.uint8) + shift
        np.savez(home / "mine.npz", x=x, y=np.arange(80) % 2)
        if not shift:
            assert frugal("train", *words).code == 0
    (run,) = runs(tmp_path / "logs")
    line = frugal("train", f"run.resume={run}", "trainer.max_epochs=5").error
    assert "the data have changed since" in line and "model.init_from" in line
    assert Record.read(run).status == "completed"
