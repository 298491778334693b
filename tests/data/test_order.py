"""Orders that are computed and not kept: permutations, draws, buckets; each a function of seed, epoch and position."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from frugal.data.order import ROUNDS, BucketOrder, RandomOffsets, Shuffled, keys, permuted
from frugal.errors import SettingsError


def flat(batches) -> list[int]:
    return np.concatenate(list(batches)).tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 9, 10, 97, 100, 1001, 4097])
def test_the_feistel_network_is_a_permutation_of_any_range(n):
    found = [tuple(permuted(np.arange(n), n, keys(seed, 0, ROUNDS))) for seed in range(4)]
    assert all(sorted(order) == list(range(n)) for order in found)
    assert n < 9 or len(set(found)) == 4
    singly = [int(permuted(np.array([i]), n, keys(0, 0, ROUNDS))[0]) for i in range(min(n, 50))]
    assert singly == list(found[0][:50])  # a position's place does not hang on what is asked with it


def test_permutations_are_spread_evenly():
    # where position 0 goes, and what stands next to each other: chi-squared of 3,000 draws over 10 places, 9 degrees
    first = np.array([permuted(np.arange(10), 10, keys(seed, 3, ROUNDS)) for seed in range(3000)])
    for column in (first[:, 0], (first[:, 1] - first[:, 0]) % 10):
        places = np.bincount(column, minlength=10)
        places = places[places > 0] if places[0] == 0 else places
        expected = 3000 / len(places)
        assert ((places - expected) ** 2 / expected).sum() < 27.9  # p = 0.001


def test_a_huge_range_is_permuted_without_being_written_down():
    n = 60_000_000
    order = Shuffled(n, 64, seed=1)
    tracemalloc.start()
    seen = list(itertools.islice(order.batches(2, start=len(order) - 5), 5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(seen) == 5 and len(np.unique(np.concatenate(seen))) == 320
    assert np.concatenate(seen).min() >= 0 and np.concatenate(seen).max() < n
    assert peak < 4e6


def test_the_orders_never_change_between_versions():
    assert permuted(np.arange(8), 8, keys(0, 0, ROUNDS)).tolist() == GOLDEN["permuted"]
    assert flat(Shuffled(10, 5, seed=3, stride=4, slack=3).batches(1)) == GOLDEN["shuffled"]
    assert flat(RandomOffsets(1000, 2, 4, seed=3).batches(1)) == GOLDEN["random"]
    assert flat(BucketOrder(np.array([5, 1, 4, 2, 3, 6, 7]), 2, seed=3).batches(1)) == GOLDEN["bucket"]


GOLDEN = {
    "permuted": [1, 3, 0, 6, 7, 4, 5, 2],
    "shuffled": [30, 2, 18, 14, 34, 10, 38, 22, 26, 6],
    "random": [703, 905, 764, 507, 498, 648, 386, 277],
    "bucket": [1, 3, 0, 6, 4, 2, 5],
}


def test_each_block_comes_once_an_epoch_and_each_epoch_has_its_own_begin():
    order = Shuffled(103, 10, seed=5, stride=16, slack=15)
    begins = set()
    for epoch in range(20):
        offsets = flat(order.batches(epoch))
        assert len(order) == 10 and len(offsets) == 100 == len(set(offsets))
        (begin,) = {offset % 16 for offset in offsets}
        begins.add(begin)
        assert {(offset - begin) // 16 for offset in offsets} <= set(range(103))
    assert len(begins) > 8
    assert flat(order.batches(0)) != flat(order.batches(1))
    assert flat(order.batches(0)) != flat(Shuffled(103, 10, seed=6, stride=16, slack=15).batches(0))


def test_draws_are_uniform_and_come_again():
    order = RandomOffsets(50, 100, 100, seed=0)
    draws = np.concatenate(list(order.batches(0)))
    counts = np.bincount(draws, minlength=50)
    assert len(draws) == 10_000 and draws.min() == 0 and draws.max() == 49
    assert ((counts - 200) ** 2 / 200).sum() < 85.4  # chi-squared, 49 degrees, p = 0.001
    assert len(set(draws[:40].tolist())) < 40  # with replacement
    assert flat(order.batches(0)) == draws.tolist() != flat(order.batches(1))


LENGTHS = np.random.Generator(np.random.PCG64(0)).integers(1, 100, 1003)


@pytest.mark.parametrize(
    "make",
    [
        lambda batch, rank, ranks: Shuffled(1003, batch, 7, rank, ranks, stride=3, slack=2),
        lambda batch, rank, ranks: RandomOffsets(5000, 83, batch, 7, rank, ranks),
        lambda batch, rank, ranks: BucketOrder(LENGTHS, batch, 7, rank, ranks, pool=5),
    ],
    ids=["shuffled", "random", "bucket"],
)
class TestEveryOrder:
    def test_a_start_within_an_epoch_goes_on_there(self, make):
        order = make(12, 0, 1)
        whole = [rows.tolist() for rows in order.batches(4)]
        assert len(whole) == len(order)
        for start in (0, 1, 40, len(order) - 1, len(order)):
            assert [rows.tolist() for rows in order.batches(4, start)] == whole[start:]

    def test_ranks_share_every_batch_without_overlap(self, make):
        whole = list(make(12, 0, 1).batches(2))
        for ranks in (2, 3):
            parts = [list(make(12, rank, ranks).batches(2)) for rank in range(ranks)]
            assert {len(part) for part in parts} == {len(whole)}
            for i, batch in enumerate(whole):
                shares = [part[i] for part in parts]
                assert np.concatenate(shares).tolist() == batch.tolist()
                places = [make(12, rank, ranks).part(i) for rank in range(ranks)]
                assert [place.end - place.begin for place in places] == [len(share) for share in shares]
                assert sum(
                    place.weight * np.mean(share) for place, share in zip(places, shares, strict=True)
                ) / ranks == (pytest.approx(np.mean(batch)))

    def test_what_does_not_divide_is_refused(self, make):
        with pytest.raises(SettingsError, match=r"data\.batch_size=10"):
            make(10, 0, 3)


def test_no_block_for_a_batch_is_refused():
    with pytest.raises(SettingsError, match="batch_size=12 leaves no batch: training has 11 blocks"):
        Shuffled(11, 12, 0)
    with pytest.raises(SettingsError, match="batch_size=4"):
        BucketOrder(np.ones(0, int), 4, 0)


def test_buckets_hold_texts_of_like_length():
    order = BucketOrder(LENGTHS, 10, seed=1, pool=20)
    batches = order.batches(0)
    assert [len(rows) for rows in batches] == [10] * 100 + [3]
    assert sorted(flat(batches)) == list(range(1003))
    spread = np.mean([np.ptp(LENGTHS[rows]) for rows in batches[:100]])
    assert spread < 10  # of 20 batches in order, each spans a twentieth of 99; unsorted it would be 80
    means = [LENGTHS[rows].mean() for rows in batches[:100]]
    assert np.abs(np.diff(means)).mean() > 20  # not from short to long
    assert flat(order.batches(0)) == flat(batches) != flat(order.batches(1))
