"""Weights drawn by lot."""

from __future__ import annotations

import torch
from toy_training import Toy, fit, perceptron

from frugal.pruning.random import RandomPruning


def test_the_lots_are_the_seeds() -> None:
    first, same, other = (RandomPruning(density=0.5, seed=seed).finalize(perceptron(), []) for seed in (1, 1, 2))
    assert torch.equal(first[0].weight, same[0].weight) and not torch.equal(first[0].weight, other[0].weight)  # type: ignore[index]
    assert [int(torch.count_nonzero(first[i].weight)) for i in (0, 3)] == [24, 12]  # type: ignore[index]
    draw = torch.rand(6, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first[0].weight != 0, draw > draw.flatten().sort().values[23])  # type: ignore[index]


def test_before_training() -> None:
    module, pruning = Toy(perceptron()), RandomPruning(density=0.5)
    fit(module, pruning, epochs=1)
    assert pruning.pruned_at == [0]
