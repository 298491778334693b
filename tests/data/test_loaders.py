"""Batches in memory: their order, going on in mid-epoch, worker processes, evaluation over ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frugal.data.loaders import EvalLoader, Rows, TrainLoader
from frugal.data.sampler import BatchOrder

N, BATCH = 50, 8
X, Y = torch.arange(N * 3, dtype=torch.uint8).view(N, 3), torch.arange(N)
ORDER = BatchOrder(N, BATCH, seed=1)


def rows_of(loader) -> list[list[int]]:
    batches = list(loader)
    for x, y in batches:
        assert torch.equal(x, X[y]) and x.dtype == torch.uint8
    return [y.tolist() for _, y in batches]


def expected(epoch: int) -> list[list[int]]:
    return [rows.tolist() for rows in ORDER.batches(epoch)]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_pass_is_the_next_epoch(workers):
    loader = TrainLoader(Rows(X, Y), ORDER, workers=workers)
    assert len(loader) == 7
    for epoch in range(3):
        assert rows_of(loader) == expected(epoch)
    loader.close()
    assert rows_of(loader) == expected(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_that_is_broken_off_is_over(workers):
    loader = TrainLoader(Rows(X, Y), ORDER, workers=workers)
    assert next(iter(loader))[1].tolist() == expected(0)[0]
    assert rows_of(loader) == expected(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_state_goes_on_in_mid_epoch(workers):
    loader = TrainLoader(Rows(X, Y), ORDER, workers=workers)
    rows_of(loader)
    passing = iter(loader)
    for _ in range(3):
        next(passing)
    state = loader.state_dict()
    assert state == {"epoch": 1, "position": 3}
    resumed = TrainLoader(Rows(X, Y), ORDER, workers=workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert rows_of(resumed) == expected(1)[3:] == [y.tolist() for _, y in passing]
    assert rows_of(resumed) == expected(2)


def test_state_at_the_end_of_an_epoch_goes_on_with_the_next():
    loader = TrainLoader(Rows(X, Y), ORDER)
    rows_of(loader)
    resumed = TrainLoader(Rows(X, Y), ORDER)
    resumed.load_state_dict(loader.state_dict())
    assert rows_of(resumed) == expected(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_progress_decides_where_it_is_given(workers):
    done = 9
    loader = TrainLoader(Rows(X, Y), ORDER, done=lambda: done, workers=workers)
    assert rows_of(loader) == expected(1)[2:]
    assert rows_of(loader) == expected(1)[2:]  # nothing was trained in between
    done = 14
    assert loader.state_dict() == {"epoch": 2, "position": 0}
    assert rows_of(loader) == expected(2)


@pytest.mark.parametrize("workers", [0, 2])
def test_shorter_epochs_count_by_their_own_length(workers):
    done = 0
    loader = TrainLoader(Rows(X, Y), ORDER, epoch_batches=3, done=lambda: done, workers=workers)
    assert len(loader) == 7  # Lightning takes a fraction of this
    assert rows_of(loader) == expected(0)[:3]
    done = 7
    assert rows_of(loader) == expected(2)[1:3]


def test_without_reshuffling_each_epoch_is_the_first():
    loader = TrainLoader(Rows(X, Y), ORDER, epoch_batches=2, reshuffle=False)
    assert rows_of(loader) == rows_of(loader) == expected(0)[:2]


def test_the_global_generators_are_not_touched():
    for workers in (0, 2):
        torch.manual_seed(0)
        np.random.seed(0)
        before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
        rows_of(TrainLoader(Rows(X, Y), ORDER, workers=workers))
        assert torch.equal(torch.get_rng_state(), before)
        assert (np.random.get_state()[1] == before_numpy).all()


def test_a_batch_is_a_copy_that_may_be_written_into():
    x = X.clone()
    for batch, _ in TrainLoader(Rows(x, Y), ORDER):
        batch.zero_()
    assert torch.equal(x, X)


def test_evaluation_gives_views_in_order():
    loader = EvalLoader(Rows(X, Y).stretch, N, 20)
    batches = list(loader)
    assert len(loader) == 3 and [len(y) for _, y in batches] == [20, 20, 10]
    assert torch.equal(torch.cat([x for x, _ in batches]), X)
    assert batches[1][0].data_ptr() == X[20:].data_ptr()


@pytest.mark.parametrize(("batch", "ranks"), [(20, 2), (7, 3), (50, 4), (1, 3), (100, 2)])
def test_evaluation_over_ranks_sees_each_sample_once_in_equally_many_batches(batch, ranks):
    loaders = [EvalLoader(Rows(X, Y).stretch, N, batch, rank, ranks) for rank in range(ranks)]
    assert len({len(loader) for loader in loaders}) == 1
    parts = [[y for _, y in loader] for loader in loaders]
    sizes = [len(y) for part in parts for y in part]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) > 0
    assert batch == 1 or max(sizes) <= batch
    assert torch.cat([y for part in parts for y in part]).tolist() == Y.tolist()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_mixed_evaluation_takes_the_same_batches_in_an_order_of_its_own(ranks):
    def batches(mixed: bool) -> list[list[int]]:
        loaders = [EvalLoader(Rows(X, Y).stretch, N, 4, rank, ranks, mixed=mixed) for rank in range(ranks)]
        assert len({len(list(loader)) for loader in loaders}) == 1
        return [rows for loader in loaders for rows in rows_of(loader)]

    assert batches(True) != batches(False) and sorted(batches(True)) == batches(False)
    assert batches(True) == batches(True)
