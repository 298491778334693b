"""One id a word: for classifiers. Words with an apostrophe stay whole, each punctuation mark is a word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from frugal.errors import SettingsError
from frugal.tokenizer.base import Tokenizer

# words (don't, n't), what tokenized text cuts off them ('s, 've), and single marks
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|['’](?:s|m|d|re|ve|ll|t)\b|[^\w\s]|_", re.IGNORECASE)
UNKNOWN = "\ufffd"


class Words(Tokenizer):
    """The `vocabulary` - 1 most frequent words that occur `min_count` times or more, by frequency; the last id is for
    all others. `lower` makes lower case of everything. Decoded words stand between spaces: case and layout are lost.
    """

    def __init__(self, vocabulary: int = 20_000, min_count: int = 1, lower: bool = True) -> None:
        if vocabulary < 2:
            raise SettingsError(f"tokenizer.vocabulary={vocabulary}: it is 2 or more, a word and the unknown ones")
        if min_count < 1:
            raise SettingsError(f"tokenizer.min_count={min_count}: it is 1 or more")
        self.size, self.min_count, self.lower = vocabulary, min_count, lower
        self.unknown = -1
        self._words: list[str] = []
        self._ids: dict[str, int] = {}

    @property
    def vocabulary(self) -> int:
        return len(self._words) + 1 if self.fitted else self.size

    def fit(self, texts: Iterable[str]) -> None:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(self._split(text))
        frequent = [(-count, word) for word, count in counts.items() if count >= self.min_count]
        self._set([word for _, word in sorted(frequent)[: self.size - 1]])

    def encode(self, text: str) -> np.ndarray:
        self._need_fit()
        unknown = len(self._words)
        ids = [self._ids.get(word, unknown) for word in self._split(text)]
        self.unknown_count += ids.count(unknown)
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        self._need_fit()
        words = [*self._words, UNKNOWN]
        return " ".join(words[i] for i in ids)

    def token_bytes(self) -> np.ndarray:
        return np.array([*(len(word.encode(errors="replace")) for word in self._words), 0], dtype=np.int32)

    def token_characters(self) -> np.ndarray:
        return np.array([*map(len, self._words), 0], dtype=np.int32)

    def state_dict(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "words": list(self._words), "lower": self.lower}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._need_kind(state)
        words = state["words"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("a tokenizer's words are no list of text")
        if len(set(words)) < len(words):
            raise ValueError("a tokenizer's words occur twice")
        self.lower = bool(state["lower"])
        self._set(list(words))

    def _set(self, words: list[str]) -> None:
        self._words, self._ids = words, {word: i for i, word in enumerate(words)}
        self.unknown, self.fitted = len(words), True

    def _split(self, text: str) -> list[str]:
        return WORD.findall(text.lower() if self.lower else text)
