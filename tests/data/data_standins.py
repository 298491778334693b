"""Small stand-ins: a source whose samples carry their own number, public files in miniature, texts, a tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frugal.data.idx import IdxImages
from frugal.data.mnist import MNIST
from frugal.data.source import ArraySource, LabelledTexts, LabelledTextSource, Piece, Split, TextSource
from frugal.tokenizer.base import Tokenizer
from public_files import idx


class Numbered(ArraySource):
    """Training sample i is a 4x4 image whose first two pixels are i // 256 and i % 256; its target is i % classes."""

    task = "classification"
    classes = 3

    def __init__(self, train: int = 100, test: int = 25, val: int = 0) -> None:
        self.sizes = {"train": train, "test": test, **({"val": val} if val else {})}

    def sha256(self) -> str:
        return hashlib.sha256(repr(self.sizes).encode()).hexdigest()

    def prepare(self) -> None:
        pass

    def load(self) -> dict[str, Split]:
        splits = {}
        for name, size in self.sizes.items():
            x = np.random.Generator(np.random.PCG64(size)).integers(0, 256, (size, 1, 4, 4), dtype=np.uint8)
            x[:, 0, 0, 0], x[:, 0, 0, 1] = np.divmod(np.arange(size), 256)
            splits[name] = Split(x, np.arange(size) % self.classes)
        return splits


def numbers(x) -> list[int]:
    """Which samples a batch of `Numbered` holds."""
    return (x[:, 0, 0, 0].int() * 256 + x[:, 0, 0, 1].int()).tolist()


class Mini:
    """Four files like MNIST's with 30 and 10 images, their content, and a source that expects just these."""

    def __init__(self, original: type[IdxImages] = MNIST) -> None:
        draw = np.random.Generator(np.random.PCG64(0))
        self.arrays = {
            "train-images-idx3-ubyte.gz": draw.integers(0, 256, (30, 28, 28), dtype=np.uint8),
            "train-labels-idx1-ubyte.gz": np.arange(30) % 10,
            "t10k-images-idx3-ubyte.gz": draw.integers(0, 256, (10, 28, 28), dtype=np.uint8),
            "t10k-labels-idx1-ubyte.gz": np.arange(10),
        }
        self.files = {name: idx(array) for name, array in self.arrays.items()}
        self.checksums = {name: hashlib.md5(content).hexdigest() for name, content in self.files.items()}
        self.source = type("Mini" + original.__name__, (original,), {"checksums": self.checksums})

    def write(self, root: Path) -> Path:
        folder = root / self.source.folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder


class Letters(Tokenizer):
    """An id a character, in the order of the alphabet, and one more that ends a document."""

    def __init__(self, separated: bool = True) -> None:
        self.separated = separated
        self.separator = -1 if separated else None
        self.letters: list[str] = []
        self.fits = 0

    @property
    def vocabulary(self) -> int:
        return len(self.letters) + self.separated

    def fit(self, texts: Iterable[str]) -> None:
        self.fits += 1
        self._take(sorted(set().union(*texts)))

    def encode(self, text: str) -> np.ndarray:
        known = [self.ids[letter] for letter in text if letter in self.ids]
        self.unknown_count += len(text) - len(known)
        return np.array(known, dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.letters[i] if i < len(self.letters) else "|" for i in ids)

    def token_bytes(self) -> np.ndarray:
        return np.array([len(letter.encode()) for letter in self.letters] + [0] * self.separated, dtype=np.int32)

    def token_characters(self) -> np.ndarray:
        return np.array([1] * len(self.letters) + [0] * self.separated, dtype=np.int32)

    def state_dict(self) -> dict[str, Any]:
        return {"letters": self.letters, "separated": self.separated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._take(list(state["letters"]))

    def _take(self, letters: list[str]) -> None:
        self.letters, self.fitted = letters, True
        self.ids = {letter: i for i, letter in enumerate(letters)}
        self.separator = len(letters) if self.separated else None


class Documents(TextSource):
    """Documents that a test gives; one in several pieces where it is a list."""

    def __init__(self, **splits: list[str | list[str]]) -> None:
        self.given, self.splits = splits, tuple(splits)
        self.dropped = {"broken": 0}

    def sha256(self) -> str:
        return hashlib.sha256(repr(self.given).encode()).hexdigest()

    def prepare(self) -> None:
        pass

    def documents(self, split: str) -> Iterator[Piece]:
        READS.append(split)
        for document in self.given[split]:
            pieces = [document] if isinstance(document, str) else document
            for i, text in enumerate(pieces):
                yield Piece(text, last=i == len(pieces) - 1)
        self.dropped["broken"] += 1


READS: list[str] = []  # which splits any `Documents` read; outside of it, since sources are copied


class Labelled(LabelledTextSource):
    """Texts and labels that a test gives, as (text, label)."""

    def __init__(self, classes: int | None = None, **splits: list[tuple[str, int]]) -> None:
        self.given, self.classes = splits, classes
        self.class_names = None if classes is None else [f"class {i}" for i in range(classes)]
        self.dropped = {"broken": 2}

    def sha256(self) -> str:
        return hashlib.sha256(repr(self.given).encode()).hexdigest()

    def prepare(self) -> None:
        pass

    def load(self) -> dict[str, LabelledTexts]:
        return {
            name: LabelledTexts([text for text, _ in rows], np.array([y for _, y in rows], dtype=np.int64))
            for name, rows in self.given.items()
        }
