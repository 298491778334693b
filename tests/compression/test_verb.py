"""`frugal compress`: techniques on a finished run, the search for a target, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import frugal as package
from command import frugal, runs
from frugal.record import Record

pytest_plugins = ("users_home",)
SHORT = ["model=simple_net", "trainer.max_epochs=2", "trainer.threads=1"]


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    record = package.run([*SHORT, "measure=quick", "measure.batches=[1]", "measure.mfu=false"])
    return tmp_path / "logs" / "default" / record.run.name


def test_a_technique_acts_on_a_finished_run_without_training(run: Path, tmp_path: Path) -> None:
    outcome = frugal("compress", str(run), "pruning=magnitude", "pruning.density=0.5", "coding=zstd", "measure=none")
    assert outcome.code == 0, outcome.err
    assert "Pruning" in outcome.out and "Coding" in outcome.out  # the run's summary
    assert f"Beside {run}: test/accuracy" in outcome.out and "times smaller" in outcome.out
    (made,) = runs(tmp_path / "logs", "compress")
    record, before = Record.read(made), Record.read(run)
    assert record.run.steps_executed == 0 and (made / "model.frugal").is_file()
    assert record.sparsity.prunable == pytest.approx(0.5, abs=1e-3)
    assert record.config["seed"] == before.config["seed"] and record.config["model"] != before.config["model"]
    assert record.size.file_bytes < before.size.file_bytes  # type: ignore[operator]
    assert "val/accuracy" in record.quality  # of the artefact: choices are made on it


@pytest.mark.onnx
def test_a_coded_onnx_file_is_compressed_from_its_checkpoint(home: Path, tmp_path: Path) -> None:
    record = package.run([*SHORT, "quantization=static_int8", "coding=zstd", "measure=none"])
    coded = tmp_path / "logs" / "default" / record.run.name
    assert (coded / "model.frugal").is_file()
    outcome = frugal("compress", str(coded), "pruning=magnitude", "measure=none")
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_a_target_is_met_and_said(run: Path, tmp_path: Path) -> None:
    dense = Record.read(run).size.file_bytes
    outcome = frugal("compress", str(run), f"target.bytes={dense // 3}", "target.max_drop=0.2")  # type: ignore[operator]
    assert outcome.code == 0, outcome.err
    assert "meets all" in outcome.out and "Try 1: quantization=" in outcome.out and "looked at once" in outcome.out
    artefact = Path(outcome.out.rpartition("Artefact: ")[2].strip())
    assert artefact.stat().st_size <= dense // 3  # type: ignore[operator]
    # the tries have not looked at the test set
    tries = [Record.read(folder) for folder in runs(tmp_path / "logs", "compress")]
    assert tries and not any(name.startswith("test/") for record in tries for name in record.quality)


def test_an_impossible_target_ends_with_what_is_missing(run: Path) -> None:
    outcome = frugal("compress", str(run), "target.bytes=10", "target.max_drop=0", "budget.seconds=1")
    assert outcome.code == 1
    assert "Not met; the nearest:" in outcome.out and "Missed: target.bytes" in outcome.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["quantization=static_int8"], "compress: name a run"),
        (["nowhere"], "no run's folder"),
        (["RUN", "target.byte=3"], "target.byte=3: unknown; did you mean target.bytes?"),
        (["RUN", "budget.seconds=9"], "budget.seconds: is of a search"),
        (["RUN", "target.bytes=9", "pruning=snip"], "pruning=snip: no combination that is searched has it"),
        (["RUN", "target.bytes=none"], "target.bytes=none: needs a number above 0"),
        (["RUN", "pruning=gradul"], "pruning=gradul: unknown; did you mean gradual?"),
        (["RUN", "--flag"], "--flag: compress takes KEY=VALUE only"),
    ],
)
def test_bad_input_is_one_line(words: list[str], says: str, run: Path) -> None:
    assert says in frugal("compress", *[str(run) if word == "RUN" else word for word in words]).error
