"""Curricula of language modelling: what changes in the batches while training goes on."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from frugal.errors import SettingsError


class LengthWarmup:
    """Sequence-length warm-up (Li et al. 2022): blocks are cut into short pieces first, and into longer ones later.

    The length begins at `start` tokens and doubles, in equal spans of the first `fraction` of the run's batches, as
    long as it divides the block; then blocks stay whole. A step has the same tokens throughout: only context grows.
    """

    __frugal_configurable__: ClassVar[bool] = True

    def __init__(self, start: int = 8, fraction: float = 0.5) -> None:
        if start < 1:
            raise SettingsError(f"curriculum.start={start}: it is 1 or more tokens")
        if not 0 < fraction <= 1:
            raise SettingsError(f"curriculum.fraction={fraction} is not in (0, 1]")
        self.start, self.fraction = start, fraction

    def lengths(self, block_size: int) -> list[int]:
        """The lengths in turn; the last is the whole block."""
        if self.start < block_size and block_size % self.start:
            raise SettingsError(f"curriculum.start={self.start} does not divide data.block_size={block_size}")
        lengths, length = [], self.start
        while length < block_size and block_size % length == 0:
            lengths.append(length)
            length *= 2
        return [*lengths, block_size]

    def length(self, done: int, total: int, block_size: int) -> int:
        """The length of the batch after `done` of the run's `total` batches."""
        *short, whole = self.lengths(block_size)
        stage = int(done * len(short) / (self.fraction * total))
        return short[stage] if stage < len(short) else whole

    def __call__(self, batch: tuple[Tensor, Tensor], done: int, total: int) -> tuple[Tensor, Tensor]:
        """The batch (B, T) as (B * T / length, length)."""
        x, y = batch
        length = self.length(done, total, x.shape[1])
        return x.reshape(-1, length), y.reshape(-1, length)
