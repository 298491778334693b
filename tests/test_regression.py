"""Regression through the command: descent reaches the closed form, the artefact predicts in the targets' own units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import frugal
from frugal import artefact
from frugal.data.datamodule import ArrayDataModule
from frugal.data.diabetes import Diabetes
from frugal.data.preprocess import Preprocess


def splits(seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The normalized features and the targets that `data=diabetes` trains and tests on."""
    preprocess = Preprocess(per="feature", broken="drop", duplicates=True, target=True)
    data = ArrayDataModule(Diabetes(), preprocess, batch_size=1000, seed=seed)
    data.setup()
    return {name: (preprocess(x, training=False).double().numpy(), y.numpy()) for name, (x, y) in data.splits.items()}


def test_gradient_descent_ends_at_the_normal_equations(tmp_path: Path) -> None:
    record = frugal.run(["data=diabetes", "model=linear", "measure=none", "trainer.threads=1"])
    network, description = artefact.load(tmp_path / "logs" / "default" / record.run.name / "model.safetensors")
    found = splits()
    x, y = found["train"]
    mean, std = y.mean(dtype=np.float64), y.std(dtype=np.float64)
    design = np.c_[x, np.ones(len(x))]
    closed = np.linalg.solve(design.T @ design, design.T @ ((y - mean) / std))
    weights = [*network.layer.weight[0].tolist(), network.layer.bias.item()]
    assert weights == pytest.approx(closed.tolist(), abs=1e-3)
    assert np.abs(closed).max() > 0.1  # a solution of zeros would be near anything

    x, y = found["test"]
    predicted = np.c_[x, np.ones(len(x))] @ closed * std + mean
    assert record.quality["test/mse"] == pytest.approx(np.mean((predicted - y) ** 2), rel=1e-4)
    assert record.quality["test/mae"] == pytest.approx(np.mean(np.abs(predicted - y)), rel=1e-4)
    assert record.quality["test/r2"] == pytest.approx(1 - np.mean((predicted - y) ** 2) / y.var(), rel=1e-4)
    assert description.state["preprocess"]["target_mean"] == pytest.approx(mean)
    assert description.state["feature_names"][2] == "bmi"


def test_a_batch_larger_than_the_split_is_the_split(tmp_path: Path) -> None:
    words = ["data=diabetes", "measure=none", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=1"]
    record = frugal.run(words)
    rows = record.data["samples"]["train"]
    assert record.fingerprint.effective_batch == rows and record.run.steps_executed == 3
    assert record.compute.flops_total == 3 * record.compute.flops_per_step  # type: ignore[operator]
    assert set(record.data["cleaning"]["train"]) == {"broken", "duplicates"}


def test_an_evaluation_gives_the_same_figures(tmp_path: Path) -> None:
    record = frugal.run(["data=diabetes", "model=mlp", "measure=none", "trainer.max_epochs=20"])
    folder = tmp_path / "logs" / "default" / record.run.name
    again = frugal.run([f"source={folder}", "measure=none"], verb="evaluate")
    tested = {key: value for key, value in record.quality.items() if key.startswith("test/")}
    assert again.quality == pytest.approx(tested) and "test/r2" in tested
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["frugal"]["dims"]["outputs"] == 1
