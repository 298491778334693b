"""Batches of data that sits in memory: no per-sample work, no collate. Lightning takes any iterable with a length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frugal.data.sampler import BatchOrder

Batch = tuple[Tensor, Tensor]


class TrainLoader:
    """Training batches `(x, y)` in the order of a `BatchOrder`, a new epoch at each `iter`.

    `done()` tells how many batches the training has done in all, and so where the next `iter` begins: on a resume in
    mid-epoch. Without it the loader counts epochs itself, and `state_dict` says where it stands.
    `epoch_batches` is how many batches make an epoch, where that is fewer than there are; `reshuffle` False repeats
    the first epoch's. `pin` puts batches in page-locked memory.

    It is no torch DataLoader, so that Lightning neither replaces its order nor warns; processes, where `workers` asks
    for them, belong to an inner DataLoader and stay from epoch to epoch until `close`.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        order: BatchOrder,
        epoch_batches: int | None = None,
        reshuffle: bool = True,
        done: Callable[[], int] | None = None,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        self.order = order
        self.epoch, self.position = -1, 0
        self.num_workers = workers
        self._rows = _Rows(x, y, pin=pin and not workers)  # from a worker, the DataLoader pins
        self._epoch_batches = len(order) if epoch_batches is None else min(epoch_batches, len(order))
        self._reshuffle, self._done, self._pin = reshuffle, done, pin
        self._loaded = False
        self._pending = _Pending()
        self._processes: DataLoader[Batch] | None = None

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        # a generator: nothing happens before the first `next`, when all progress has been restored
        if self._done is not None:
            self.epoch, self.position = divmod(self._done(), self._epoch_batches)
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
        done = self.epoch * self._epoch_batches + self.position if self._done is None else self._done()
        epoch, position = divmod(done, self._epoch_batches)
        return {"epoch": epoch, "position": position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next `iter` goes on from there (where there is no `done` to ask)."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._loaded = True

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
        for rows in self._remaining(epoch):
            yield self._rows[rows]

    def _in_processes(self, epoch: int) -> Iterator[Batch]:
        if self._processes is None:
            self._processes = DataLoader(
                self._rows,
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

    def _remaining(self, epoch: int) -> list[np.ndarray]:
        return self.order.batches(epoch)[self.position : self._epoch_batches]


class EvalLoader:
    """Batches `(x, y)` in the order of the data, as views; over all ranks each sample comes once.

    On several ranks, each takes its own stretch in as many batches as the others, since they wait for each other at
    every batch; batches then differ in size by a sample at most.
    """

    def __init__(self, x: Tensor, y: Tensor, batch_size: int, rank: int = 0, ranks: int = 1, pin: bool = False) -> None:
        self._x, self._y, self._pin = x, y, pin
        if ranks == 1:
            self._edges = [*range(0, len(x), batch_size), len(x)]
        else:
            batches = min(-(-len(x) // (batch_size * ranks)), len(x) // ranks)  # none of them empty
            edges = [i * len(x) // (batches * ranks) for i in range(batches * ranks + 1)]
            self._edges = edges[rank * batches : (rank + 1) * batches + 1]

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __iter__(self) -> Iterator[Batch]:
        for begin, end in zip(self._edges[:-1], self._edges[1:], strict=True):
            x, y = self._x[begin:end], self._y[begin:end]
            yield (x.pin_memory(), y.pin_memory()) if self._pin else (x, y)


class _Rows(Dataset[Batch]):
    """Rows by an array of indices: a whole batch an item.

    numpy gathers rows of bytes in half the time of torch's index_select, and on one thread, so that a second one that
    the machine has given to somebody else never holds up a batch.
    """

    def __init__(self, x: Tensor, y: Tensor, pin: bool) -> None:
        self.arrays, self.pin = (x.numpy(), y.numpy()), pin

    def __getitem__(self, rows: np.ndarray) -> Batch:
        x, y = self.arrays
        if not self.pin:
            return torch.from_numpy(x.take(rows, axis=0)), torch.from_numpy(y.take(rows, axis=0))
        return self._locked(x, rows), self._locked(y, rows)

    @staticmethod
    def _locked(values: np.ndarray, rows: np.ndarray) -> Tensor:
        size = (len(rows), *values.shape[1:])
        locked = torch.empty(size, dtype=torch.from_numpy(values[:0]).dtype, pin_memory=True)
        values.take(rows, axis=0, out=locked.numpy(), mode="clip")  # "raise" would go through a copy
        return locked


class _Pending:
    """The sampler of the inner DataLoader, in the main process: the batches to give out next.

    Knows nothing of its owner: workers of a loader that ends in a reference cycle take ten seconds to go.
    """

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _as_it_is(batch: Any) -> Any:
    return batch
