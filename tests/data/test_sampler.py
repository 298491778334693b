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
        assert np.concatenate(shared).tolist() == batch.tolist()
        places = [BatchOrder(103, 8, 3, drop_last, rank, ranks).part(i) for rank in range(ranks)]
        assert [place.end - place.begin for place in places] == [len(share) for share in shared]
        # the mean of the weighted means is the mean over the batch
        means = [place.weight * share.mean() for place, share in zip(places, shared, strict=True)]
        assert np.mean(means) == pytest.approx(batch.mean())
        assert all(place.counts for place in places) and {place.samples for place in places} == {len(batch)}
        assert i == len(whole) - 1 or {place.weight for place in places} == {1.0}


def test_a_rest_smaller_than_the_ranks_is_seen_by_each_and_counts_once():
    orders = [BatchOrder(17, 4, 0, rank=rank, ranks=2) for rank in range(2)]
    assert [len(order) for order in orders] == [5, 5]
    last = [order.batches(0)[-1].tolist() for order in orders]
    assert last[0] == last[1] == BatchOrder(17, 4, 0).batches(0)[-1].tolist()
    assert [(part.weight, part.counts) for part in (order.part(4) for order in orders)] == [(1.0, True), (1.0, False)]


def test_a_batch_of_all_samples_needs_no_multiple():
    parts = [BatchOrder(17, 17, 0, rank=rank, ranks=3).batches(0)[0] for rank in range(3)]
    assert sorted(len(part) for part in parts) == [5, 6, 6]


def test_what_cannot_be_shared_or_leaves_nothing_is_refused():
    with pytest.raises(SettingsError, match=r"data\.batch_size=10"):
        BatchOrder(100, 10, 0, ranks=3)
    with pytest.raises(SettingsError, match=r"data\.batch_size=0"):
        BatchOrder(100, 0, 0)
    with pytest.raises(SettingsError, match=r"data\.batch_size=64"):
        BatchOrder(20, 64, 0, drop_last=True)
