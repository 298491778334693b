"""A record's figures and a run's settings under the names that loggers show."""

from __future__ import annotations

import torch

from frugal.loggers.base import Rows, flatten_record, flatten_settings
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


def test_settings_have_dotted_names_and_choices_their_groups() -> None:
    config = {
        "choices": {"schedule": "none", "model": "gpt", "logger": "many"},
        "model": {"_target_": "x", "network": {"width": 64, "hidden": [1, 2]}, "init_from": None},
        "schedule": None,
        "logger": {"csv": {"_target_": "x"}},
        "paths": {"log_dir": "logs"},
        "seed": 0,
    }
    assert flatten_settings(config) == {
        "model": "gpt",
        "model.network.width": 64,
        "model.network.hidden": [1, 2],
        "model.init_from": None,
        "schedule": "none",
        "seed": 0,
    }


def test_what_comes_twice_for_a_step_is_a_row_of_it_once() -> None:
    rows = Rows()
    assert rows.add({"epoch": 0, "loss": torch.tensor(0.5)}, step=4) == (4, {"epoch": 0.0, "loss": 0.5})
    assert rows.add({"epoch": 0, "val/loss": 2.0}, step=4) == (4, {"val/loss": 2.0})
    assert rows.add({"epoch": 0, "loss": 0.5}, step=9) == (9, {"epoch": 0.0, "loss": 0.5})
    assert rows.add({"test/loss": 1.0}, step=None) == (9, {"test/loss": 1.0})
    assert rows.add({"test/loss": 1.0}, step=0) == (0, {"test/loss": 1.0}) and rows.last == 9
