"""Tiny Shakespeare (Karpathy, char-rnn): 1,115,394 characters of his plays, in nanoGPT's split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from frugal.data.fetch import Fetched
from frugal.data.source import Piece, TextSource


class Shakespeare(Fetched, TextSource):
    """One document a split: the first 90 % of the characters, and the rest for testing (what nanoGPT validates on).

    The file is `root`/tinyshakespeare/input.txt; `mirrors` are base addresses tried in turn where it is missing, None:
    the repository that it comes from.
    """

    folder: ClassVar[str] = "tinyshakespeare"
    cut: ClassVar[str] = "train=0.9"
    # sha256 86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
    checksums: ClassVar[Mapping[str, str]] = {"input.txt": "6fb458f1232090904fb40fe944165e91"}
    public_mirrors: ClassVar[tuple[str, ...]] = (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
    )

    def documents(self, split: str) -> Iterator[Piece]:
        text = self.read("input.txt").decode()
        cut = int(len(text) * 0.9)
        yield Piece(text[cut:] if split == "test" else text[:cut])
