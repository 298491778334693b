"""From the meters to the record, end to end: totals by hand, half precision, time that closes, and reasons."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import frugal as package
from command import TINY, frugal, runs
from frugal import artefact, recording
from frugal.absent import explain_absent, figures
from frugal.precision import compute_dtype
from frugal.record import Energy, Latency, Record

pytest_plugins = ("users_home",)

CPU = torch.device("cpu")
SHORT = ("measure=none", "trainer.max_epochs=2", "trainer.threads=1", "logger=none")
BATCH = 64


# ----------------------------------------------------------------------------------------------------------- operations
@pytest.mark.parametrize("accumulate", [1, 4])
def test_total_operations_are_those_of_the_samples(accumulate: int, home: Path) -> None:
    """An epoch of digits ends with a short batch, and under accumulation with a short step."""
    record = package.run([*SHORT, f"trainer.accumulate_grad_batches={accumulate}"])
    per_step, total = record.compute.flops_per_step, record.compute.flops_total
    assert per_step is not None and total is not None and per_step % (BATCH * accumulate) == 0
    trained, rest = divmod(total, per_step // (BATCH * accumulate))
    assert rest == 0 and trained == 2 * training_samples(record)
    assert training_samples(record) % BATCH  # or the test shows nothing
    assert total < per_step * record.run.steps_executed


def training_samples(record: Record) -> int:
    """Samples in the training split, as the DataModule itself has it."""
    from omegaconf import OmegaConf

    from frugal.build import build_data

    data = build_data(OmegaConf.create(record.config))
    data.setup("fit")
    return sum(len(batch[1]) for batch in data.train_dataloader())


def test_total_operations_of_a_run_that_is_trained_on(home: Path, tmp_path: Path) -> None:
    whole = package.run([*SHORT, "trainer.max_epochs=2"])
    once = package.run([*SHORT, "trainer.max_epochs=1"])
    folder = tmp_path / "logs" / "default" / once.run.name
    more = package.run([f"run.resume={folder}", "trainer.max_epochs=2"])
    assert more.run.resumed == 1
    assert more.compute.flops_total == whole.compute.flops_total == 2 * (once.compute.flops_total or 0)


# ------------------------------------------------------------------------------------------------------------ precision
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("32-true", torch.float32),
        ("64-true", torch.float64),
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
        ("16-true", torch.float16),
        ("16-mixed", torch.float16),
    ],
)
def test_the_dtype_of_the_matrix_products(mode: str, dtype: torch.dtype) -> None:
    assert compute_dtype(mode) is dtype


def test_the_peak_of_mixed_precision_on_a_cpu_is_that_of_bf16(home: Path) -> None:
    record = package.run([*TINY, "trainer.limit_train_batches=5", "precision=bf16", "measure.mfu=true"])
    assert record.compute.peak_source is not None and "bf16" in record.compute.peak_source


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_network_in_another_dtype_is_tested_as_it_was_written(precision: str, home: Path, tmp_path: Path) -> None:
    words = ["measure=quick", "measure.batches=[1]", "trainer.max_epochs=1", "trainer.threads=1", "logger=none"]
    trained = package.run([*words, f"precision.mode={precision}"])
    assert trained.latency[0].p50_ms > 0
    folder = tmp_path / "logs" / "default" / trained.run.name
    dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}[precision]
    network, _ = artefact.load(folder / "model.safetensors")
    assert artefact.floating_dtype(network.parameters()) is dtype
    evaluated = package.run([f"source={folder}", "measure=quick", "measure.batches=[1]", "logger=none"], "evaluate")
    tests = {name: value for name, value in trained.quality.items() if name.startswith("test/")}
    assert len(tests) == 3 and evaluated.quality == tests
    assert evaluated.size == trained.size and evaluated.latency[0].p50_ms > 0
    assert trained.quality["test/accuracy"] > 0.3  # it trained


def test_tensors_of_several_dtypes_leave_the_network_alone() -> None:
    one, two = torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)
    assert artefact.floating_dtype([one, one, torch.zeros(1, dtype=torch.int64)]) is torch.float32
    assert artefact.floating_dtype([one, two]) is None
    assert artefact.floating_dtype([]) is None


def test_latency_of_a_network_without_one_dtype_takes_the_data_s_own() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2, dtype=torch.bfloat16)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).bfloat16())

    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"measure": {"latency": "quick", "batches": [1]}})
    data = SimpleNamespace(
        calibration_batches=lambda samples: [torch.zeros(2, 4)], example=lambda samples: torch.zeros(samples, 4)
    )
    record = Record()
    file = Path(__file__)
    recording.measure_network(record, cfg, Mixed(), data, file, CPU)  # type: ignore[arg-type]
    assert len(record.latency) == 1


# ----------------------------------------------------------------------------------------------------------------- time
def accounts_for_its_time(record: Record) -> None:
    assert record.time.wall_s is not None
    ledger = record.time.ledger_s
    assert sum(ledger.values()) == pytest.approx(record.time.wall_s, rel=0.01)
    assert ledger["other"] <= 0.02 * record.time.wall_s, ledger


@pytest.mark.parametrize("measure", [("measure=none", "measure.mfu=true"), ("measure=quick",)])
def test_hardly_any_time_is_left_over(measure: tuple[str, ...], home: Path, tmp_path: Path) -> None:
    record = package.run([*measure, "trainer.threads=1"])
    accounts_for_its_time(record)
    assert record.time.ledger_s["measure"] > 0 and record.time.ledger_s["compress"] > 0
    folder = tmp_path / "logs" / "default" / record.run.name
    evaluated = package.run([f"source={folder}", "measure=none"], "evaluate")
    accounts_for_its_time(evaluated)
    assert evaluated.time.ledger_s["test"] > 0


def test_seconds_of_training_until_the_target(home: Path) -> None:
    record = package.run([*SHORT, "run.target=0.0", "run.target_metric=val/accuracy"])
    time = record.time
    assert time.to_target_s is not None and time.to_target_train_s is not None
    assert 0 < time.to_target_train_s < time.to_target_s - time.ledger_s["startup"] + 0.01


# -------------------------------------------------------------------------------------------------------------- reasons
def unexplained(record: Record) -> set[str]:
    """Figures that are None, or no number, and have no reason."""
    lacking = {
        key
        for key, value in figures(record).items()
        if (value is None or (isinstance(value, float) and not math.isfinite(value))) and not record.absent.get(key)
    }
    if not record.latency and not record.absent.get("latency"):
        lacking.add("latency")
    if record.energy.train_j is None and not record.energy.reason:
        lacking.add("energy.reason")
    return lacking


def test_every_documented_figure_is_looked_at() -> None:
    keys = figures(Record(quality={"test/loss": 1.0}))
    plain = Record().to_dict()
    for section in ("throughput", "compute", "memory", "size", "sparsity"):
        assert {f"{section}.{name}" for name in plain[section]} <= keys.keys()
    single = {"time.to_target_s", "time.to_target_train_s", "energy.train_j", "fingerprint.effective_batch"}
    assert single | {"quality.test/loss"} <= keys.keys()
    assert unexplained(Record())  # the check below can fail


def test_reasons_in_a_completed_run_and_its_evaluation(home: Path, tmp_path: Path) -> None:
    record = package.run(list(TINY))
    assert not unexplained(record)
    assert "the run failed before it was measured" not in record.absent.values()
    assert "it was not measured" not in record.absent.values()
    assert not [key for key in record.absent if figures(record).get(key) is not None]
    folder = tmp_path / "logs" / "default" / record.run.name
    evaluated = package.run([f"source={folder}", "measure=none"], "evaluate")
    assert not unexplained(evaluated)
    assert set(evaluated.absent.values()) == {"an evaluation does not train", "measure.latency=none"}
    assert evaluated.energy.reason == "an evaluation does not train"
    assert Record.read(tmp_path / "logs" / "evaluate" / evaluated.run.name) == evaluated


def test_reasons_in_a_failed_run(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken on purpose"):
        package.run([*TINY, "model=broken"])
    (run,) = runs(tmp_path / "logs")
    record = Record.read(run)
    assert record.status == "failed" and not unexplained(record)
    assert record.absent["size.file_bytes"] == "the run failed before it was measured"


def test_reasons_in_a_refused_run(home: Path, tmp_path: Path) -> None:
    options = home / "configs" / "model"
    text = (options / "dropout_net.yaml").read_text()
    (options / "picky.yaml").write_text(text.replace("[classification]", "[regression]"))
    assert frugal("train", "-m", *TINY, "model=picky,dropout_net").code == 0
    records = {record.status: record for record in map(Record.read, runs(tmp_path / "logs"))}
    assert records.keys() == {"completed", "refused"}
    assert not unexplained(records["refused"]) and not unexplained(records["completed"])
    assert records["refused"].absent["throughput.samples_per_s"] == "the run was refused"


def test_reasons_of_an_earlier_end_are_forgotten() -> None:
    record = Record(status="interrupted")
    explain_absent(record)
    assert record.absent["size.parameters"] == record.energy.reason == "the run was interrupted before it was measured"
    record.status, record.size.parameters = "completed", 3
    record.latency = [Latency("eager", 1, 1, "dense", 0.1, 0.2, 0.3)]
    record.energy = Energy(train_j=2.0)
    record.absent["memory.oom_count"] = "a reason of the meter's own"
    explain_absent(record)
    assert not record.absent.keys() & {"size.parameters", "latency", "energy.train_j"}
    assert record.absent["memory.oom_count"] == "a reason of the meter's own"


def test_a_run_whose_loss_is_no_number_says_so_first(home: Path, tmp_path: Path) -> None:
    record = package.run([*TINY, "trainer.limit_train_batches=6", "optim.lr=1e30"])
    (run,) = runs(tmp_path / "logs")
    assert record.status == "completed" and not math.isfinite(record.quality["train/loss"])
    assert record.diagnosis is not None and record.diagnosis.startswith("The loss became ")
    assert "try a smaller optim.lr or trainer.gradient_clip_val." in record.diagnosis
    written = Record.read(run)
    assert written.quality["train/loss"] is None
    assert written.absent["quality.train/loss"].startswith("it was not finite (")
    assert not unexplained(written)


@pytest.mark.parametrize(
    ("quality", "says"),
    [
        ({"train/loss": 0.1, "val/loss": 0.2}, None),
        ({"train/loss": math.nan}, "The loss became NaN (train/loss)"),
        ({"train/loss": 0.1, "val/loss": math.inf}, "The loss became infinite (val/loss)"),
        ({"test/f1": math.nan}, None),
    ],
)
def test_what_is_said_of_a_loss(quality: dict[str, float], says: str | None) -> None:
    sentence = recording.not_finite(quality)
    assert sentence is None if says is None else sentence is not None and sentence.startswith(says)


def test_reasons_need_no_torch() -> None:
    program = "import sys; import frugal.absent; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


# ------------------------------------------------------------------------------------------------- baseline and status
def test_what_is_compressed_is_measured_in_turn_with_the_dense_network() -> None:
    """From `standard` up; a 2:4 pattern without kernels says why."""
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    network = nn.Linear(8, 4)
    data = SimpleNamespace(
        calibration_batches=lambda samples: [torch.zeros(2, 8)], example=lambda samples: torch.zeros(samples, 8)
    )
    rows = {}
    for level in ("quick", "standard"):
        record = Record(techniques={"pruning": {"status": "masked", "pattern": "2:4"}})
        cfg = OmegaConf.create({"measure": {"latency": level, "batches": [1]}})
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(recording.LEVELS, level, recording.LEVELS[level]._replace(seconds=0.01, backends=("eager",)))
            make_dense = lambda: nn.Linear(8, 4)  # noqa: E731
            recording.measure_network(record, cfg, network, data, Path(__file__), CPU, make_dense)  # type: ignore[arg-type]
        rows[level] = {row.backend: row.status for row in record.latency}
        if not torch.cuda.is_available():
            assert record.absent["latency.2:4 kernels"] == "no CUDA device"
    assert rows == {"quick": {"eager": "masked"}, "standard": {"eager": "dense", "eager, masked": "masked"}}


def test_a_file_of_whole_numbers_is_simulated_whoever_evaluates_it(home: Path, tmp_path: Path) -> None:
    record = package.run([*SHORT, "quantization=weight_int8"])
    folder = tmp_path / "logs" / "default" / record.run.name
    again = package.run([f"source={folder}", "measure=quick", "measure.batches=[1]"], "evaluate")
    assert {row.status for row in again.latency} == {"simulated"}
