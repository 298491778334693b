"""The user's own text: a file, a folder or a .jsonl, of any size, read in constant memory.

What cannot be used (bytes that are no UTF-8, broken lines) is counted in `dropped` and does not stop anything.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from frugal.data.source import Piece, TextSource
from frugal.errors import DataError, SettingsError

CHUNK = 1 << 20  # bytes read at once; a piece is at most twice that
SUFFIXES = (".txt", ".md", ".jsonl")  # what is read of a folder
FILES_FOR_A_SPLIT_BY_FILES = 10

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NOT_TEXT = {
    b"\xff\xfe": "UTF-16; convert it to UTF-8",
    b"\xfe\xff": "UTF-16; convert it to UTF-8",
    b"\x1f\x8b": "compressed with gzip; decompress it",
    b"PK\x03\x04": "a zip archive; extract it",
}
UNDECODABLE = re.compile("[\udc80-\udcff]+")  # bytes as `surrogateescape` decodes them
SURROGATES = re.compile("[\ud800-\udfff]")  # JSON can name halves of a character, which no UTF-8 has
LINE_END = re.compile(rb"\n")
BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")


class _Range(NamedTuple):
    """Bytes of one file."""

    path: Path
    begin: int
    end: int


class TextFile(TextSource):
    """A text file, a folder of .txt, .md and .jsonl files (also in folders within, in order of their paths), or a
    .jsonl file, whose lines are JSON objects with the text under `key`.

    `documents` says what a document is in plain text: the whole `file`, each `line`, or what stands between
    `blank_line`s; lines and documents of whitespace alone are left out. A line of a .jsonl is a document.

    The last `test_fraction` is for testing: of ten files or more that many last files, of less the last bytes of all
    taken together, from the next line end on (the next blank line, where documents are told apart by them).
    `undecodable` says what becomes of bytes that are no UTF-8; they are counted either way.
    """

    places: ClassVar[tuple[str, ...]] = ("path",)
    own_splits = False

    def __init__(
        self,
        path: str,
        key: str = "text",
        documents: Literal["file", "line", "blank_line"] = "file",
        test_fraction: float = 0.05,
        undecodable: Literal["drop", "replace"] = "drop",
    ) -> None:
        if not path:
            raise SettingsError("data.source.path: name a text file, a .jsonl file or a folder of them")
        if documents not in ("file", "line", "blank_line"):
            raise SettingsError(f"data.source.documents={documents!r}: it is file, line or blank_line")
        if undecodable not in ("drop", "replace"):
            raise SettingsError(f"data.source.undecodable={undecodable!r}: it is drop or replace")
        if not 0 < test_fraction < 1:
            raise SettingsError(f"data.source.test_fraction={test_fraction}: it is above 0 and below 1")
        self.path = Path(path).expanduser()
        self.key, self.unit, self.test_fraction = key, documents, test_fraction
        self.undecodable: Literal["drop", "replace"] = undecodable
        self.dropped: dict[str, int] = {}
        self._counts: dict[str, Counter[str]] = {}  # by split, so that reading one twice counts once

    def sha256(self) -> str:
        identity = hashlib.sha256(f"{self.key} {self.unit} {self.test_fraction} {self.undecodable}".encode())
        for path in self._files():
            identity.update(f" {_is_jsonl(path)} {file_sha256(path)}".encode())
        return identity.hexdigest()

    def prepare(self) -> None:
        """Find the files and where they are cut; what stands in them is seen when it is read."""
        self._ranges("train")

    def documents(self, split: str) -> Iterator[Piece]:
        counts = self._counts[split] = Counter()
        found = False
        try:
            for part in self._ranges(split):
                for piece in self._documents(part, counts):
                    found = True
                    yield piece
        finally:
            self.dropped = dict(sum(self._counts.values(), Counter()))
        if not found:
            raise DataError(
                f"{self.path}: no text that can be used for the {split} split{told(counts)}; "
                "give data.source.path more text"
            )

    def _documents(self, part: _Range, counts: Counter[str]) -> Iterator[Piece]:
        if _is_jsonl(part.path):
            return _records(part, self.key, self.undecodable, counts)
        chunks = _chunks(part, self.undecodable, counts)
        return {"file": _whole, "line": _lines, "blank_line": _paragraphs}[self.unit](chunks)

    def _files(self) -> list[Path]:
        """What there is to read, in order. Raises DataError where there is nothing."""
        if self.path.is_dir():
            inside = [(path.relative_to(self.path), path) for path in self.path.rglob("*")]
            files = [
                path
                for name, path in sorted(inside, key=lambda pair: pair[0].parts)
                if path.suffix.lower() in SUFFIXES
                and path.is_file()
                and not any(part.startswith(".") for part in name.parts)
            ]
            if not files:
                raise DataError(f"data.source.path={self.path}: a folder without a {' or '.join(SUFFIXES)} file")
            return files
        if not self.path.is_file():
            raise DataError(f"data.source.path={self.path}: there is no such file or folder")
        return [self.path]

    def _ranges(self, split: str) -> list[_Range]:
        whole = [_Range(path, 0, path.stat().st_size) for path in self._files()]
        for part in whole:
            check_text(part.path)
        if len(whole) >= FILES_FOR_A_SPLIT_BY_FILES:
            last = min(max(1, round(len(whole) * self.test_fraction)), len(whole) - 1)
            return whole[-last:] if split == "test" else whole[:-last]
        left = int(sum(part.end for part in whole) * (1 - self.test_fraction))
        train: list[_Range] = []
        for index, part in enumerate(whole):
            if left < part.end:
                cut = self._cut(part, left)
                if cut is None:  # a single document: as a whole to one side
                    if len(whole) == 1:
                        raise DataError(f"{part.path}: a single line, of which nothing can be left for testing")
                    cut = 0 if index else part.end
                test = [part._replace(begin=cut), *whole[index + 1 :]]
                ranges = [*train, part._replace(end=cut)] if split == "train" else test
                return [some for some in ranges if some.begin < some.end]
            train.append(part)
            left -= part.end
        raise DataError(f"{self.path}: empty")

    def _cut(self, part: _Range, offset: int) -> int | None:
        """Where the test split begins in a file: at a border between documents or lines, next to `offset`."""
        if offset == 0:
            return 0
        plain = not _is_jsonl(part.path)
        borders = [BLANK_LINE] if plain and self.unit == "blank_line" else []
        for border in (*borders, LINE_END):
            after = next(_borders(part, border, offset - 1), part.end)
            if after < part.end:
                return after
            if before := max(_borders(part, border, 0, offset), default=0):
                return before
        if not plain:
            return None
        with open(part.path, "rb") as file:  # a single line of text: between two characters
            file.seek(offset)
            while (byte := file.read(1)) and byte[0] & 0xC0 == 0x80:
                offset += 1
        return offset


# ------------------------------------------------------------------------------------ also for other sources of text
def check_text(path: Path) -> None:
    """Refuse what is no UTF-8 text by its first bytes. Raises DataError."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(4)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    for signature, what in NOT_TEXT.items():
        if beginning.startswith(signature):
            raise DataError(f"{path}: {what} first")


