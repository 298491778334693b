"""One id a character: the vocabulary is what stands in the training text, in the order of Unicode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from frugal.errors import DataError
from frugal.tokenizer.base import Tokenizer

CODE_POINTS = 0x110000
REPLACEMENT = 0xFFFD  # what an unknown character is decoded as


class Characters(Tokenizer):
    """After the characters come an id for those that the training text lacks (`unknown`) and one that ends a document
    (`separator`), where asked for. With `unknown` False a character without an id is refused.
    """

    def __init__(self, unknown: bool = True, separator: bool = False) -> None:
        self.unknown, self.separator = -1 if unknown else None, -1 if separator else None
        self._code_points = np.empty(0, dtype=np.uint32)  # of each id
        self._ids = np.empty(0, dtype=np.int32)  # of each code point; -1: none

    @property
    def vocabulary(self) -> int:
        return len(self._code_points)

    def fit(self, texts: Iterable[str]) -> None:
        seen = np.zeros(CODE_POINTS, dtype=bool)
        for text in texts:
            seen[_code_points(text)] = True
        self._set(np.flatnonzero(seen).astype(np.uint32))

    def encode(self, text: str) -> np.ndarray:
        self._need_fit()
        ids = self._ids[_code_points(text)]
        if self.unknown is not None:
            self.unknown_count += int(np.count_nonzero(ids == self.unknown))
        elif len(ids) and ids.min() < 0:
            stranger = text[int(ids.argmin())]
            raise DataError(
                f"the tokenizer has no id for the character {stranger!r} (U+{ord(stranger):04X}), which the training "
                "text lacks; set tokenizer.unknown=true"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        self._need_fit()
        array = np.asarray(ids, dtype=np.int64).reshape(-1)
        array = array[array != (-1 if self.separator is None else self.separator)]
        return self._code_points[array].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

    def token_bytes(self) -> np.ndarray:
        points = self._code_points
        lengths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
        return self._without_specials(lengths.astype(np.int32))

    def token_characters(self) -> np.ndarray:
        return self._without_specials(np.ones(self.vocabulary, dtype=np.int32))

    def state_dict(self) -> dict[str, Any]:
        characters = self._code_points[: self.vocabulary - self._specials]
        specials = {"unknown": self.unknown is not None, "separator": self.separator is not None}
        return {"kind": type(self).__name__, "code_points": characters.tolist(), **specials}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._need_kind(state)
        points = state["code_points"]
        if not isinstance(points, list) or not all(type(point) is int and 0 <= point < CODE_POINTS for point in points):
            raise ValueError("a tokenizer's code_points are no list of Unicode's")
        if len(set(points)) < len(points):
            raise ValueError("a tokenizer's code_points occur twice")
        self.unknown, self.separator = (-1 if state[name] else None for name in ("unknown", "separator"))
        self._set(np.array(points, dtype=np.uint32))

    def _set(self, characters: np.ndarray) -> None:
        specials = self._specials
        self.unknown = None if self.unknown is None else len(characters)
        self.separator = None if self.separator is None else len(characters) + specials - 1
        self._code_points = np.concatenate((characters, np.full(specials, REPLACEMENT, dtype=np.uint32)))
        self._ids = np.full(CODE_POINTS, -1 if self.unknown is None else self.unknown, dtype=np.int32)
        self._ids[characters] = np.arange(len(characters), dtype=np.int32)
        self.fitted = True

    def _without_specials(self, lengths: np.ndarray) -> np.ndarray:
        lengths[self.vocabulary - self._specials :] = 0
        return lengths

    @property
    def _specials(self) -> int:
        return (self.unknown is not None) + (self.separator is not None)


def _code_points(text: str) -> np.ndarray:
    if text.isascii():  # a quarter of the memory
        return np.frombuffer(text.encode(), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
