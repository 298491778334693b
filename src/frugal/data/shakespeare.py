"""Tiny Shakespeare (Karpathy, char-rnn): 1,115,394 characters of his plays, in nanoGPT's split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from frugal.data.fetch import fetch, read_verified
from frugal.data.source import Piece, TextSource


class Shakespeare(TextSource):
    """One document a split: the first 90 % of the characters, and the rest for testing (what nanoGPT validates on).

    The file is `root`/tinyshakespeare/input.txt; `mirrors` are base addresses tried in turn where it is missing, None:
    the repository that it comes from.
    """

    folder: ClassVar[str] = "tinyshakespeare"
    # sha256 86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
    md5: ClassVar[Mapping[str, str]] = {"input.txt": "6fb458f1232090904fb40fe944165e91"}
    public_mirrors: ClassVar[tuple[str, ...]] = (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
    )

    def __init__(self, root: str, mirrors: list[str] | None = None) -> None:
        self.root = root
        self.mirrors = list(self.public_mirrors) if mirrors is None else list(mirrors)
        self.dropped: dict[str, int] = {}

    def sha256(self) -> str:
        # the file is verified whenever it is read, so its checksum is its identity
        return hashlib.sha256(f"{self.folder} {sorted(self.md5.items())} train=0.9".encode()).hexdigest()

    def prepare(self) -> None:
        fetch(self.md5, self._folder, self.mirrors)

    def documents(self, split: str) -> Iterator[Piece]:
        text = read_verified(self._folder / "input.txt", self.md5["input.txt"]).decode()
        cut = int(len(text) * 0.9)
        yield Piece(text[cut:] if split == "test" else text[:cut])

    @property
    def _folder(self) -> Path:
        return Path(self.root).expanduser() / self.folder