def decode(raw: bytes, undecodable: Literal["drop", "replace"], counts: Counter[str]) -> str:
    """UTF-8 as text. Bytes that are none are counted; each run of them is dropped, or replaced by U+FFFD."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        text = raw.decode(errors="surrogateescape")
    counts["undecodable_bytes"] += sum(len(found[0]) for found in UNDECODABLE.finditer(text))
    return UNDECODABLE.sub("\ufffd" if undecodable == "replace" else "", text)


def file_sha256(path: Path) -> str:
    """Of the content; kept while the file's size and time of change stay."""
    status = path.stat()
    return _sha256(str(path.absolute()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _sha256(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def told(counts: Counter[str]) -> str:
    """` (3 broken lines, 1 undecodable bytes)`, or nothing."""
    listed = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items() if number)
    return f" ({listed})" if listed else ""


# ----------------------------------------------------------------------------------------------------------- reading
def _is_jsonl(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".ndjson")


def _borders(part: _Range, border: re.Pattern[bytes], begin: int, end: int | None = None) -> Iterator[int]:
    """Offsets right after each match of `border`, of those between two offsets."""
    end = part.end if end is None else end
    with open(part.path, "rb") as file:
        file.seek(begin)
        held = b""
        while begin + len(held) < end and (block := file.read(min(CHUNK, end - begin - len(held)))):
            held += block
            keep = 0
            for match in border.finditer(held):
                keep = match.end()
                yield begin + keep
            keep = max(keep, len(held) - 64)  # a blank line may be whitespace across two blocks
            begin, held = begin + keep, held[keep:]


def _chunks(part: _Range, undecodable: Literal["drop", "replace"], counts: Counter[str]) -> Iterator[str]:
    """A file's text in pieces that end with a line, or within one that is longer than a chunk."""
    left, held = part.end - part.begin, b""
    with open(part.path, "rb") as file:
        file.seek(part.begin)
        if part.begin == 0 and left >= 3 and file.read(3) == BYTE_ORDER_MARK:
            counts["byte_order_marks"] += 1
            left -= 3
        else:
            file.seek(part.begin)
        while left:
            block = file.read(min(CHUNK, left))
            if not block:
                raise DataError(f"{part.path}: became shorter while it was read")
            left -= len(block)
            held += block
            cut = held.rfind(b"\n") + 1 if left else len(held)
            if not cut:
                if len(held) < CHUNK:
                    continue
                cut = len(held) - 1  # between two characters, and not within a line's end of two
                while cut and (held[cut] & 0xC0 == 0x80 or held[cut - 1] == 0x0D):
                    cut -= 1
                if not cut:
                    if len(held) < CHUNK + 8:
                        continue
                    cut = len(held)  # no text at all
            if text := decode(held[:cut], undecodable, counts):
                yield text
            held = held[cut:]


def _records(part: _Range, key: str, undecodable: Literal["drop", "replace"], counts: Counter[str]) -> Iterator[Piece]:
    """The texts under `key` in lines of JSON. One of them fits in memory."""
    position = part.begin
    with open(part.path, "rb") as file:
        file.seek(part.begin)
        for raw in file:
            if position >= part.end:
                return
            if position == 0 and raw.startswith(BYTE_ORDER_MARK):
                counts["byte_order_marks"] += 1
                position += 3
                raw = raw[3:]
            position += len(raw)
            if raw.isspace():
                counts["empty_lines"] += 1
                continue
            try:
                record = json.loads(decode(raw, undecodable, counts))
            except (ValueError, RecursionError):
                counts["broken_lines"] += 1
                continue
            text = record.get(key) if isinstance(record, dict) else None
            if not isinstance(text, str):
                counts[f"lines_without_{key}"] += 1
                continue
            text, halves = SURROGATES.subn("\ufffd" if undecodable == "replace" else "", text)
            if halves:
                counts["half_characters"] += halves
            if not text or text.isspace():
                counts["empty_texts"] += 1
                continue
            yield from _whole(text[begin : begin + CHUNK] for begin in range(0, len(text), CHUNK))


def _whole(chunks: Iterable[str]) -> Iterator[Piece]:
    """One document of all chunks; none where there is no chunk."""
    held: str | None = None
    for chunk in chunks:
        if held is not None:
            yield Piece(held, last=False)
        held = chunk
    if held is not None:
        yield Piece(held)


def _lines(chunks: Iterable[str]) -> Iterator[Piece]:
    """A document a line, without its end."""
    begun = False  # a long line, of which a piece is out
    for chunk in chunks:
        *lines, rest = chunk.split("\n")
        for line in lines:
            if begun or (line and not line.isspace()):
                yield Piece(line.removesuffix("\r"))
            begun = False
        if rest and (begun or not rest.isspace()):
            yield Piece(rest, last=False)
            begun = True
    if begun:
        yield Piece("")


def _paragraphs(chunks: Iterable[str]) -> Iterator[Piece]:
    """A document between two blank lines; its own lines keep their ends but for the last."""
    held: list[str] = []
    size, begun, at_line_start = 0, False, True
    for chunk in chunks:
        for line in io.StringIO(chunk, newline="\n"):
            if at_line_start and line.isspace():
                if held or begun:
                    yield Piece("".join(held).rstrip("\r\n"))
                held, size, begun = [], 0, False
            else:
                if size > CHUNK:
                    yield Piece("".join(held), last=False)
                    held, size, begun = [], 0, True
                held.append(line)
                size += len(line)
                at_line_start = False
            at_line_start |= line.endswith("\n")
    if held or begun:
        yield Piece("".join(held).rstrip("\r\n"))
