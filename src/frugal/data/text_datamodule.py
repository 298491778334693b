"""The LightningDataModule for texts with labels, which fit in memory.

    data = TextDataModule(SST2("data"), Cleaning(), Words())
    Trainer().fit(module, data)

A batch is `(x_BT, y_B)`, int64: ids are the tokenizer's plus one, padded on the right with 0 to a length of the batch's
own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frugal.data.cleaning import Cleaning
from frugal.data.loaders import Batch, EvalLoader, Order, TrainLoader
from frugal.data.module import DataModule
from frugal.data.order import BucketOrder
from frugal.data.sampler import BatchOrder, permutation
from frugal.data.source import LabelledTexts, LabelledTextSource
from frugal.data.split import holdout_copies
from frugal.errors import DataError, SettingsError
from frugal.tokenizer.base import Tokenizer

PADDING = 0
MULTIPLE = 8  # batches are as long as their longest text, rounded up to this: fewer shapes


class TextDataModule(DataModule):
    """`batch_size` is that of all ranks together, `eval_batch_size` that of one.

    Texts are cut after `max_length` tokens. Validation is the data set's own split, or `val_fraction` of its training
    split, cut with `split_seed` and stratified. Of what is cut from the same rows, here or by the source, texts that
    stand in training too are left out where `preprocess` drops duplicates. `bucket` puts texts of like length in a
    batch; evaluation does so always.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        source: LabelledTextSource,
        preprocess: Cleaning,
        tokenizer: Tokenizer,
        batch_size: int = 32,
        eval_batch_size: int = 512,
        max_length: int = 256,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        bucket: bool = True,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, workers, seed)
        if max_length < 1:
            raise SettingsError(f"data.max_length={max_length}: it is 1 or more tokens")
        self.source, self.preprocess, self.tokenizer = source, preprocess, tokenizer
        self.max_length, self.bucket = max_length, bucket
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.splits: dict[str, Texts] = {}
        self.class_names = None  # until setup, or a trained network's state
        self._figures: dict[str, Any] = {}

    def setup(self, stage: str | None = None) -> None:
        """Load, clean, cut validation from training, fit the tokenizer on the rest, encode. Raises DataError."""
        if self.splits:
            return
        loaded = {}
        self.preprocess.counts.clear()
        for name, split in self.source.load().items():
            texts, y = self.preprocess.labelled(split.texts, split.y, whole=name == "train")
            loaded[name] = LabelledTexts(texts, y)
        if not self.source.own_splits:
            loaded["test"] = self._without(loaded["test"], loaded["train"])
        for name, split in loaded.items():
            if not len(split):
                why = ", ".join(f"{key} {value}" for key, value in self.preprocess.counts.items() if value)
                raise DataError(f"data.source: no text is left in the {name} split of {self.source} ({why})")
        numbers = self._new_numbers(self.class_names)
        if numbers is not None:
            loaded = {name: LabelledTexts(split.texts, numbers[split.y]) for name, split in loaded.items()}
        self.class_names = self.class_names or self.source.class_names
        if "val" not in loaded and self.val_fraction:
            train = loaded["train"]
            held = holdout_copies(train.texts, train.y, self.val_fraction, self.split_seed)
            train, val = _rows(train, ~held), _rows(train, held)
            val = self._without(val, train)
            loaded |= {"train": train} | ({"val": val} if len(val) else {})
        if not self.tokenizer.fitted:
            self.tokenizer.fit(loaded["train"].texts)
        counts: dict[str, Any] = {}
        splits = {}
        for name, split in loaded.items():
            self.tokenizer.unknown_count = 0
            splits[name], counts[name] = self._encode(split)
            counts[name]["unknown"] = self.tokenizer.unknown_count
        self._figures = {
            "splits": counts,
            "cleaning": {key: int(value) for key, value in self.preprocess.counts.items()},
            "dropped": {key: int(value) for key, value in self.source.dropped.items()},
            "tokenizer": {"name": type(self.tokenizer).__name__, "vocabulary": self.tokenizer.vocabulary},
            "text_sha256": self.text_sha256(),
        }
        self.splits = splits

    def _without(self, split: LabelledTexts, train: LabelledTexts) -> LabelledTexts:
        return _rows(split, ~self.preprocess.across(split.texts, train.texts))

    def _encode(self, split: LabelledTexts) -> tuple[Texts, dict[str, int]]:
        found = [self.tokenizer.encode(text) for text in split.texts]
        counts = {
            "texts": len(split),
            "characters": sum(len(text) for text in split.texts),
            "tokens": sum(len(ids) for ids in found),
            "truncated": sum(len(ids) > self.max_length for ids in found),
            "empty": sum(len(ids) == 0 for ids in found),
        }
        rows = [_row(ids, self.tokenizer, self.max_length) for ids in found]
        return Texts(rows, split.y, self.max_length), counts

    # ---------------------------------------------------------------------------------------------- what others ask
    def dims(self) -> dict[str, Any]:
        """What a network takes: `vocabulary` with the padding's id 0, `classes`, `max_length` of a text, and the id of
        a `space` where tokens are single bytes or characters."""
        self.setup()
        if self.class_names is not None:
            classes = len(self.class_names)
        else:
            classes = self.source.classes or 1 + max(int(split.y.max()) for split in self.splits.values())
        return {
            "vocabulary": self.tokenizer.vocabulary + 1,
            "classes": classes,
            "max_length": self.max_length,
            "space": self._space(),
        }

    def _space(self) -> int | None:
        """A network's id of a space where tokens are single characters or bytes, so that it stands between words."""
        ids = self.tokenizer.encode(" ").tolist()
        single = int(self.tokenizer.token_characters().max()) <= 1
        return ids[0] + 1 if single and len(ids) == 1 and ids[0] != self.tokenizer.unknown else None

    def facts(self) -> dict[str, Any]:
        """The names of the classes, in order, where the data set has them."""
        self.setup()
        return {"class_names": self.class_names}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "class_names": self.class_names}

    def figures(self) -> dict[str, Any]:
        self.setup()
        return self._figures

    def example(self, samples: int, device: torch.device | str = "meta") -> Tensor:
        """Zeros (n, T) int64; T is the mean length of the first epoch's batches, over their texts, padding included."""
        self.setup()
        train = self.splits["train"]
        batches = list(self._order(0, 1).batches(0))
        padded = sum(len(rows) * train.padded_length(rows) for rows in batches)
        length = round(padded / sum(len(rows) for rows in batches))
        return torch.zeros(samples, length, dtype=torch.int64, device=device)

    def calibration_batches(self, samples: int = 512) -> Iterator[Tensor]:
        """So many training inputs (B, T), the same at each call, or as many as there are."""
        train = self.splits["train"]
        rows = permutation(len(train), self.split_seed, 0)[:samples]
        for begin in range(0, len(rows), self.batch_size):
            yield train(rows[begin : begin + self.batch_size])[0]

    # ------------------------------------------------------------------------------------------------------- loaders
    def train_dataloader(self) -> TrainLoader:
        return self._new_train_loader(self.splits["train"], self._order(*self._rank()))

    def _order(self, rank: int, ranks: int) -> Order:
        train = self.splits["train"]
        if self.bucket:
            return BucketOrder(train.lengths, self.batch_size, self.seed, rank, ranks)
        return BatchOrder(len(train), self.batch_size, self.seed, rank=rank, ranks=ranks)

    def _eval_loader(self, split: str) -> EvalLoader:
        texts = self.splits[split]
        return self._new_eval_loader(split, texts.stretch, len(texts), mixed=True)


