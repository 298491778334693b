"""What a data set is: named splits of plain arrays, or of text. Needs numpy only, so that its identity is had without
torch.

A source derives from the class that says what it holds: `ArraySource` (images, tables), `TextSource` (running text for
language models) or `LabelledTextSource` (texts with a class each).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Split:
    """Samples and their targets, row by row."""

    x: np.ndarray  # images: uint8, (N, C, H, W); features: float32, (N, F)
    y: np.ndarray  # int64 (N,) for classification, float32 for regression

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"a split needs one target a sample: {len(self.x)} samples, {len(self.y)} targets")

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and the class of each."""

    texts: list[str]
    y: np.ndarray  # int64 (N,)

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.y):
            raise ValueError(f"each text needs one label: {len(self.texts)} texts, {len(self.y)} labels")

    def __len__(self) -> int:
        return len(self.texts)


class Piece(NamedTuple):
    """Some of a document; a long one comes in several pieces, so that it need not fit in memory."""

    text: str
    last: bool = True  # whether the document ends with it


class Source(ABC):
    """A data set with its own splits. Any subclass may be named by `_target_` under `data.source`."""

    __frugal_configurable__: ClassVar[bool] = True

    task: ClassVar[str]  # "classification", "regression", "text_classification" or "language_modeling"
    own_splits: bool = True  # False where it cuts its test split itself, so that texts of training may come again there
    classes: int | None = None  # where it is known without reading the data
    places: ClassVar[tuple[str, ...]] = ("root",)  # arguments that only say where the data lie; no artefact keeps them

    def __str__(self) -> str:
        """Its kind and where it lies, for messages."""
        found = [str(getattr(self, name)) for name in self.places if getattr(self, name, None)]
        return f"{type(self).__name__}({', '.join(found)})"

    @abstractmethod
    def sha256(self) -> str:
        """Identity of the data as hexadecimal digits; cheap, needs neither torch nor the network."""

    @abstractmethod
    def prepare(self) -> None:
        """Fetch what is missing and verify what is there; may be called again. Raises DataError."""


class ArraySource(Source):
    """Images or tables that fit in memory; `task` is "classification" or "regression"."""

    class_names: list[str] | None = None  # by label; where None, known after `load` at the latest
    feature_names: list[str] | None = None  # of a table's columns
    dropped: Mapping[str, int] = MappingProxyType({})  # samples that could not be read, by reason; filled by `load`

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """The splits "train" and "test" and, where the data set has one, "val". Raises DataError."""


class TextSource(Source):
    """Running text in documents, of any size."""

    task: ClassVar[str] = "language_modeling"

    splits: tuple[str, ...] = ("train", "test")  # those that the data set itself has, of "train", "val" and "test"
    dropped: dict[str, int]  # how often reading met what it could not use; filled while reading

    @abstractmethod
    def documents(self, split: str) -> Iterator[Piece]:
        """The documents of a split in order, in constant memory; the same at each call. Raises DataError."""


class LabelledTextSource(Source):
    """Texts with one class each, few enough to fit in memory."""

    task: ClassVar[str] = "text_classification"

    class_names: list[str] | None = None  # by label; where None, known after `load` at the latest
    dropped: dict[str, int]  # rows that could not be used, by reason; filled by `load`

    @abstractmethod
    def load(self) -> dict[str, LabelledTexts]:
        """The splits "train" and "test" and, where the data set has one, "val". Raises DataError."""
