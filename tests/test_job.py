"""One job: whatever happens to it, a record says so, and its time closes."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest

import frugal as package
import project
from command import TINY, frugal, runs, snapshot, until, wait_in_training
from frugal import folder as folders
from frugal.errors import DataError, FrugalError, RefusedError, SettingsError
from frugal.record import Record
from test_record import missing_keys

pytest_plugins = ("users_home",)


def closes(record: Record) -> None:
    """The ledger's buckets sum to the wall time within 1 %."""
    assert record.time.wall_s is not None and record.time.wall_s > 0
    assert sum(record.time.ledger_s.values()) == pytest.approx(record.time.wall_s, rel=0.01)
    assert all(seconds >= 0 for seconds in record.time.ledger_s.values())


# ------------------------------------------------------------------------------------------------------ how a job ends
def test_a_completed_run(home: Path, tmp_path: Path) -> None:
    record = package.run([*TINY, "seed=3", "trainer.limit_train_batches=12", "run.tags=[a]"])
    (run,) = runs(tmp_path / "logs")
    plain = json.loads((run / "record.json").read_text())
    assert Record.from_dict(plain) == record  # what is returned is what was written
    assert not missing_keys(plain)
    assert (record.status, record.error) == ("completed", None)
    info = record.run
    assert (info.name, info.experiment, info.seed, info.steps_executed, info.resumed) == (run.name, "default", 3, 12, 0)
    assert info.hash == run.name.rpartition("-")[2] and info.started_at.endswith("+00:00")
    of_all = {f"{split}/{metric}" for split in ("train", "val", "test") for metric in ("loss", "accuracy")}
    assert record.quality.keys() == of_all | {"val/macro_f1", "test/macro_f1"}
    assert 0 < record.quality["test/accuracy"] < 1
    assert record.config["choices"]["model"] == "simple_net" and record.config["seed"] == 3
    assert record.fingerprint.effective_batch == 64 and record.fingerprint.threads == 1
    assert record.size.parameters == record.size.nonzero_parameters == 235146
    assert record.size.file_bytes == (run / "model.safetensors").stat().st_size
    assert record.compute.flops_total == 12 * record.compute.flops_per_step
    assert record.latency == [] and record.absent["latency"] == "measure.latency=none"
    assert record.diagnosis and "\n" not in record.diagnosis
    closes(record)


def test_every_figure_that_is_absent_says_why(home: Path) -> None:
    record = package.run(TINY)
    plain = record.to_dict()
    for section in ("throughput", "compute", "memory", "size", "sparsity"):
        for key, value in plain[section].items():
            if value is None:
                assert f"{section}.{key}" in record.absent or section in record.absent, f"{section}.{key} has no reason"
    assert record.energy.train_j is not None or record.energy.reason
    assert record.time.to_target_s is None and record.absent["time.to_target_s"]


