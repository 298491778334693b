"""Epoch means: exact sums, nothing lost to half precision, ranks summed, state carried through a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from frugal.models.epoch_means import EpochMeans

CPU = torch.device("cpu")


def alone(vector: Tensor) -> Tensor:
    return vector


def test_batches_weigh_by_their_samples() -> None:
    means = EpochMeans("loss", "accuracy")
    means.add(3, loss=torch.tensor(6.0), accuracy=torch.tensor(3))
    means.add(1, loss=torch.tensor(1.0), accuracy=torch.tensor(0))
    found = means.means(alone, CPU)
    assert {name: value.item() for name, value in found.items()} == {"loss": 7 / 4, "accuracy": 3 / 4}
    means.reset()
    assert means.means(alone, CPU) == {}


def test_a_sum_of_half_precision_losses_goes_on_growing() -> None:
    means = EpochMeans("loss")
    for _ in range(1000):
        means.add(1, loss=torch.tensor(1.0, dtype=torch.bfloat16))  # a sum in bfloat16 stops at 256
    assert means.means(alone, CPU)["loss"].item() == 1.0


def test_ranks_are_summed_not_averaged() -> None:
    here, there = EpochMeans("loss"), EpochMeans("loss")
    here.add(3, loss=torch.tensor(9.0))
    there.add(1, loss=torch.tensor(1.0))

    def both(vector: Tensor) -> Tensor:
        return vector + torch.tensor(list(there.state(alone, CPU).values()), dtype=vector.dtype)

    assert here.means(both, CPU)["loss"].item() == 10 / 4  # the mean of the ranks' means would be 2
    empty = EpochMeans("loss")
    assert empty.means(both, CPU)["loss"].item() == 1.0  # a rank without a sample takes part


def test_state_goes_on_where_it_was() -> None:
    means = EpochMeans("loss", "accuracy")
    means.add(7, loss=torch.tensor(0.1), accuracy=torch.tensor(5))
    resumed = EpochMeans("loss", "accuracy")
    resumed.load(means.state(alone, CPU), CPU)
    for each in (means, resumed):
        each.add(2, loss=torch.tensor(0.7), accuracy=torch.tensor(1))
    assert resumed.state(alone, CPU) == means.state(alone, CPU)
    assert resumed.count == 9
