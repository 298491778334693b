"""`frugal evaluate`: a run's files alone give the figures of its own test again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import frugal as package
from command import TINY, frugal, runs, snapshot
from frugal.record import Record
from test_record import missing_keys

pytest_plugins = ("users_home",)

# Twenty batches, so that the figures are those of no fresh network.
WORDS = [*TINY, "trainer.limit_train_batches=20", "preprocess=shifts", "model.label_smoothing=0.1", "logger=none"]
SMALL = '''"""Made-up data sets beside the shipped ones."""

from __future__ import annotations

import numpy as np

from frugal.data.digits import Digits
from frugal.data.source import Split


class Shuffled(Digits):
    """The digits with their test labels turned by one: what fits, and gives other figures."""

    def sha256(self) -> str:
        return "0" * 64

    def load(self) -> dict[str, Split]:
        splits = super().load()
        return {**splits, "test": Split(splits["test"].x, (splits["test"].y + 1) % 10)}


class Letters(Digits):
    """Twelve classes."""

    classes = 12
'''


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    (home / "mine" / "data.py").write_text(SMALL)
    (home / "configs" / "data").mkdir()
    shipped = (
        "task: classification\n_target_: frugal.data.datamodule.ArrayDataModule\nsource: {_target_: mine.data.%s}\n"
    )
    for name in ("Shuffled", "Letters"):
        (home / "configs" / "data" / f"{name.lower()}.yaml").write_text(shipped % name)
    package.run(WORDS)
    (folder,) = runs(tmp_path / "logs")
    return folder


def of_the_test(record: Record) -> dict[str, float]:
    return {name: value for name, value in record.quality.items() if name.startswith("test/")}


def test_a_runs_figures_again(run: Path, home: Path, tmp_path: Path) -> None:
    expected = Record.read(run)
    before = snapshot(run)
    copied = tmp_path / "elsewhere" / "a model.safetensors"
    copied.parent.mkdir()
    shutil.copy(run / "model.safetensors", copied)
    for source in (run, run / "checkpoints" / "last.ckpt", run / "model.safetensors", copied):
        record = package.run([f"source='{source}'", "measure=none"], "evaluate")
        assert of_the_test(record) == of_the_test(expected) and len(of_the_test(record)) == 3, source
        assert record.status == "completed" and not missing_keys(record.to_dict())
        assert record.size == expected.size  # that of the network alone, for a checkpoint too
        assert record.sparsity == expected.sparsity
        assert record.fingerprint.data_sha256 == expected.fingerprint.data_sha256
        assert record.config["preprocess"]["shift"] == 2 and record.config["model"]["label_smoothing"] == 0.1
        assert sum(record.time.ledger_s.values()) == pytest.approx(record.time.wall_s, rel=0.01)
        assert record.absent["throughput.samples_per_s"] == "an evaluation does not train"
    assert len(runs(tmp_path / "logs", "evaluate")) == 4
    assert snapshot(run) == before  # what is evaluated stays as it is


def test_the_best_checkpoint_gives_its_own_figures(home: Path, tmp_path: Path) -> None:
    words = [*TINY, "trainer.max_epochs=3", "trainer.limit_train_batches=20", "run.mode=max", "logger=none"]
    chosen = package.run([*words, "run.weights=best"])
    folder = tmp_path / "logs" / "default" / chosen.run.name
    best, last = (
        package.run([f"source={folder / 'checkpoints' / name}", "measure=none"], "evaluate")
        for name in ("best.ckpt", "last.ckpt")
    )
    assert of_the_test(best) == of_the_test(chosen)
    assert of_the_test(last) != of_the_test(best)


def test_the_artefact_alone_is_enough(run: Path, home: Path, tmp_path: Path) -> None:
    """Neither the run's folder nor the project's options are needed: a model of Frugal's own is known anywhere."""
    artefact = tmp_path / "model.safetensors"
    shutil.move(run / "model.safetensors", artefact)
    expected = of_the_test(Record.read(run))
    shutil.rmtree(run)
    shutil.rmtree(home / "configs")
    outcome = frugal("evaluate", str(artefact), "measure=none")
    assert outcome.code == 0, outcome.err
    (evaluated,) = runs(tmp_path / "logs", "evaluate")
    assert of_the_test(Record.read(evaluated)) == expected
    assert "test/accuracy" in outcome.out
    # what an evaluation writes can be evaluated
    again = package.run([f"source={evaluated}", "measure=none"], "evaluate")
    assert of_the_test(again) == expected


def test_other_data_that_fits(run: Path, home: Path) -> None:
    expected = of_the_test(Record.read(run))
    record = package.run([f"source={run}", "data=shuffled", "measure=none"], "evaluate")
    assert record.fingerprint.data_sha256 == "0" * 64
    assert record.quality["test/accuracy"] < 0.2 < expected["test/accuracy"]
    assert record.config["data"]["source"]["_target_"] == "mine.data.Shuffled"
    # normalized as the network was trained, whatever the statistics of the new data
    record = package.run([f"source={run}", "data=digits", "measure=none"], "evaluate")
    assert of_the_test(record) == expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data=digits", "data.source.size=8"], "input_shape=[1, 28, 28], this data has [1, 8, 8]"),
        (["data=letters"], "classes=10, this data has 12"),
    ],
)
def test_data_that_does_not_fit(words: list[str], says: str, run: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    assert says in frugal("evaluate", str(run), *words, "measure=none").error
    assert snapshot(tmp_path) == before


def test_data_of_another_task(run: Path, home: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    line = frugal("evaluate", str(run), "data=digits", "data.task=regression", "measure=none").error
    assert "classification" in line and "regression" in line
    assert snapshot(tmp_path) == before


def test_latency_is_measured_anew(run: Path) -> None:
    record = package.run([f"source={run}", "measure=quick", "measure.batches=[1]"], "evaluate")
    assert {row.batch for row in record.latency} == {1} and record.latency[0].backend == "eager"
    assert 0 < record.latency[0].p50_ms <= record.latency[0].p90_ms <= record.latency[0].p99_ms


def test_a_sweep_of_evaluations(run: Path, tmp_path: Path) -> None:
    outcome = frugal("evaluate", "-m", str(run), "data=digits,shuffled", "measure=none")
    assert outcome.code == 0, outcome.err
    records = [Record.read(folder) for folder in runs(tmp_path / "logs", "evaluate")]
    assert len(records) == 2 and {record.status for record in records} == {"completed"}
    assert "2 runs" in outcome.out
    outcome = frugal("evaluate", "-m", str(run), "data=digits,letters", "measure=none")
    assert outcome.code == 0 and "refused" in outcome.out  # a meaningless cell fails nothing
