"""The order of training: a function of seed and epoch alone, shared out over ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frugal.data.sampler import BatchOrder, permutation
from frugal.errors import SettingsError


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    orders = {(seed, epoch): permutation(50, seed, epoch).tolist() for seed in range(3) for epoch in range(3)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 9
    np.random.seed(1)
    torch.manual_seed(1)
    assert permutation(50, 2, 1).tolist() == orders[2, 1]


def test_the_order_never_changes_between_versions():
    assert permutation(8, 0, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("samples", [96, 103, 7])
def test_an_epoch_has_each_sample_once(samples, drop_last):
    order = BatchOrder(samples, 7, seed=0, drop_last=drop_last)
    batches = order.batches(4)
    assert len(batches) == len(order) == (samples // 7 if drop_last else -(-samples // 7))
    sizes = [len(batch) for batch in batches]
    assert sizes[:-1] == [7] * (len(sizes) - 1) and sizes[-1] == (7 if drop_last else samples % 7 or 7)
    rows = np.concatenate(batches)
    assert rows.tolist() == permutation(samples, 0, 4)[: sum(sizes)].tolist()


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_every_batch_of_the_whole_without_overlap(ranks, drop_last):
    whole = BatchOrder(103, 8, seed=3, drop_last=drop_last).batches(1)
    parts = [BatchOrder(103, 8, 3, drop_last, rank, ranks).batches(1) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(whole)}
    for i, batch in enumerate(whole):
        shared = [part[i] for part in parts]
        assert len({len(share) for share in shared}) == 1  # equal, so that the mean of means is the mean
        left_out = len(batch) % ranks
        assert np.concatenate(shared).tolist() == batch[: len(batch) - left_out].tolist()
        assert left_out == 0 or i == len(whole) - 1


def test_a_rest_smaller_than_the_ranks_is_left_out():
    parts = [BatchOrder(17, 4, 0, rank=rank, ranks=2) for rank in range(2)]
    assert [len(part) for part in parts] == [4, 4]
    assert len(np.concatenate([part.rows(0) for part in parts])) == 16


def test_what_cannot_be_shared_or_leaves_nothing_is_refused():
    with pytest.raises(SettingsError, match=r"data\.batch_size=10"):
        BatchOrder(100, 10, 0, ranks=3)
    with pytest.raises(SettingsError, match=r"data\.batch_size=0"):
        BatchOrder(100, 0, 0)
    with pytest.raises(SettingsError, match=r"data\.batch_size=64"):
        BatchOrder(20, 64, 0, drop_last=True)
