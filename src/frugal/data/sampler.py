"""The order in which training sees its samples: a pure function of seed and epoch, so that a resume is exact."""

from __future__ import annotations

import numpy as np

from frugal.errors import SettingsError


class BatchOrder:
    """Which samples each batch of each epoch holds, for one of `ranks` processes.

    `batch_size` is that of all ranks together; each takes its equal part of every batch. Where the last, smaller
    batch does not divide by the ranks, the few samples over are left out in that epoch (others in the next), so that
    the mean of the ranks' mean losses stays the mean over the batch.
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
        if batch_size < 1 or batch_size % ranks:
            raise SettingsError(f"data.batch_size={batch_size} cannot be split over {ranks} ranks; take a multiple")
        self.samples, self.seed = samples, seed
        self.rank, self.ranks = rank, ranks
        self.rank_batch_size = batch_size // ranks
        self.whole, rest = divmod(samples, batch_size)
        self.rest = 0 if drop_last else rest // ranks  # samples a rank in the last, smaller batch
        if len(self) == 0:
            raise SettingsError(f"data.batch_size={batch_size} leaves no batch of {samples} training samples")

    def __len__(self) -> int:
        """Batches an epoch, whatever its starting point."""
        return self.whole + (self.rest > 0)

    def rows(self, epoch: int) -> np.ndarray:
        """This rank's samples in an epoch, int64, in the order of its batches."""
        order = permutation(self.samples, self.seed, epoch)
        if self.ranks == 1:
            return order[: self.whole * self.rank_batch_size + self.rest]
        batch = self.rank_batch_size * self.ranks
        whole = order[: self.whole * batch].reshape(-1, self.ranks, self.rank_batch_size)[:, self.rank]
        begin = self.whole * batch + self.rank * self.rest
        return np.concatenate((whole.reshape(-1), order[begin : begin + self.rest]))

    def batches(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """The rows, batch by batch, from the `start`-th batch on."""
        rows, size = self.rows(epoch), self.rank_batch_size
        return [rows[i : i + size] for i in range(start * size, len(rows), size)]


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(n), int64.

    Sorted raw draws: unlike `Generator.permutation`, numpy promises these streams for all versions (NEP 19).
    """
    draws = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(n)
    return np.argsort(draws, kind="stable")
