"""WikiText-2, raw (Merity et al. 2016, arXiv:1609.07843): 600 good articles of Wikipedia to train on, 60 and 60 more.

Raw: with its own case, punctuation and rare words, so that bits per byte compare with other text.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import ClassVar

from frugal.data.fetch import Fetched
from frugal.data.source import Piece, TextSource
from frugal.errors import DataError

ARCHIVE = "wikitext-2-raw-v1.zip"
MEMBERS = {split: f"wikitext-2-raw/wiki.{name}.raw" for split, name in
           (("train", "train"), ("val", "valid"), ("test", "test"))}  # fmt: skip
TITLE = re.compile(r" = [^=].* = \n")  # of an article; ` = = Section = = ` is one inside it


class WikiText2(Fetched, TextSource):
    """A document an article, in the data set's own three splits; the archive is `root`/wikitext2/wikitext-2-raw-v1.zip.

    `mirrors` are base addresses tried in turn where it is missing, None: two public ones (the bucket of the first
    publication is closed).
    """

    splits: tuple[str, ...] = ("train", "val", "test")
    folder: ClassVar[str] = "wikitext2"
    # 4,721,645 bytes, sha256 ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11
    checksums: ClassVar[Mapping[str, str]] = {ARCHIVE: "f407a2d53283fc4a49bcff21bc5f3770"}
    public_mirrors: ClassVar[tuple[str, ...]] = (
        "https://huggingface.co/datasets/ggml-org/ci/resolve/main/",
        "https://wikitext.smerity.com/",  # the first author's own
    )

    def documents(self, split: str) -> Iterator[Piece]:
        path = self.path(ARCHIVE)
        content = self.read(ARCHIVE)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(MEMBERS[split]) as file:
                yield from articles(io.TextIOWrapper(file, encoding="utf-8", newline="\n"))
        except (zipfile.BadZipFile, zlib.error, KeyError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not the archive of WikiText-2 ({error})") from None


def articles(lines: Iterator[str]) -> Iterator[Piece]:
    """The articles in WikiText's lines: each begins with ` = Title = ` between two blank lines."""
    held: list[str] = []
    blank = True  # whether the line before was, or there is none
    for line in lines:
        if blank and TITLE.fullmatch(line) and any(not text.isspace() for text in held):
            yield Piece("".join(held))
            held = []
        held.append(line)
        blank = line.isspace()
    if any(not text.isspace() for text in held):
        yield Piece("".join(held))
