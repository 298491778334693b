"""Zhu and Gupta's schedule by hand, step by step, and over a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from toy_training import Toy, Until, fit, perceptron

from frugal.callbacks.ema import EMA
from frugal.errors import SettingsError
from frugal.pruning.gradual import GradualPruning
from frugal.pruning.masks import weight_of


class Counts(pl.Callback):
    """How many weights of the first layer (48) act after each step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.seen.append(int(torch.count_nonzero(weight_of(pl_module.network.get_submodule("0")))))


def test_the_cubic_by_hand() -> None:
    """t_0 = 2, dt = 3, n = 4, s_f = 0.75: sparsity 0.75 (1 - (1 - k/4)^3), of 48 weights."""
    counts = Counts()
    pruning = GradualPruning(density=0.25, begin=2, end=15, every=3)
    fit(Toy(perceptron()), pruning, counts)
    assert pruning.pruned_at == [2, 5, 8, 11, 14]
    sparsity = [0.0, 0.75 * (1 - 27 / 64), 0.75 * (1 - 1 / 8), 0.75 * (1 - 1 / 64), 0.75]
    kept = [round(48 * (1 - s)) for s in sparsity]
    assert kept == [48, 27, 16, 13, 12]
    assert counts.seen == [48] * 4 + [27] * 3 + [16] * 3 + [13] * 3 + [12] * 3


def test_from_a_density_below_one() -> None:
    pruning = GradualPruning(density=0.1, initial=0.6)
    pruning._intervals = 2
    assert [pruning.density_at(k, 0.1) for k in range(3)] == pytest.approx([0.6, 0.1 + 0.5 / 8, 0.1])
    assert pruning.density_at(0, 0.8) == 0.8  # a layer that keeps more than that from the beginning


@pytest.mark.parametrize("averaged", [False, True])
def test_a_kill_between_two_prunings(averaged: bool, tmp_path: Path) -> None:
    """With an average of the weights too, whose masks follow those of the weights at each update."""

    def train(seed: int, *further: pl.Callback, **options: Any) -> tuple[Toy, GradualPruning]:
        module, pruning = Toy(perceptron(seed)), GradualPruning(density=0.2, begin=1, end=20, every=2)
        average = [EMA(decay=0.9, every=3)] if averaged else []
        fit(module, pruning, *average, *further, epochs=3, **options)
        return module, pruning

    whole, first = train(0)
    with pytest.raises(BaseException):  # noqa: B017
        train(0, Until(8, tmp_path / "x.ckpt"))
    resumed, again = train(5, resume=tmp_path / "x.ckpt")
    assert again.pruned_at == list(range(1, 20, 2)) and len(resumed.rates) == 16
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    networks = [pruning.finalize(module.network, []) for pruning, module in ((first, whole), (again, resumed))]
    assert [int(torch.count_nonzero(network[0].weight)) for network in networks] == [10, 10]  # type: ignore[index]


def test_no_room() -> None:
    with pytest.raises(SettingsError, match=r"^pruning\.end=50%: from step 4 to 4 there is no room for"):
        fit(Toy(perceptron()), GradualPruning(begin="50%", end="50%"), epochs=1)
    with pytest.raises(SettingsError, match=r"^pruning\.initial=0"):
        GradualPruning(initial=0)