def test_a_failed_run(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken on purpose"):
        package.run([*TINY, "model=broken"])
    (run,) = runs(tmp_path / "logs")
    plain = json.loads((run / "record.json").read_text())
    assert (plain["status"], plain["error"]) == ("failed", "ValueError: broken on purpose")
    assert not missing_keys(plain)
    record = Record.read(run)
    assert record.run.steps_executed == 0 and record.config["model"]["network"]["_target_"] == "mine.Broken"
    closes(record)
    assert not folders.is_locked(run) and not folders.is_cut_off(run)


def test_a_failed_commands_log_has_the_whole_story(home: Path, tmp_path: Path) -> None:
    assert frugal("train", *TINY, "model=broken").code == 1
    (run,) = runs(tmp_path / "logs")
    log = (run / "run.log").read_text()
    assert "Traceback" in log and "mine/__init__.py" in log


def test_what_a_user_raises_in_many_lines_is_one_in_the_record(home: Path, tmp_path: Path) -> None:
    module = home / "mine" / "__init__.py"
    module.write_text(module.read_text().replace('"broken on purpose"', '"first line\\n\\nsecond line"'))
    outcome = frugal("train", *TINY, "model=broken")
    (run,) = runs(tmp_path / "logs")
    assert Record.read(run).error == "ValueError: first line"
    assert outcome.err.splitlines()[-1] == "frugal: ValueError: first line"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_an_interrupted_run_can_be_continued(number: signal.Signals, home: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    words = [*TINY[:1], "trainer.max_epochs=4", *TINY[2:], "model=dropout_net", "run.checkpoint_every_steps=1"]
    job = project.start(home, logs, words, before=wait_in_training)
    until(logs / "waiting")
    assert job.pid is not None
    os.kill(job.pid, number)
    (logs / "go").touch()
    assert project.finish(job) == 130
    (run,) = runs(logs)
    plain = json.loads((run / "record.json").read_text())
    assert (plain["status"], plain["error"]) == ("interrupted", f"interrupted by {number.name}")
    assert not missing_keys(plain) and 3 <= plain["run"]["steps_executed"] <= 4
    assert "frugal: interrupted; to continue" in (logs / "output.txt").read_text()
    closes(Record.read(run))
    assert folders.is_cut_off(run)

    assert frugal("train", *words, "run.resume=true").code == 0
    record = Record.read(run)
    assert (record.status, record.error, record.run.resumed) == ("completed", None, 1)
    assert record.run.steps_executed in (8, 9)
    closes(record)


def test_ctrl_c_while_it_is_prepared(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frugal import train

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "build_module", interrupt)
    outcome = frugal("train", *TINY)
    assert outcome.code == 130 and outcome.error.startswith("frugal: interrupted before the first checkpoint")
    (run,) = runs(tmp_path / "logs")
    assert Record.read(run).status == "interrupted"


def test_a_refused_run_leaves_nothing(home: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(RefusedError, match=r"needs data\.task"):
        package.run([*TINY, "data.task=regression"])
    with pytest.raises(SettingsError, match=r"optim\.lr=x"):
        package.run([*TINY, "optim.lr=x"])
    with pytest.raises(DataError, match="missing"):
        package.run([*TINY, "data=mnist", f"paths.data_dir={tmp_path / 'none'}", "data.source.mirrors=[]"])
    with pytest.raises(FrugalError, match="does not exist"):
        package.run([*TINY, "model.init_from=nowhere"])
    after = snapshot(tmp_path)
    after.pop(str(tmp_path / "none"), None)
    after.pop(str(tmp_path / "none" / "mnist"), None)
    assert after == before


def test_a_monitor_that_is_never_logged_is_refused_before_the_training(home: Path, tmp_path: Path) -> None:
    line = frugal("train", *TINY, "run.weights=best", "run.monitor=val/nothing").error
    assert "run.monitor=val/nothing" in line and "val/loss" in line
    assert not runs(tmp_path / "logs")


def test_bad_input_that_shows_only_after_training_keeps_its_record(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps were done and cost time: the folder stays and says what went wrong."""
    from frugal import train
    from frugal.errors import SettingsError

    def refuse(*_: object) -> None:
        raise SettingsError("found out late")

    monkeypatch.setattr(train, "load_weights", refuse)
    assert "found out late" in frugal("train", *TINY).error
    (run,) = runs(tmp_path / "logs")
    record = Record.read(run)
    assert record.status == "failed" and record.run.steps_executed == 2
    assert record.error == "found out late"


def test_a_record_that_cannot_be_written_hides_no_error(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = folders.Run.save

    def full(self: folders.Run) -> None:
        if self.record.status == "failed":
            raise OSError(28, "No space left on device")
        original(self)

    monkeypatch.setattr(folders.Run, "save", full)
    with pytest.raises(ValueError, match="broken on purpose"):
        package.run([*TINY, "model=broken"])


# ---------------------------------------------------------------------------------------------------------------- time
def test_the_second_runs_time_starts_where_the_first_ended(home: Path) -> None:
    package.run(TINY)
    ended = time.monotonic()
    time.sleep(0.6)  # composing and all that is between two runs belongs to the second
    second = package.run([*TINY, "seed=1"])
    outside = time.monotonic() - ended
    closes(second)
    assert second.time.wall_s == pytest.approx(outside, rel=0.01, abs=0.1)
    assert second.time.ledger_s["startup"] >= 0.6


def test_the_first_runs_time_starts_with_the_process(home: Path, tmp_path: Path) -> None:
    """A planted second before anything of Frugal's is called is in the wall time, as startup."""
    logs = tmp_path / "logs"
    logs.mkdir()
    job = project.start(home, logs, [*TINY], before=_sleep)
    assert project.finish(job) == 0
    (run,) = runs(logs)
    record = Record.read(run)
    assert record.time.ledger_s["startup"] >= 1.0
    closes(record)


def _sleep() -> None:
    time.sleep(1.0)


def test_a_failed_job_does_not_lengthen_the_next(home: Path) -> None:
    with pytest.raises(ValueError, match="broken on purpose"):
        package.run([*TINY, "model=broken"])
    ended = time.monotonic()
    record = package.run(TINY)
    assert record.time.wall_s == pytest.approx(time.monotonic() - ended, rel=0.01, abs=0.1)


# ---------------------------------------------------------------------------------------------------------------- seed
def test_two_runs_of_one_seed_are_one_to_the_bit(home: Path, tmp_path: Path) -> None:
    words = [*TINY, "model=dropout_net", "preprocess=shifts", "trainer.limit_train_batches=5"]
    records = {}
    for seed in ("seed=0", "seed=0", "seed=1", "seed=1"):
        before = set(runs(tmp_path / "logs"))
        record = package.run([*words, seed])
        (run,) = set(runs(tmp_path / "logs")) - before
        records.setdefault(seed, []).append(((run / "model.safetensors").read_bytes(), record.quality))
    assert records["seed=0"][0] == records["seed=0"][1]
    assert records["seed=1"][0] == records["seed=1"][1]
    assert records["seed=0"][0] != records["seed=1"][0]


def test_the_seed_is_not_lost_for_being_zero(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.manual_seed(999)
    one = package.run([*TINY, "seed=0"]).quality
    torch.manual_seed(1)
    assert package.run([*TINY, "seed=0"]).quality == one


# ------------------------------------------------------------------------------------------------- weights, other runs
def test_starting_from_another_runs_weights(home: Path, tmp_path: Path) -> None:
    from frugal import artefact

    package.run([*TINY, "trainer.limit_train_batches=10"])
    (run,) = runs(tmp_path / "logs")
    still = "optim.lr=1e-12"
    for source in (run, run / "checkpoints" / "last.ckpt", run / "model.safetensors"):
        record = package.run([*TINY, still, "seed=7", f"model.init_from={source}"])
        state, _ = artefact.read(tmp_path / "logs" / "default" / record.run.name / "model.safetensors")
        expected, _ = artefact.read(run / "model.safetensors")
        assert all((state[name] == expected[name]).all() for name in expected)
        assert record.quality["test/accuracy"] == Record.read(run).quality["test/accuracy"]


def test_the_best_weights_become_the_artefact_when_asked(home: Path, tmp_path: Path) -> None:
    """By `run.mode=max` the best is the highest loss, which is that of the first epoch."""
    words = [*TINY, "trainer.max_epochs=3", "trainer.limit_train_batches=20", "run.mode=max"]
    last, best = package.run(words), package.run([*words, "run.weights=best"])
    import torch

    folder = tmp_path / "logs" / "default" / best.run.name
    chosen = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    from frugal import artefact

    state, _ = artefact.read(folder / "model.safetensors")
    assert all(torch.equal(state[name], chosen["state_dict"][f"network.{name}"]) for name in state)
    assert last.quality["test/loss"] < best.quality["test/loss"]
    assert last.run.hash != best.run.hash


def test_a_data_option_may_leave_the_batch_size_to_its_class(home: Path) -> None:
    (home / "configs" / "data").mkdir()
    (home / "configs" / "data" / "plain.yaml").write_text(
        "task: classification\n_target_: frugal.data.datamodule.ArrayDataModule\n"
        "source: {_target_: frugal.data.digits.Digits}\n"
    )
    assert package.run([*TINY, "data=plain"]).fingerprint.effective_batch == 64


def test_the_record_of_the_best_weights_holds_their_own_validation(home: Path, tmp_path: Path) -> None:
    words = ["optim.lr=0.3", "trainer.max_epochs=6", "measure=none"]  # a wild rate: the last validation is not the best
    last = package.run(words)
    (run,) = runs(tmp_path / "logs")
    with (run / "metrics.csv").open() as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert len(losses) == 6 and min(losses) < losses[-1]
    assert last.quality["val/loss"] == pytest.approx(losses[-1])
    best = package.run([*words, "run.weights=best"])
    assert best.quality["val/loss"] == pytest.approx(min(losses))
