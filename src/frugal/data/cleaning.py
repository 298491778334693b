"""Cleaning text before it is tokenized: normalization, control characters, duplicates, lengths; it counts what it
does."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, ClassVar, Literal

import numpy as np

from frugal.data.source import Piece
from frugal.errors import SettingsError

BUFFER = 4 << 20  # characters of a document that comes in pieces which are held back until its length is known
ACROSS = "duplicates_across_splits"
REMEMBERED = 4 << 20  # documents that others are compared with, about 300 MB; by 64 bits, so chance is 1 in 10**6

LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85]")  # those of other systems, and of pages
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]+")  # Unicode's Cc but for \n and \t
CONTROL_BYTES = bytes(i for i in range(0x80) if i < 0x20 or i == 0x7F).translate(None, b"\n\t")


class Cleaning:
    r"""What each switch removes is in `counts` under its name, summed over all calls.

    `unicode` is a normal form for characters that can be written in several ways. `control` removes control characters
    but for \n and \t, and makes a \n of \r\n and of all else that ends a line: \r, \v, \f and NEL. `duplicates` drops
    documents that are exactly like an earlier one of the same call. Documents of whitespace alone, of less than
    `min_length` or more than `max_length` characters are dropped. A document that is too long to be held in memory is
    neither compared nor, up to `max_length`, measured.
    """

    __frugal_configurable__: ClassVar[bool] = True

    fitted: ClassVar[bool] = True  # nothing is taken from the data
    random: ClassVar[bool] = False

    def __init__(
        self,
        unicode: Literal["none", "NFC", "NFKC"] = "NFC",
        control: bool = True,
        duplicates: bool = True,
        min_length: int = 0,
        max_length: int | None = None,
    ) -> None:
        if unicode not in ("none", "NFC", "NFKC"):
            raise SettingsError(f"preprocess.unicode={unicode!r}: it is none, NFC or NFKC")
        if min_length < 0:
            raise SettingsError(f"preprocess.min_length={min_length}: it is 0 or more characters")
        if max_length is not None and max_length < max(1, min_length):
            raise SettingsError(
                f"preprocess.max_length={max_length}: it is null, or at least 1 and preprocess.min_length={min_length}"
            )
        self.unicode, self.control, self.duplicates = unicode, control, duplicates
        self.min_length, self.max_length = min_length, max_length
        self.counts: Counter[str] = Counter()

    def documents(self, pieces: Iterable[Piece], whole: bool = True, seen: set[int] | None = None) -> Iterator[Piece]:
        """Cleaned documents in constant memory. `whole` False leaves them all in, for splits that are measured on.

        `seen`, a set of the caller's, is filled with what tells documents apart; with `whole` False those in it are
        dropped: they stand in the training split too.
        """
        across = seen is not None and not whole and self.duplicates
        seen = set() if seen is None else seen
        held: list[str] = []  # of the document at hand
        size, passed, rejected = 0, False, False  # whether the document at hand is on its way out, or too long already
        most = BUFFER if self.max_length is None else min(BUFFER, self.max_length)
        for piece in self._line_ends_whole(pieces):
            text = self.text(piece.text)
            if passed:
                yield Piece(text, piece.last)
                passed = not piece.last
                continue
            if rejected:
                rejected = not piece.last
                continue
            held.append(text)
            size += len(text)
            if piece.last:
                text = held[0] if len(held) == 1 else "".join(held)
                if self._keep(text, text, seen) if whole else not (across and self._stands_in(text, seen)):
                    yield Piece(text)
            elif size <= (most if whole else BUFFER) and (whole or across):
                continue
            elif whole and self.max_length is not None and size > self.max_length:
                self.counts["too_long"] += 1
                rejected = True
            else:
                if across or (whole and (self.duplicates or self.max_length is not None)):
                    self.counts["not_compared"] += 1
                for text in held:
                    yield Piece(text, last=False)
                passed = True
            held, size = [], 0

    def labelled(self, texts: list[str], y: np.ndarray, whole: bool = True) -> tuple[list[str], np.ndarray]:
        """Cleaned texts and their labels (N,). A duplicate has the same text and label as an earlier one.

        `whole` False leaves them all in, for splits that are measured on.
        """
        cleaned = [self.text(text) for text in texts]
        if not whole:
            return cleaned, y
        seen: set[int] = set()
        kept = [
            i
            for i, (text, label) in enumerate(zip(cleaned, y.tolist(), strict=True))
            if self._keep(text, f"{label} {text}", seen)
        ]
        return [cleaned[i] for i in kept], y[kept]

    def across(self, texts: list[str], train: Iterable[str]) -> np.ndarray:
        """Which of these cleaned texts stand in training too, whatever their labels: bool (N,); none where duplicates
        stay. For splits that were cut from the same rows."""
        known = set(train) if self.duplicates else set()
        found = np.array([text in known for text in texts], dtype=bool)
        if found.any():
            self.counts[ACROSS] += int(found.sum())
        return found

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def text(self, text: str) -> str:
        """One text, cleaned; never dropped."""
        if self.control:
            text = self._without_control(text)
        if self.unicode != "none" and not text.isascii():
            normal = unicodedata.normalize(self.unicode, text)
            if normal != text:
                self.counts["normalized"] += 1
            text = normal
        return text

    def _without_control(self, text: str) -> str:
        if text.isprintable():  # many a short line: quickly done with
            return text
        if any(end in text for end in "\r\x0b\x0c\x85"):  # a search for each takes a hundredth of the expression
            text, line_ends = LINE_END.subn("\n", text)
            self.counts["line_ends"] += line_ends
        before = len(text)
        if text.isascii():  # ten times as fast
            text = text.encode().translate(None, CONTROL_BYTES).decode()
        else:
            text = CONTROL.sub("", text)
        if len(text) < before:
            self.counts["control_characters"] += before - len(text)
        return text

    def _line_ends_whole(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Pieces of which none ends between \\r and \\n."""
        held = ""
        for piece in pieces:
            text, last = held + piece.text, piece.last
            held = "\r" if self.control and not last and text.endswith("\r") else ""
            yield Piece(text[: len(text) - len(held)], last)

    def _keep(self, text: str, identity: str, seen: set[int]) -> bool:
        if not text or text.isspace():
            reason = "empty"
        elif len(text) < self.min_length:
            reason = "too_short"
        elif self.max_length is not None and len(text) > self.max_length:
            reason = "too_long"
        elif self.duplicates and self._met(identity, seen):
            reason = "duplicates"
        else:
            return True
        self.counts[reason] += 1
        return False

    def _met(self, identity: str, seen: set[int]) -> bool:
        """Whether an earlier document was the same; beyond REMEMBERED, new ones are no longer remembered."""
        digest = _digest(identity)
        if digest in seen:
            return True
        if len(seen) < REMEMBERED:
            seen.add(digest)
        else:
            self.counts["not_remembered"] += 1
        return False

    def _stands_in(self, identity: str, seen: set[int]) -> bool:
        found = _digest(identity) in seen
        if found:
            self.counts[ACROSS] += 1
        return found


def _digest(identity: str) -> int:
    return int.from_bytes(blake2b(identity.encode(errors="surrogatepass"), digest_size=8).digest())
