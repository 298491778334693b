"""The order in which training sees its samples: a pure function of seed and epoch, so that a resume is exact."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from frugal.errors import SettingsError


class BatchOrder:
    """Which samples each batch of each epoch holds, for one of `ranks` processes.

    `batch_size` is that of all ranks together, `last_batch` an epoch's last one's; each takes its part of every batch.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        drop_last: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size < 1 or (batch_size % ranks and batch_size < samples):
            raise SettingsError(f"data.batch_size={batch_size} cannot be split over {ranks} ranks; take a multiple")
        self.samples, self.seed = samples, seed
        self.rank, self.ranks = rank, ranks
        self.whole, rest = divmod(samples, batch_size)
        self.rest = 0 if drop_last else rest
        self.batch_size, self.last_batch = batch_size, self.rest or batch_size
        if len(self) == 0:
            raise SettingsError(f"data.batch_size={batch_size} leaves no batch of {samples} training samples")

    def __len__(self) -> int:
        """Batches an epoch, whatever its starting point."""
        return self.whole + (self.rest > 0)

    def part(self, position: int) -> Part:
        """This rank's part of the batch at a position of any epoch."""
        return part_of(self.batch_size if position < self.whole else self.rest, self.rank, self.ranks)

    def batches(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """This rank's samples, int64, batch by batch, from the `start`-th batch of an epoch on."""
        order = permutation(self.samples, self.seed, epoch)
        if self.ranks == 1:
            size, end = self.batch_size, self.whole * self.batch_size + self.rest
            return [order[i : min(i + size, end)] for i in range(start * size, end, size)]
        found = []
        for position in range(start, len(self)):
            part, first = self.part(position), position * self.batch_size
            found.append(order[first + part.begin : first + part.end])
        return found


class Part(NamedTuple):
    """Which samples of a global batch are one rank's."""

    begin: int
    end: int
    samples: int  # of the whole batch
    weight: float = 1.0  # of its mean, in the mean of the ranks' means that is the mean over the batch
    counts: bool = True  # in sums over ranks; False where another rank has the same samples


def part_of(samples: int, rank: int, ranks: int) -> Part:
    """Stretches whose lengths differ by one at most; of fewer samples than ranks, all for each, and counted once."""
    if samples < ranks:
        return Part(0, samples, samples, counts=rank == 0)
    begin, end = rank * samples // ranks, (rank + 1) * samples // ranks
    return Part(begin, end, samples, (end - begin) * ranks / samples)


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(n), int64.

    Sorted raw draws: unlike `Generator.permutation`, numpy promises these streams for all versions (NEP 19).
    """
    draws = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(n)
    return np.argsort(draws, kind="stable")
