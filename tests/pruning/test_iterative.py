"""Rounds of pruning: densities by hand, and the learning rate after the first."""

from __future__ import annotations

import math

import pytest
import torch
from test_gradual import Counts
from toy_training import Toy, fit, perceptron

from frugal.errors import SettingsError
from frugal.optim.schedules import Cosine
from frugal.pruning.iterative import IterativePruning


def scheduled(p):  # type: ignore[no-untyped-def]
    optimizer = torch.optim.SGD(p, lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_rounds_by_hand() -> None:
    """density^(1/3), ^(2/3) and density of 48 weights, at shares of 16 steps."""
    counts, pruning = Counts(), IterativePruning(density=0.125, at=["25%", "50%", "75%"], lr_factor=0.1)
    module = Toy(perceptron())
    fit(module, pruning, counts)
    assert pruning.pruned_at == [4, 8, 12]
    assert counts.seen == [48] * 3 + [24] * 4 + [12] * 4 + [6] * 5
    assert module.rates == pytest.approx([0.1] * 4 + [0.01] * 12)


def test_a_schedule_goes_on_from_there() -> None:
    module = Toy(perceptron(), scheduled)
    fit(module, IterativePruning(at=[3, 5], lr_factor=0.5), epochs=1)
    assert module.rates == pytest.approx([1, 1 / 2, 1 / 3, 0.5 / 4, 0.5 / 5, 0.5 / 6, 0.5 / 7, 0.5 / 8])


def test_each_round_has_a_schedule_of_its_own() -> None:
    """A cosine over 8 steps, then two over 4 with a fifth of the rate (Han et al. 2015 retrain with less)."""

    def restarted(p):  # type: ignore[no-untyped-def]
        optimizer = torch.optim.SGD(p, lr=1.0)
        schedule = Cosine(optimizer, 16, warmup=0.0, restarts=[0.5, 0.75])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = Toy(perceptron(), restarted)
    fit(module, IterativePruning(at=["50%", "75%"], lr_factor=0.2))
    dense = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert module.rates == pytest.approx(dense + 2 * [0.2 * rate for rate in dense[::2]])


def test_bad_settings() -> None:
    with pytest.raises(SettingsError, match=r"^pruning\.at=\[\]: name when"):
        IterativePruning(at=[])
    with pytest.raises(SettingsError, match=r"^pruning\.at\.1=never: "):
        IterativePruning(at=[1, "never"])
    with pytest.raises(SettingsError, match=r"^pruning\.lr_factor=0: "):
        IterativePruning(lr_factor=0)
    with pytest.raises(SettingsError, match=r"^pruning\.at: steps 4, 2 are not one after the other$"):
        fit(Toy(perceptron()), IterativePruning(at=[4, 2]), epochs=1)
