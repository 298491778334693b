"""Byte-level BPE as in GPT-2 (Radford et al. 2019; Sennrich et al. 2016, arXiv:1508.07909), by Hugging Face's
`tokenizers`: trained on the training text, or GPT-2's own from its two files."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frugal.errors import DataError, SettingsError
from frugal.tokenizer.base import Tokenizer

SEPARATOR = "<|endoftext|>"
BYTES = 256
FILES = ("vocab.json", "merges.txt")


class BPE(Tokenizer):
    """`vocabulary` ids: 256 bytes, merges of at least `min_frequency` occurrences (fewer ids where those run out), and
    the separator as the last. Merges are learned from the first `characters` of the training text.

    `files` names a folder with a vocab.json and a merges.txt (GPT-2's, with 50,257 ids); then nothing is trained, and
    the separator is their `<|endoftext|>`, or one id more. That text in a document is text like any other. The folder
    is read when the vocabulary is first needed, and never where a state was loaded.
    """

    def __init__(
        self,
        vocabulary: int = 4096,
        min_frequency: int = 2,
        characters: int = 50_000_000,
        files: str | None = None,
    ) -> None:
        if importlib.util.find_spec("tokenizers") is None:
            raise SettingsError("tokenizer=bpe needs the package tokenizers: run pip install 'frugal-ml[text]'")
        if vocabulary <= BYTES:
            raise SettingsError(
                f"tokenizer.vocabulary={vocabulary}: it is {BYTES + 1} or more, bytes and the separator among them"
            )
        for key, value in (("min_frequency", min_frequency), ("characters", characters)):
            if value < 1:
                raise SettingsError(f"tokenizer.{key}={value}: it is 1 or more")
        self.size, self.min_frequency, self.characters, self.files = vocabulary, min_frequency, characters, files
        self.separator = -1
        self._tokenizer: Any = None

    @property
    def fitted(self) -> bool:  # type: ignore[override]
        if self._tokenizer is None and self.files is not None:
            self._load_files(Path(self.files).expanduser())
        return self._tokenizer is not None

    @property
    def vocabulary(self) -> int:
        if not self.fitted or self.separator is None:
            return self.size
        return max(self._tokenizer.get_vocab_size(), self.separator + 1)

    def fit(self, texts: Iterable[str]) -> None:
        if self.files is not None:
            self._load_files(Path(self.files).expanduser())
            return
        from tokenizers import models, pre_tokenizers, trainers

        tokenizer = _around(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.size - 1,
            min_frequency=self.min_frequency,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(self._beginning(texts), trainer)
        # its threads are done; left on, the library warns at each fork of ours that it switches them off
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._set(tokenizer)

    def encode(self, text: str) -> np.ndarray:
        self._need_fit()
        text = text.encode(errors="replace").decode()  # half characters, which the library refuses
        # twice as fast as `encode`: no offsets
        found = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        return np.array(found.ids, dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        self._need_fit()
        array = np.asarray(ids, dtype=np.int64).reshape(-1)
        return self._tokenizer.decode(array[array != self.separator].tolist(), skip_special_tokens=False)

    def token_bytes(self) -> np.ndarray:
        return self._lengths(lambda raw: len(raw))

    def token_characters(self) -> np.ndarray:
        return self._lengths(lambda raw: sum(byte & 0xC0 != 0x80 for byte in raw))

    def state_dict(self) -> dict[str, Any]:
        self._need_fit()
        return {"kind": type(self).__name__, "json": self._tokenizer.to_str(), "separator": self.separator}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from tokenizers import Tokenizer as Library

        self._need_kind(state)
        separator = state["separator"]
        try:
            _refuse_strange_parts(json.loads(state["json"]))
            tokenizer = Library.from_str(state["json"])
        except Exception as error:  # the library raises no narrower class
            raise DataError(f"the BPE vocabulary cannot be read by the installed tokenizers ({error})") from None
        if type(separator) is not int or not 0 <= separator <= tokenizer.get_vocab_size():
            raise ValueError(f"a tokenizer's separator {str(separator)[:40]} is no id of its own")
        self._set(tokenizer, separator)

    def _load_files(self, folder: Path) -> None:
        from tokenizers import models

        for name in FILES:
            if not (folder / name).is_file():
                raise DataError(f"tokenizer.files={folder}: has no {name}; it holds GPT-2's {' and '.join(FILES)}")
        try:
            model = models.BPE.from_file(*(str(folder / name) for name in FILES))
        except Exception as error:  # the library raises no narrower class
            raise DataError(f"tokenizer.files={folder}: cannot be read ({error})") from None
        self._set(_around(model))

    def _set(self, tokenizer: Any, separator: int | None = None) -> None:
        if separator is None:
            known = tokenizer.token_to_id(SEPARATOR)
            separator = tokenizer.get_vocab_size() if known is None else known
        self._tokenizer, self.separator = tokenizer, separator

    def _beginning(self, texts: Iterable[str]) -> Iterator[str]:
        left = self.characters
        for text in texts:
            yield text[:left]
            left -= len(text)
            if left <= 0:
                return

    def _lengths(self, length: Any) -> np.ndarray:
        """Some length of the bytes of each id; 0 where it is no text."""
        lengths = np.zeros(self.vocabulary, dtype=np.int32)
        byte_of = _byte_of_characters()
        for token, index in self._tokenizer.get_vocab().items():
            if index != self.separator:
                raw = [byte_of.get(character) for character in token]
                lengths[index] = length(raw) if None not in raw else 0
        return lengths


def _around(model: Any) -> Any:
    """GPT-2's way of cutting text into words and those into bytes, and back."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, pre_tokenizers

    tokenizer = Library(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _refuse_strange_parts(plain: Any) -> None:
    """Raise ValueError for what `_around` never makes: other parts of the library stop the process on some settings."""
    model = plain["model"]
    ids = model["vocab"].values()
    kinds = {name: (plain.get(name) or {}).get("type") for name in ("pre_tokenizer", "decoder")}
    if model["type"] != "BPE" or set(kinds.values()) != {"ByteLevel"}:
        raise ValueError("it is no byte-level BPE")
    for name in ("truncation", "padding", "normalizer", "post_processor", "added_tokens"):
        if plain.get(name):
            raise ValueError(f"it has a {name}")
    if set(ids) != set(range(len(ids))):
        raise ValueError("its ids are not 0 and up")


def _byte_of_characters() -> dict[str, int]:
    """The byte that each character of a GPT-2 vocabulary stands for: itself where it can be printed, or 256 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(BYTES + i): b for i, b in enumerate(others)}