class Texts:
    """Encoded texts (their ids one after the other in one array) and their labels; as batches by row numbers."""

    def __init__(self, parts: list[np.ndarray], y: np.ndarray, max_length: int) -> None:
        self.lengths = np.array([len(part) for part in parts], dtype=np.int64)
        self.begins = np.cumsum(self.lengths) - self.lengths
        self.ids, self.y, self.max_length = np.concatenate(parts), y, max_length
        self.by_length = np.argsort(self.lengths, kind="stable")

    def __len__(self) -> int:
        return len(self.y)

    def padded_length(self, rows: np.ndarray) -> int:
        longest = int(self.lengths[rows].max())
        return min(-(-longest // MULTIPLE) * MULTIPLE, self.max_length)

    def __call__(self, rows: np.ndarray) -> Batch:
        inside = np.arange(self.padded_length(rows))
        x = self.ids.take(self.begins[rows, None] + inside, mode="clip").astype(np.int64)
        x[inside >= self.lengths[rows, None]] = PADDING
        return torch.from_numpy(x), torch.from_numpy(self.y[rows])

    def stretch(self, begin: int, end: int) -> Batch:
        """The `begin`-th to `end`-th by length."""
        return self(self.by_length[begin:end])


def encode(text: str, tokenizer: Tokenizer, max_length: int) -> np.ndarray:
    """A text as a network takes it but for the padding: ids plus one, int32 (N,), 1 to `max_length` of them."""
    return _row(tokenizer.encode(text), tokenizer, max_length)


def pad(rows: Sequence[np.ndarray]) -> Tensor:
    """Encoded texts as one batch (B, T), int64; T is the length of the longest."""
    x = np.full((len(rows), max(len(row) for row in rows)), PADDING, np.int64)
    for i, row in enumerate(rows):
        x[i, : len(row)] = row
    return torch.from_numpy(x)


def _row(ids: np.ndarray, tokenizer: Tokenizer, max_length: int) -> np.ndarray:
    if not len(ids):  # a network must never see nothing but padding
        ids = np.array([0 if tokenizer.unknown is None else tokenizer.unknown])
    return ids[:max_length].astype(np.int32) + 1


def _rows(split: LabelledTexts, mask: np.ndarray) -> LabelledTexts:
    return LabelledTexts([split.texts[i] for i in np.flatnonzero(mask)], split.y[mask])
