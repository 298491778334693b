"""`Regressor`: losses and metrics by hand, in the targets' own units; descent to the normal equations' solution."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from test_classifier import Batches, fit, trainer
from torch import Tensor, nn

from frugal.errors import SettingsError
from frugal.models.linear import Linear
from frugal.models.mlp import MLP
from frugal.models.regressor import Regressor
from frugal.optim.optimizers import SGD


def constant(value: float) -> nn.Module:
    network = Linear((1,), 1)
    with torch.no_grad():
        network.layer.bias.fill_(value)
    return network


def evaluated(module: Regressor, *batches: tuple[Tensor, Tensor]) -> dict[str, float]:
    (found,) = trainer().test(module, Batches(list(batches)), verbose=False)
    return {name: float(value) for name, value in found.items()}


def test_metrics_are_in_the_targets_own_units() -> None:
    """Targets 10, 20 and 60 of mean 20 and deviation 10; the prediction is always 1 deviation above: 30."""
    module = Regressor(constant(1.0), target_mean=20.0, target_std=10.0)
    # in two batches of unlike size: means are over samples, not over batches
    found = evaluated(
        module,
        (torch.zeros(2, 1), torch.tensor([10.0, 20.0])),
        (torch.zeros(1, 1), torch.tensor([60.0])),
    )
    squares = [20**2, 10**2, 30**2]
    assert found["test/mse"] == pytest.approx(sum(squares) / 3)
    assert found["test/rmse"] == pytest.approx(math.sqrt(sum(squares) / 3))
    assert found["test/mae"] == pytest.approx(20)
    assert found["test/loss"] == pytest.approx(sum(squares) / 3 / 100)
    variance = (20**2 + 10**2 + 30**2) / 3  # of the targets around their mean, 30: as large as the error
    assert found["test/r2"] == pytest.approx(1 - sum(squares) / 3 / variance, abs=1e-6)
    assert set(found) == {f"test/{name}" for name in ("loss", "mae", "mse", "rmse", "r2")}
    assert set(found) < set(module.logged_metrics())


def test_a_perfect_prediction_explains_everything_and_equal_targets_leave_nothing_to_explain() -> None:
    network = Linear((1,), 1)
    with torch.no_grad():
        network.layer.weight.fill_(1.0)
    y = torch.tensor([1.0, 2.0, 5.0])
    assert evaluated(Regressor(network), (y[:, None], y))["test/r2"] == pytest.approx(1.0)
    for constant_target in (1.0, 0.1, 1e6):
        equal = torch.full((7,), constant_target)
        assert "test/r2" not in evaluated(Regressor(network), (equal[:, None], equal))


def test_targets_far_from_the_training_mean_have_their_own_variance() -> None:
    """Targets c - 1 and c + 1, always 0.5 too high: 1 - 0.25 / 1, wherever c lies."""
    network = Linear((1,), 1)
    with torch.no_grad():
        network.layer.weight.fill_(1.0)
        network.layer.bias.fill_(0.5)
    for centre in (0.0, 1e4, 1e6):
        y = torch.tensor([centre - 1, centre + 1] * 5)
        assert evaluated(Regressor(network), (y[:, None], y))["test/r2"] == pytest.approx(0.75, abs=1e-3)


def test_a_step_by_hand() -> None:
    """One sample x = 2, y = 30 (normalized 1), weights 0: the gradient of (0 - 1)^2 is -2 for the bias, -4 for w."""
    module = Regressor(Linear((1,), 1), functools.partial(SGD, lr=0.1), target_mean=20.0, target_std=10.0)
    used = fit(module, [(torch.tensor([[2.0]]), torch.tensor([30.0]))])
    assert module.network.layer.weight.item() == pytest.approx(0.4)
    assert module.network.layer.bias.item() == pytest.approx(0.2)
    assert used.callback_metrics["train/mse"].item() == pytest.approx(100)
    assert used.callback_metrics["train/loss"].item() == pytest.approx(1)
    assert "train/r2" not in used.callback_metrics


def test_descent_reaches_the_normal_equations() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 4)) @ np.diag([1.0, 0.7, 1.3, 1.0]) + generator.normal(size=(200, 1)) * 0.5
    y = x @ [3.0, -1.0, 0.5, 0.0] + 7 + generator.normal(size=200) * 0.1
    design = np.c_[x, np.ones(200)]
    expected = np.linalg.solve(design.T @ design, design.T @ y)
    module = Regressor(Linear((4,), 1), functools.partial(SGD, lr=0.1, momentum=0.9))
    fit(module, [(torch.from_numpy(x).float(), torch.from_numpy(y).float())], max_epochs=300)
    found = [*module.network.layer.weight[0].tolist(), module.network.layer.bias.item()]
    assert found == pytest.approx(expected.tolist(), abs=1e-3)


def test_targets_of_a_large_mean_keep_their_digits() -> None:
    """Years around 2,000,000 with a deviation of 1: float32 has a resolution of an eighth there."""
    y = torch.tensor([2_000_000.0, 2_000_001.0])
    assert evaluated(Regressor(constant(0.0), target_mean=2_000_000.25, target_std=0.5), (torch.zeros(2, 1), y))[
        "test/mae"
    ] == pytest.approx(0.5)


def test_a_network_of_two_outputs_is_refused() -> None:
    with pytest.raises(SettingsError, match="wants one each"):
        evaluated(Regressor(MLP((3,), 2)), (torch.zeros(4, 3), torch.zeros(4)))


def test_a_deviation_of_zero_is_refused() -> None:
    with pytest.raises(SettingsError, match="target_std=0"):
        Regressor(MLP((3,), 1), target_std=0.0)
