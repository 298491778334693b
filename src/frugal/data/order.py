"""Orders of training batches that are never written down: each batch is computed from seed, epoch and position alone.

An epoch may have tens of millions of blocks, and a resume may begin anywhere in it. `sampler.BatchOrder` is the order
for samples in memory, whose permutation is sorted at the start of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from frugal.data.sampler import Part, part_of, permutation
from frugal.errors import SettingsError

ROUNDS = 8
CHUNK = 8192  # positions computed at once: a numpy call for each batch would cost more than the batch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def keys(seed: int, epoch: int, count: int) -> np.ndarray:
    """`count` uint64 by seed and epoch; numpy promises these for all versions (NEP 19)."""
    return np.random.SeedSequence((seed, epoch)).generate_state(count, np.uint64)


def scramble(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele et al. 2014): a bijection of uint64 whose every bit depends on all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permuted(positions: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Where a pseudo-random permutation of range(n) takes `positions`, int64; constant memory for any n.

    A Feistel network over pairs (left, right) below s, the least s with s*s >= n, whose rounds add modulo s (Black and
    Rogaway 2002); a position that leaves range(n) walks on along its cycle until it is back. `key`: one uint64 a round.
    """
    side = np.uint64(math.isqrt(max(n - 1, 0)) + 1)
    values = positions.astype(np.uint64)
    walking = np.arange(len(values))
    while len(walking):
        left, right = np.divmod(values[walking], side)
        for round_key in key:
            left, right = right, (left + scramble(right + round_key) % side) % side
        walked = left * side + right
        values[walking] = walked
        walking = walking[walked >= n]
    return values.astype(np.int64)


class Shuffled:
    """Blocks of a stream of tokens, each once an epoch, as the offsets where they begin.

    Blocks lie `stride` apart and do not overlap; they begin at an offset of their own in each epoch, up to `slack`. The
    last blocks that fill no batch are left out of the epoch. Each of `ranks` processes takes its equal part of every
    batch; `batch_size` is that of all together.
    """

    def __init__(
        self,
        blocks: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        stride: int = 1,
        slack: int = 0,
    ) -> None:
        _check(batch_size, ranks)
        self.blocks, self.batch_size, self.seed = blocks, batch_size, seed
        self.last_batch = batch_size
        self.rank, self.ranks = rank, ranks
        self.stride, self.slack = stride, slack
        if len(self) == 0:
            raise SettingsError(f"data.batch_size={batch_size} leaves no batch: training has {blocks} blocks of text")

    def __len__(self) -> int:
        return self.blocks // self.batch_size

    def part(self, position: int) -> Part:
        """This rank's part of the batch at a position of any epoch."""
        return part_of(self.batch_size, self.rank, self.ranks)

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """Offsets int64 (batch_size / ranks,), from the `start`-th batch of the epoch on."""
        *rounds, last = keys(self.seed, epoch, ROUNDS + 1)
        offset, key = int(last) % (self.slack + 1), np.array(rounds, dtype=np.uint64)
        for positions in _own_positions(self, start):
            yield from offset + self.stride * permuted(positions.ravel(), self.blocks, key).reshape(positions.shape)


class RandomOffsets:
    """Offsets drawn uniformly and with replacement from `offsets` of them, as nanoGPT does; `length` batches an epoch.

    Draw number i is output i of the SplitMix64 generator that seed and epoch begin.
    """

    def __init__(self, offsets: int, length: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        _check(batch_size, ranks)
        self.offsets, self.length = offsets, length
        self.last_batch = batch_size
        self.batch_size, self.seed, self.rank, self.ranks = batch_size, seed, rank, ranks

    def __len__(self) -> int:
        return self.length

    def part(self, position: int) -> Part:
        """This rank's part of the batch at a position of any epoch."""
        return part_of(self.batch_size, self.rank, self.ranks)

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """Offsets int64 (batch_size / ranks,), from the `start`-th batch of the epoch on."""
        (key,) = keys(self.seed, epoch, 1)
        for positions in _own_positions(self, start):
            draws = scramble(key + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
            yield from (draws % np.uint64(self.offsets)).astype(np.int64)


class BucketOrder:
    """Samples of like length in a batch, so that little is padded; each sample once an epoch.

    The epoch's permutation is sorted by length within pools of `pool` batches, and the batches are then shuffled; the
    last, smaller one stays last. Each rank takes its part of every batch.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, seed: int, rank: int = 0, ranks: int = 1, pool: int = 50
    ) -> None:
        _check(batch_size, ranks)
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.rank, self.ranks, self.pool = rank, ranks, pool
        self.whole, self.rest = divmod(len(lengths), batch_size)
        self.last_batch = self.rest or batch_size
        if len(self) == 0:
            raise SettingsError(f"data.batch_size={batch_size} leaves no batch of {len(lengths)} training samples")

    def __len__(self) -> int:
        return self.whole + (self.rest > 0)

    def part(self, position: int) -> Part:
        """This rank's part of the batch at a position of any epoch."""
        return part_of(self.batch_size if position < self.whole else self.rest, self.rank, self.ranks)

    def batches(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """Row numbers int64, from the `start`-th batch of the epoch on."""
        order = permutation(len(self.lengths), self.seed, epoch)
        inside, rest = np.split(order, [self.whole * self.batch_size])
        pools = range(0, len(inside), self.pool * self.batch_size)
        pooled = [inside[begin : begin + self.pool * self.batch_size] for begin in pools]
        ordered = [rows[np.argsort(self.lengths[rows], kind="stable")] for rows in pooled]
        batches = np.concatenate(ordered or [inside]).reshape(-1, self.batch_size)
        # the samples' own permutation has the seed's stream: this one takes another
        shuffled = [batches[i] for i in permutation(self.whole, self.seed ^ 0x5DEECE66D, epoch)]
        shuffled += [rest] if self.rest else []
        parts = ((shuffled[i], self.part(i)) for i in range(start, len(shuffled)))
        return [batch[part.begin : part.end] for batch, part in parts]


def _check(batch_size: int, ranks: int) -> None:
    if batch_size < 1 or batch_size % ranks:
        raise SettingsError(f"data.batch_size={batch_size} cannot be split over {ranks} ranks; take a multiple")


def _own_positions(order: Shuffled | RandomOffsets, start: int) -> Iterator[np.ndarray]:
    """A rank's positions in the epoch from the `start`-th batch on, int64 (batches, batch_size / ranks), in chunks."""
    size, share = order.batch_size, order.batch_size // order.ranks
    own = order.rank * share + np.arange(share)
    step = max(1, CHUNK // share)
    for first in range(start, len(order), step):
        batches = np.arange(first, min(first + step, len(order)))
        yield batches[:, None] * size + own
