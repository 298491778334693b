"""What a tokenizer is: text to ids and back, fitted on training text, its whole state plain JSON. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from frugal.errors import DataError, SettingsError


class Tokenizer(ABC):
    """Ids are 0 to `vocabulary` - 1. Any subclass may be named by `_target_` in a file of `configs/tokenizer/`."""

    __frugal_configurable__: ClassVar[bool] = True

    fitted: bool = False  # whether there is a vocabulary: after `fit` or `load_state_dict`
    separator: int | None = None  # the id that ends a document, where there is one; -1 until it is known
    unknown: int | None = None  # the id of what the vocabulary lacks, where there is one; -1 until it is known
    unknown_count: int = 0  # how often `encode` gave it

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """How many ids there are, those of the separator and of unknowns among them; before `fit`, the most that there
        may be, or 0."""

    @abstractmethod
    def fit(self, texts: Iterable[str]) -> None:
        """Make the vocabulary from training text, the same from the same text. Raises DataError."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, int32 (N,); never the separator."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; a separator is none, an unknown is U+FFFD."""

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """How many UTF-8 bytes of text each id stands for, int32 (V,); separator and unknown: 0."""

    @abstractmethod
    def token_characters(self) -> np.ndarray:
        """How many characters each id begins (UTF-8 lead bytes), int32 (V,); separator and unknown: 0."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that rebuilds the tokenizer without training, in plain values that JSON can hold; `kind`, the class,
        among them, so that another class can tell that it is not its own."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what `state_dict` told of. Raises SettingsError for another class's, ValueError for none at all."""

    def sha256(self) -> str:
        """Identity of the vocabulary and of how text is cut into it."""
        state = {key: value for key, value in self.state_dict().items() if key != "kind"}
        plain = json.dumps([type(self).__name__, state], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(plain.encode()).hexdigest()

    def _need_kind(self, state: dict[str, Any]) -> None:
        """Refuse a state that another class wrote."""
        own, kind = type(self).__name__, str(state.get("kind", type(self).__name__))[:40]
        if kind != own:
            raise SettingsError(
                f"tokenizer={own.lower()}: the model was trained with tokenizer={kind.lower()}; "
                f"set tokenizer={kind.lower()}"
            )

    def _need_fit(self) -> None:
        if not self.fitted:
            raise DataError(
                f"{type(self).__name__} has no vocabulary yet: call fit with training text, or load a state, first"
            )
