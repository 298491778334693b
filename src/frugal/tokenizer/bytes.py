"""One id a byte of UTF-8: a vocabulary of 256 for any text, without training and without unknowns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from frugal.tokenizer.base import Tokenizer

BYTES = 256


class Bytes(Tokenizer):
    """With `separator`, id 256 ends a document."""

    fitted = True

    def __init__(self, separator: bool = False) -> None:
        self.separator = BYTES if separator else None

    @property
    def vocabulary(self) -> int:
        return BYTES + (self.separator is not None)

    def fit(self, texts: Iterable[str]) -> None:
        pass

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(errors="replace"), dtype=np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        array = np.asarray(ids, dtype=np.int64).reshape(-1)
        return array[array < BYTES].astype(np.uint8).tobytes().decode(errors="replace")

    def token_bytes(self) -> np.ndarray:
        return (np.arange(self.vocabulary) < BYTES).astype(np.int32)

    def token_characters(self) -> np.ndarray:
        ids = np.arange(self.vocabulary)
        return ((ids < BYTES) & (ids & 0xC0 != 0x80)).astype(np.int32)  # 10xxxxxx continues a character

    def state_dict(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "separator": self.separator is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._need_kind(state)
        self.separator = BYTES if state["separator"] else None
