"""A record's figures under the names that loggers show."""

from __future__ import annotations

from frugal.loggers.base import flatten_record
from frugal.record import Latency, Record


def test_figures_have_slashed_names_and_absent_ones_none() -> None:
    record = Record(status="completed", quality={"test/accuracy": 0.98}, config={"optim": {"lr": 0.1}})
    record.throughput.samples_per_s = 57_000.0
    record.time.ledger_s = {"train_step": 3.5}
    record.run.resumed_at_step = [40]
    record.techniques = {"pruning": {"option": "gradual", "sparsity": 0.9}}
    record.latency = [Latency("onnx", 8, 1, "converted", 0.1, 0.2, 0.3)]
    record.absent = {"energy.train_j": "no counter"}
    record.diagnosis = "38 % of the time went to waiting for data"
    flat = flatten_record(record.to_dict())
    assert flat["test/accuracy"] == 0.98
    assert flat["throughput/samples_per_s"] == 57_000.0
    assert flat["time/ledger_s/train_step"] == 3.5
    assert flat["latency/onnx/batch_8/p50_ms"] == 0.1
    assert flat["latency/onnx/batch_8/status"] == "converted"
    assert flat["techniques/pruning/sparsity"] == 0.9
    assert flat["run/resumed_at_step"] == [40]
    assert flat["status"] == "completed"
    assert "energy/train_j" not in flat and "throughput/tokens_per_s" not in flat
    assert not [key for key in flat if key.startswith(("config", "absent", "schema", "diagnosis"))]
    assert None not in flat.values()
