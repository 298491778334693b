"""`logger=many`: one sweep of two jobs; all that four loggers hold of each is the same, under the same names."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offline_wandb import items, offline_records

from command import TINY, frugal, inside
from command import runs as run_folders
from frugal.loggers.base import flatten_record
from frugal.record import Record

pytestmark = [pytest.mark.wandb, pytest.mark.tensorboard, pytest.mark.mlflow]
Metrics = dict[tuple[str, int], float]  # by name and step


def of_csv(folder: Path) -> Metrics:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(key, int(row["step"])): float(row[key]) for row in rows for key in row if key != "step" and row[key]}


def of_tensorboard(folder: Path) -> Metrics:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {(tag, event.step): event.value for tag in found.Tags()["scalars"] for event in found.Scalars(tag)}


def of_mlflow(client: Any, run: Any) -> Metrics:
    id = run.info.run_id
    points = [point for name in run.data.metrics for point in client.get_metric_history(id, name)]
    assert len({(point.key, point.step) for point in points}) == len(points)
    return {(point.key, point.step): point.value for point in points}


def of_wandb(records: list[Any]) -> tuple[Metrics, dict[str, Any]]:
    """Its history and its summary."""
    metrics: Metrics = {}
    for row in [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]:
        step = row.pop("trainer/global_step")
        metrics |= {(key, step): value for key, value in row.items() if not key.startswith("_")}
    summary: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= items(record.summary.update)
    return metrics, summary


def single(metrics: Metrics) -> Metrics:
    return {key: float(np.float32(value)) for key, value in metrics.items()}


def test_they_hold_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    logs = tmp_path / "logs"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("frugal.report.verb.Report._plot", lambda self, path: None)
    with inside(tmp_path, logs, monkeypatch):
        words = ["trainer.max_epochs=2", "trainer.log_every_n_steps=1", "optim.lr=0.01,0.02"]
        done = frugal("train", "-m", "logger=many", *TINY[:1], *TINY[2:], *words)
    assert done.code == 0, done.err
    client = MlflowClient((logs / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("default")
    theirs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    folders = run_folders(logs)
    assert len(folders) == len(theirs) == 2
    (sweep,) = (logs / "default" / "sweeps").iterdir()
    for folder in folders:
        record = Record.read(folder).to_dict()
        assert record["status"] == "completed"
        metrics = of_csv(folder)
        assert {step for name, step in metrics if name == "train/loss_step"} == {0, 1, 2, 3}
        assert {step for name, step in metrics if name == "val/accuracy"} == {1, 3}
        figures = flatten_record(record)
        numbers = {key: value for key, value in figures.items() if type(value) in (int, float)}
        assert len(numbers) > 30 and "test/accuracy" in numbers
        whole = metrics | {(key, 4): float(value) for key, value in numbers.items()}  # after the last of four steps

        assert of_tensorboard(folder) == single(whole)

        run = theirs[folder.name]
        assert run.info.status == "FINISHED" and run.data.tags["group"] == f"default/{sweep.name}"
        assert of_mlflow(client, run) == whole
        assert {key for key in figures if key not in numbers} <= run.data.tags.keys()
        assert len(run.outputs.model_outputs) == 1

        records = offline_records(folder)
        history, summary = of_wandb(records)
        assert history == metrics
        assert {key: summary[key] for key in figures} == figures
        (begun,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        assert begun.run_group == f"default/{sweep.name}"
        assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [0]
    assert theirs[folders[0].name].data.params["optim.lr"] != theirs[folders[1].name].data.params["optim.lr"]
