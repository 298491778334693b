"""The user's own table: a column of texts and a column of labels, comma- or otherwise separated, with any number of
classes.

Rows that cannot be used are counted in `dropped` by reason and left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from frugal.data.source import LabelledTexts, LabelledTextSource
from frugal.data.split import holdout_copies
from frugal.data.text_file import BYTE_ORDER_MARK, check_text, decode, file_sha256, told
from frugal.errors import DataError, SettingsError

DELIMITERS = (",", "\t", ";", "|")
SNIFFED = 200  # rows that delimiter and header are told from
IDENTITIES = 20  # rows with a label of their own each, from which on that column cannot be the label

Rows = list[tuple[str, str]]  # text and label


class CSVText(LabelledTextSource):
    """Texts and labels of a .csv or .tsv file; classes are the labels of the training rows, sorted.

    `text` and `label` are columns by name, or by number from 0. By name the first row is the header, by number it is
    one where its label is no other row's; `header` says so where that is wrong. `delimiter` null is found from , ; |
    and tab. `quote` null takes quotation marks for text like any other.

    `test` and `val` are further files of the same form. Without `test`, the share `test_fraction` of each class is cut
    with `split_seed`.
    """

    places: ClassVar[tuple[str, ...]] = ("path", "test", "val")

    def __init__(
        self,
        path: str,
        test: str | None = None,
        val: str | None = None,
        text: str | int = "text",
        label: str | int = "label",
        delimiter: str | None = None,
        header: bool | None = None,
        quote: str | None = '"',
        test_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        if not path:
            raise SettingsError("data.source.path: name a .csv or .tsv file")
        delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter or "", delimiter)
        for key, character in (("delimiter", delimiter), ("quote", quote)):
            if character is not None and (len(character) != 1 or character in "\r\n"):
                raise SettingsError(f"data.source.{key}={character!r}: it is one character, or null")
        if delimiter is not None and delimiter == quote:
            raise SettingsError(f"data.source.delimiter={delimiter!r}: data.source.quote is the same")
        if text == label:
            raise SettingsError(f"data.source.label={label}: data.source.text is the same column")
        if header is False and (isinstance(text, str) or isinstance(label, str)):
            raise SettingsError("data.source.header=false: without a header, columns are numbers, from 0")
        if not 0 < test_fraction < 1:
            raise SettingsError(f"data.source.test_fraction={test_fraction}: it is above 0 and below 1")
        files = {"train": path, "val": val, "test": test}
        self.path = path
        self.paths = {split: Path(name).expanduser() for split, name in files.items() if name}
        self.text, self.label, self.delimiter, self.header, self.quote = text, label, delimiter, header, quote
        self.test_fraction, self.split_seed = test_fraction, split_seed
        self.own_splits = bool(test)
        self._header: list[str] | None = None  # of the file to train on, after it was read
        self.class_names: list[str] | None = None
        self.classes: int | None = None
        self.dropped: dict[str, int] = {}

    def sha256(self) -> str:
        self.prepare()
        cut = None if "test" in self.paths else (self.test_fraction, self.split_seed)
        how = (self.text, self.label, self.delimiter, self.header, self.quote, cut)
        files = [(split, path.suffix.lower() == ".tsv", file_sha256(path)) for split, path in self.paths.items()]
        return hashlib.sha256(repr((how, files)).encode()).hexdigest()

    def prepare(self) -> None:
        for split, path in self.paths.items():
            if not path.is_file():
                key = "path" if split == "train" else split
                raise DataError(f"data.source.{key}={path}: there is no such file")
            check_text(path)

    def load(self) -> dict[str, LabelledTexts]:
        self.prepare()
        counts: Counter[str] = Counter()
        rows = {split: self._rows(split, counts) for split in self.paths}  # the one to train on first
        names = sorted({label for _, label in rows["train"]}, key=_in_order)
        path, number = self.paths["train"], len(rows["train"])
        if len(names) < 2:
            found = f"only the label {_short(names[0])!r}" if names else "no row"
            raise DataError(f"{path}: {found} to train on{told(counts)}; a classifier needs two classes or more")
        if len(names) == number >= IDENTITIES:
            raise DataError(
                f"{path}: each of {number} rows has a label of its own; "
                f"is data.source.label={self.label} the right column?"
            )
        numbers = {name: i for i, name in enumerate(names)}
        splits = {split: self._labelled(found, numbers, counts) for split, found in rows.items()}
        if "test" not in splits:
            train = splits["train"]
            held = holdout_copies(train.texts, train.y, self.test_fraction, self.split_seed)
            for split, chosen in (("train", ~held), ("test", held)):
                kept = np.flatnonzero(chosen)
                splits[split] = LabelledTexts([train.texts[i] for i in kept], train.y[kept])
        for split, labelled in splits.items():
            if not len(labelled):
                source = self.paths.get(split, path)
                raise DataError(f"{source}: no row for the {split} split{told(counts)}; give it more rows")
        self.class_names, self.classes, self.dropped = names, len(names), dict(counts)
        return splits

    @staticmethod
    def _labelled(rows: Rows, numbers: dict[str, int], counts: Counter[str]) -> LabelledTexts:
        known = [(text, numbers[label]) for text, label in rows if label in numbers]
        if len(known) < len(rows):
            counts["unknown_labels"] += len(rows) - len(known)
        return LabelledTexts([text for text, _ in known], np.array([label for _, label in known], dtype=np.int64))

    def _rows(self, split: str, counts: Counter[str]) -> Rows:
        """The rows of a file that can be used."""
        path = self.paths[split]
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        if raw.startswith(BYTE_ORDER_MARK):
            counts["byte_order_marks"] += 1
            raw = raw[len(BYTE_ORDER_MARK) :]
        lines = io.StringIO(decode(raw, "drop", counts), newline="").readlines()  # with \n, \r\n or \r
        table = parse(lines, self.delimiter or self._delimiter(path, lines), self.quote, counts)
        if not table:
            raise DataError(f"{path}: no row{told(counts)}")
        first = [cell.strip() for cell in table[0]]
        text, label = self._column(first, self.text, "text", path), self._column(first, self.label, "label", path)
        has_header = self._has_header(split, table, first, label)
        if split == "train":
            self._header = first if has_header else None
        width = len(first) if has_header else Counter(map(len, table)).most_common(1)[0][0]
        rows = []
        for row in table[has_header:]:
            if len(row) <= max(text, label):
                counts["too_few_columns"] += 1
            elif len(row) > width and any(cell.strip() for cell in row[width:]):
                counts["too_many_columns"] += 1
            elif not row[text].strip():
                counts["empty_texts"] += 1
            elif not row[label].strip():
                counts["empty_labels"] += 1
            else:
                rows.append((row[text], row[label].strip()))
        return rows

    def _column(self, first: list[str], name: str | int, key: str, path: Path) -> int:
        """Where a column stands; `first` is the first row."""
        if isinstance(name, int):
            if 0 <= name < len(first):
                return name
            there = f"columns are 0 to {len(first) - 1}"
        else:
            for exact in (True, False):
                for i, cell in enumerate(first):
                    if cell == name if exact else cell.casefold() == name.casefold():
                        return i
            there = "its first row has " + ", ".join(repr(_short(cell)) for cell in first[:20])
            there += f"; name one of these, or set data.source.{key} to a number, from 0"
        raise DataError(f"data.source.{key}={name}: {path} has no such column; {there}")

    def _has_header(self, split: str, table: list[list[str]], first: list[str], label: int) -> bool:
        if isinstance(self.text, str) or isinstance(self.label, str):
            return True
        if self.header is not None:
            return self.header
        if split != "train":
            return first == self._header
        others = {row[label].strip() for row in table[1:] if len(row) > label}
        return first[label] not in others and not is_number(first[label])

    def _delimiter(self, path: Path, lines: list[str]) -> str:
        """The one that cuts most of the first rows into the same number of columns, two or more."""
        wanted = {name.casefold() for name in (self.text, self.label) if isinstance(name, str)}
        best: tuple[bool, float] = (False, 0.0)
        found = None
        for delimiter in sorted(DELIMITERS, key=lambda d: d != "\t") if path.suffix.lower() == ".tsv" else DELIMITERS:
            table = parse(lines[:SNIFFED], delimiter, self.quote, Counter())
            sizes = Counter(len(row) for row in table if len(row) > 1)
            if not sizes:
                continue
            named = wanted <= {cell.strip().casefold() for cell in table[0]}
            score = (named, sizes.most_common(1)[0][1] / len(table))
            if score > best:
                best, found = score, delimiter
        if found is None and any(not line.isspace() for line in lines):
            raise DataError(f"{path}: one column only, by any of , ; | and tab; set data.source.delimiter")
        return found or DELIMITERS[0]


def parse(lines: list[str], delimiter: str, quote: str | None, counts: Counter[str]) -> list[list[str]]:
    """The rows in `lines`, of any number of cells; empty ones are counted and left out."""
    table = []
    for row in rows(lines, delimiter, quote):
        if any(cell and not cell.isspace() for cell in row):
            table.append(row)
        else:
            counts["empty_rows"] += 1
    return table


def rows(lines: list[str], delimiter: str, quote: str | None) -> Iterator[list[str]]:
    """The rows in `lines`, of any number of cells, the empty ones too.

    A row whose quotation marks do not add up would swallow others: its first line is then taken alone, as it stands.
    """
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    begin = 0
    try:
        while begin < len(lines):
            offset = begin
            rest = (lines[i] for i in range(begin, len(lines)))
            reader = _reader(rest, delimiter, quote, strict=True)
            try:
                for row in reader:
                    begin = offset + reader.line_num
                    yield row
            except csv.Error:
                yield next(_reader(iter(lines[begin : begin + 1]), delimiter, quote, strict=False), [])
                begin += 1
    finally:
        csv.field_size_limit(limit)


def _reader(lines: Iterator[str], delimiter: str, quote: str | None, strict: bool) -> Any:
    if quote is None:
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=delimiter, quotechar=quote, strict=strict)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _in_order(label: str) -> tuple[bool, int, str]:
    """Whole numbers by their value and before other labels, those by their characters."""
    whole = label.removeprefix("-").isdecimal()
    return not whole, int(label) if whole else 0, label


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
