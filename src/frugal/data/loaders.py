"""Batches of data that sits in memory or in mapped files: no per-sample work, no collate. Lightning takes any iterable
with a length."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frugal.data.sampler import Part, permutation

Batch = tuple[Tensor, Tensor]


class Order(Protocol):
    """Which samples each training batch of this process holds: a pure function of seed, epoch and position."""

    batch_size: int  # samples of all ranks in a batch
    last_batch: int  # and in an epoch's last one

    def __len__(self) -> int:
        """Batches an epoch."""

    def part(self, position: int) -> Part:
        """This process's part of the batch at a position of any epoch."""

    def batches(self, epoch: int, start: int = 0) -> Iterable[np.ndarray]:
        """The batches of an epoch from the `start`-th on, each as what `gather` takes."""


class TrainLoader:
    """Training batches `gather(indices)` in an `Order`, a new epoch at each `iter`.

    `gather` makes a batch `(x, y)` of an array of the order's; with `workers` it is called in other processes.
    `done()` tells how many batches the training has done in all, and so where the next `iter` begins: on a resume in
    mid-epoch. Without it the loader counts epochs itself, and `state_dict` says where it stands.
    `epoch_batches` is how many batches make an epoch, where that is fewer than there are; `reshuffle` False repeats
    the first epoch's. `pin` puts batches in page-locked memory.

    It is no torch DataLoader, so that Lightning neither replaces its order nor warns; processes, where `workers` asks
    for them, belong to an inner DataLoader and stay from epoch to epoch until `close`.
    """

    def __init__(
        self,
        gather: Callable[[np.ndarray], Batch],
        order: Order,
        epoch_batches: int | None = None,
        reshuffle: bool = True,
        done: Callable[[], int] | None = None,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        self.order = order
        self.epoch, self.position = -1, 0
        self.num_workers = workers
        self._gather = gather
        self.epoch_batches = len(order) if epoch_batches is None else min(epoch_batches, len(order))
        self._reshuffle, self._done, self._pin = reshuffle, done, pin
        self._loaded = False
        self._pending = _Pending(len(order))
        self._processes: DataLoader[Batch] | None = None

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        # a generator: nothing happens before the first `next`, when all progress has been restored
        if self._done is not None:
            self.epoch, self.position = divmod(self._done(), self.epoch_batches)
        elif self._loaded:
            self._loaded = False
        else:
            self.epoch, self.position = self.epoch + 1, 0
        epoch = self.epoch if self._reshuffle else 0
        for batch in self._in_processes(epoch) if self.num_workers else self._in_memory(epoch):
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches have been given out."""
        done = self.epoch * self.epoch_batches + self.position if self._done is None else self._done()
        epoch, position = divmod(done, self.epoch_batches)
        return {"epoch": epoch, "position": position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next `iter` goes on from there (where there is no `done` to ask)."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._loaded = True

    def part(self, done: int) -> Part:
        """This process's part of the batch that follows `done` others."""
        return self.order.part(done % self.epoch_batches)

    def close(self) -> None:
        """End the worker processes; a later `iter` starts new ones."""
        self._iterator = None
        self._processes = None

    @property
    def _iterator(self) -> Any:
        """The inner DataLoader's, under the name by which Lightning ends workers after a fit, a failed one too."""
        return None if self._processes is None else self._processes._iterator

    @_iterator.setter
    def _iterator(self, value: None) -> None:
        if self._processes is not None:
            self._processes._iterator = value

    def _in_memory(self, epoch: int) -> Iterator[Batch]:
        for indices in self._remaining(epoch):
            batch = self._gather(indices)
            yield _locked(batch) if self._pin else batch

    def _in_processes(self, epoch: int) -> Iterator[Batch]:
        if self._processes is None:
            self._processes = DataLoader(
                _Gathered(self._gather),
                batch_size=None,
                sampler=self._pending,
                collate_fn=_as_it_is,
                num_workers=self.num_workers,
                persistent_workers=True,
                pin_memory=self._pin,
                generator=torch.Generator(),  # its own, or each epoch would draw from the global one
            )
        self._pending.batches = self._remaining(epoch)
        yield from self._processes

    def _remaining(self, epoch: int) -> Iterator[np.ndarray]:
        return itertools.islice(self.order.batches(epoch, self.position), self.epoch_batches - self.position)


class EvalLoader:
    """Batches `stretch(begin, end)` of samples 0 to `samples` in order; over all ranks each sample comes once.

    `mixed` takes the batches in another order, always the same, so that the first of them are like all.

    On several ranks, each takes its own stretch in as many batches as the others, since they wait for each other at
    every batch; batches then differ in size by a sample at most.
    """

    def __init__(
        self,
        stretch: Callable[[int, int], Batch],
        samples: int,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        pin: bool = False,
        mixed: bool = False,
    ) -> None:
        self._stretch, self._pin, self._mixed = stretch, pin, mixed
        # arithmetic, not a list of edges: there may be millions
        self._samples, self._size = samples, batch_size
        self._rank = rank
        if ranks == 1:
            self._batches = self._all = -(-samples // batch_size)
        else:
            self._batches = min(-(-samples // (batch_size * ranks)), samples // ranks)  # none of them empty
            self._all = self._batches * ranks
        self._even = ranks > 1

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        first = self._rank * self._batches
        order: Sequence[int] = range(self._all)
        if self._mixed:
            order = permutation(self._all, seed=0, epoch=0).tolist()
        for i in order[first : first + self._batches]:
            batch = self._stretch(self._edge(i), self._edge(i + 1))
            yield _locked(batch) if self._pin else batch

    def _edge(self, i: int) -> int:
        return i * self._samples // self._all if self._even else min(i * self._size, self._samples)


class Rows:
    """Samples of two tensors in memory, by an array of row numbers or by a stretch of rows.

    numpy gathers rows of bytes in half the time of torch's index_select, and on one thread, so that a second one that
    the machine has given to somebody else never holds up a batch. `pin` gathers into page-locked memory at once.
    """

    def __init__(self, x: Tensor, y: Tensor, pin: bool = False) -> None:
        self.x, self.y, self.pin = x, y, pin
        self.arrays = x.numpy(), y.numpy()

    def __call__(self, rows: np.ndarray) -> Batch:
        """A copy of these rows, which may be written into."""
        x, y = self.arrays
        if not self.pin:
            return torch.from_numpy(x.take(rows, axis=0)), torch.from_numpy(y.take(rows, axis=0))
        return self._locked(x, rows), self._locked(y, rows)

    def stretch(self, begin: int, end: int) -> Batch:
        """Rows `begin` to `end`, as views."""
        return self.x[begin:end], self.y[begin:end]

    @staticmethod
    def _locked(values: np.ndarray, rows: np.ndarray) -> Tensor:
        size = (len(rows), *values.shape[1:])
        locked = torch.empty(size, dtype=torch.from_numpy(values[:0]).dtype, pin_memory=True)
        values.take(rows, axis=0, out=locked.numpy(), mode="clip")  # "raise" would go through a copy
        return locked


def _locked(batch: Batch) -> Batch:
    x, y = batch
    return x.pin_memory(), y.pin_memory()  # returns what is pinned already as it is


class _Gathered(Dataset[Batch]):
    """What a worker runs: a whole batch an item."""

    def __init__(self, gather: Callable[[np.ndarray], Batch]) -> None:
        self.gather = gather

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return self.gather(indices)


class _Pending:
    """The sampler of the inner DataLoader, in the main process: the batches to give out next, drawn as they are needed.

    Knows nothing of its owner: workers of a loader that ends in a reference cycle take ten seconds to go.
    """

    def __init__(self, length: int) -> None:
        self.batches: Iterable[np.ndarray] = ()
        self.length = length

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.batches)

    def __len__(self) -> int:
        return self.length


def _as_it_is(batch: Any) -> Any:
    return batch
