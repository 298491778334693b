"""The language reference that Python carries for its own `help()`: English about Python, no network needed.

About 0.46 million characters in 79 topics with CPython 3.11; other versions differ a little, and so does `sha256`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from frugal.data.source import Piece, TextSource
from frugal.errors import DataError

PARAGRAPH = 80  # characters of one that two topics have in common by more than chance
# Of the families by length: short and long ones, and not the longest (40 % of all).
HELD_OUT = {"test": slice(3, -1, 10), "val": slice(8, -1, 10)}


class PyDocs(TextSource):
    """A document a topic, in order of their names. About a tenth is for testing, and a little for validation.

    Some topics are parts of others, word by word: what shares a paragraph is in one split, or training would see the
    text that is tested on.
    """

    splits: tuple[str, ...] = ("train", "val", "test")

    def __init__(self) -> None:
        self.dropped: dict[str, int] = {}

    def sha256(self) -> str:
        identity = hashlib.sha256(b"pydocs test=every-tenth-family val=likewise")
        for name, text in sorted(_topics().items()):
            identity.update(f"\0{name}\0{text}".encode())
        return identity.hexdigest()

    def prepare(self) -> None:
        _topics()

    def documents(self, split: str) -> Iterator[Piece]:
        topics = _topics()
        by_length = sorted(_families(topics), key=lambda names: (sum(len(topics[name]) for name in names), names))
        held = {name: part for part, which in HELD_OUT.items() for names in by_length[which] for name in names}
        for name in sorted(topics):
            if held.get(name, "train") == split:
                yield Piece(topics[name])


def _families(topics: dict[str, str]) -> list[list[str]]:
    """Names of topics, those that share a paragraph together."""
    families: dict[int, list[str]] = {}
    family_of: dict[str, int] = {}  # by paragraph
    for number, name in enumerate(sorted(topics)):
        paragraphs = {" ".join(part.split()) for part in re.split(r"\n\s*\n", topics[name])}
        paragraphs = {part for part in paragraphs if len(part) >= PARAGRAPH}
        relatives = {family_of[part] for part in paragraphs if part in family_of}
        families[number] = sorted([name, *(member for old in relatives for member in families.pop(old))])
        family_of |= dict.fromkeys(paragraphs, number)
        family_of |= {part: number for part, old in family_of.items() if old in relatives}
    return list(families.values())


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "data=pydocs reads Python's own pydoc_data.topics, which this Python lacks; "
            "install your system's full Python, or take data=text_file"
        ) from None
    return topics
