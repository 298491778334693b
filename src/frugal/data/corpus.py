"""Running text as tokens on disk: cleaned, encoded once, and from then on a memory-mapped array. Needs no torch.

    cache/corpus-<hash>/    meta.json        counts, types and sizes
                            tokenizer.json   all that decodes the tokens
                            train.tokens     ids, in the smallest unsigned integers that hold the vocabulary
                            train.documents  int64, where each document ends (behind its separator, if there is one)
    cache/tokenizer-<hash>.json              what was fitted for such a corpus

Text streams through in constant memory, but for 8 bytes a document. A corpus is written beside its place and then
renamed: what has the name is whole. One whose files do not have their sizes or checksums is made anew.
"""

from __future__ import annotations

import bisect
import contextlib
import copy
import fcntl
import functools
import hashlib
import inspect
import json
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from frugal import console
from frugal.data.cleaning import Cleaning
from frugal.data.source import Piece, TextSource
from frugal.errors import DataError, SettingsError
from frugal.record import write_atomic
from frugal.tokenizer.base import Tokenizer

FORMAT = 2  # of the folder; another one makes every corpus anew
FLUSH = 1 << 20  # tokens kept before they are written
SUMMED = 64 << 20  # bytes of a file up to which all of it is in its checksum
ENDS_SUMMED = 64 << 10  # bytes at the begin and at the end of a larger one


class Tokens:
    """A split's tokens, mapped into memory when first used, in each process anew."""

    def __init__(self, folder: Path, file: str, dtype: str, begin: int, end: int) -> None:
        self.folder, self.file, self.dtype = folder, file, dtype
        self.begin, self.end = begin, end
        self._array: np.ndarray | None = None

    def __len__(self) -> int:
        return self.end - self.begin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}  # pickled, a mapped array would travel as a whole

    @property
    def array(self) -> np.ndarray:
        """The ids, read-only (N,)."""
        if self._array is None:
            mapped = np.memmap(self.folder / f"{self.file}.tokens", dtype=self.dtype, mode="r")
            self._array = mapped.view(np.ndarray)[self.begin : self.end]
        return self._array

    def document_edges(self) -> np.ndarray:
        """Where documents begin, and the end of the last: int64 (documents + 1,), from 0 to N."""
        ends = np.memmap(self.folder / f"{self.file}.documents", dtype=np.int64, mode="r").view(np.ndarray)
        inner = ends[np.searchsorted(ends, self.begin, side="right") : np.searchsorted(ends, self.end)]
        return np.concatenate(([0], inner - self.begin, [len(self)]))


class Corpus:
    """A corpus in its folder. `splits` has "train" and, where there are such, "val" and "test"."""

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder, self.meta = folder, meta
        self.splits = {
            name: Tokens(folder, split["file"], meta["dtype"], split["begin"], split["end"])
            for name, split in meta["splits"].items()
        }

    def figures(self) -> dict[str, Any]:
        """Counts: of each split, of what cleaning and reading left out, of what the tokenizer did not know."""
        hidden = ("file", "begin", "end")
        splits = {
            name: {key: value for key, value in split.items() if key not in hidden}
            for name, split in self.meta["splits"].items()
        }
        return {"splits": splits, **{key: self.meta[key] for key in ("cleaning", "dropped", "unknown")}}


def open_corpus(
    source: TextSource, cleaning: Cleaning, tokenizer: Tokenizer, cache: Path, val_fraction: float
) -> Corpus:
    """The corpus of a prepared source, from `cache` or made now; fits the tokenizer unless it is.

    Where the source has no split "val", the last `val_fraction` of the characters of training are that, from a
    document's begin where one is near; the tokenizer is fitted on what stands before. Where the source cut its test
    split itself, documents of it that stand in training too are left out, if `cleaning` drops duplicates. Raises
    DataError.
    """
    if not 0 <= val_fraction < 1:
        raise SettingsError(f"data.val_fraction={val_fraction} is not in [0, 1)")
    cut = 0.0 if "val" in source.splits else val_fraction
    origin = [FORMAT, source.sha256(), settings_of(cleaning), cut]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        border = functools.cache(lambda: _border(source, cleaning, tokenizer, cut) if cut else None)  # once for both
        if not tokenizer.fitted:
            path = cache / f"tokenizer-{_hash(origin, settings_of(tokenizer))}.json"
            _fit_once(source, cleaning, tokenizer, path, border)
        folder = cache / f"corpus-{_hash(origin, tokenizer.sha256())}"
        found = _whole(folder)
        if found is None:
            with _locked(folder):
                found = _whole(folder) or _make(source, cleaning, tokenizer, folder, border)
    except OSError as error:
        raise DataError(
            f"{error.filename or cache}: the encoded text cannot be kept there ({error.strerror}); "
            "set paths.cache_dir (FRUGAL_CACHE_DIR) to a folder with room"
        ) from None
    return found


def settings_of(thing: Any) -> dict[str, Any]:
    """The class of an object and the values of its constructor's parameters, which it keeps under their names."""
    names = [name for name in inspect.signature(type(thing)).parameters if hasattr(thing, name)]
    return {"class": f"{type(thing).__module__}.{type(thing).__qualname__}"} | {n: getattr(thing, n) for n in names}


def _cleaned(
    source: TextSource, cleaning: Cleaning, tokenizer: Tokenizer, split: str, seen: set[int] | None = None
) -> Iterator[Piece]:
    """What cleaning leaves of a split; those that are measured on stay whole. Documents that no separator tells apart
    end with their line at least: words would run into each other."""
    held: Piece | None = None
    for piece in cleaning.documents(source.documents(split), split == "train", seen):
        if held is not None:
            ends = not held.last or tokenizer.separator is not None or held.text.endswith("\n")
            yield held if ends else Piece(held.text + "\n")
        held = piece
    if held is not None:
        yield held


# ---------------------------------------------------------------------------------------------------------- tokenizer
def _fit_once(
    source: TextSource, cleaning: Cleaning, tokenizer: Tokenizer, path: Path, border: Callable[[], int | None]
) -> None:
    """Fit on the training split without what becomes validation, or take what was fitted on the same before."""
    with _locked(path):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            tokenizer.load_state_dict(json.loads(path.read_text()))
            return
        limit, reader, cleaner = border(), copy.deepcopy(source), copy.deepcopy(cleaning)  # whose counts are nobody's
        with console.progress(f"Fitting {type(tokenizer).__name__}", unit="B") as bar:
            tokenizer.fit(_texts(_cleaned(reader, cleaner, tokenizer, "train"), limit, bar))
        tokenizer.unknown_count = 0
        write_atomic(path, json.dumps(tokenizer.state_dict()))


def _texts(pieces: Iterator[Piece], limit: int | None, bar: console.Bar) -> Iterator[str]:
    """The texts of pieces, up to `limit` characters in all."""
    given = 0
    for piece in pieces:
        text = piece.text if limit is None else piece.text[: limit - given]
        given += len(text)
        bar.advance(len(text))
        if text:
            yield text
        if given == limit:
            return


def _border(source: TextSource, cleaning: Cleaning, tokenizer: Tokenizer, fraction: float) -> int | None:
    """How many characters of training stay so when the last `fraction` becomes validation: up to a document's end where
    one is near. None where nothing could be predicted."""
    ends, total = array("q"), 0
    with console.progress("Counting characters", unit="B") as bar:
        for text, last in _cleaned(copy.deepcopy(source), copy.deepcopy(cleaning), tokenizer, "train"):
            total += len(text)
            bar.advance(len(text))
            if last:
                ends.append(total)
    wanted = min(round(total * fraction), total - 1)
    if wanted < 2:
        return None
    place = bisect.bisect_left(ends, total - wanted)
    end = ends[place] if place < len(ends) else total
    return end if total - end >= wanted / 2 else total - wanted


# ------------------------------------------------------------------------------------------------------------- making
def _make(
    source: TextSource, cleaning: Cleaning, tokenizer: Tokenizer, folder: Path, border: Callable[[], int | None]
) -> Corpus:
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):  # of makers that were killed: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        dtype = np.min_scalar_type(tokenizer.vocabulary - 1)
        meta: dict[str, Any] = {
            "format": FORMAT,
            "dtype": dtype.name,
            "vocabulary": tokenizer.vocabulary,
            "tokenizer": type(tokenizer).__name__,
            "tokenizer_sha256": tokenizer.sha256(),
            "source_sha256": source.sha256(),
        }
        meta |= {"files": {}, "splits": {}, "cleaning": {}, "dropped": {}, "unknown": {}}
        seen: set[int] | None = None if source.own_splits else set()
        for split in sorted(source.splits, key="train".__ne__):  # what the others may not repeat is known first
            # each split is read afresh: every count begins at 0
            reader, cleaner = copy.deepcopy(source), copy.deepcopy(cleaning)
            tokenizer.unknown_count = 0
            pieces = _cleaned(reader, cleaner, tokenizer, split, seen)
            cut = border() if split == "train" else None
            before, counts = _encode(pieces, tokenizer, temporary / split, dtype, f"Encoding {split} text", cut)
            if not counts["tokens"]:
                raise DataError(f"data.source: no text is left in the {split} split of {source}")
            meta["files"][split] = {"tokens": counts["tokens"], "documents": counts["documents"]}
            meta["splits"][split] = {"file": split, "begin": 0, "end": counts["tokens"], **counts}
            meta["unknown"][split] = tokenizer.unknown_count
            if before is not None and counts["tokens"] - before["tokens"] >= 2:  # something to predict
                _cut_validation(meta, before)
            meta["cleaning"][split] = {key: int(value) for key, value in cleaner.counts.items()}
            meta["dropped"][split] = {key: int(value) for key, value in reader.dropped.items()}
        (temporary / "tokenizer.json").write_text(json.dumps(tokenizer.state_dict()))
        meta["checksums"] = {path.name: _checksum(path) for path in sorted(temporary.iterdir())}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)  # damaged, or it would have been taken
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Corpus(folder, meta)


def _encode(
    pieces: Iterator[Piece], tokenizer: Tokenizer, path: Path, dtype: np.dtype, title: str, cut: int | None
) -> tuple[dict[str, int] | None, dict[str, int]]:
    """Write `path`.tokens and `path`.documents; how many documents, characters, bytes and tokens there were, and how
    many of them, and unknowns, up to so many characters as `cut`."""
    before: dict[str, int] | None = None
    separator = None if tokenizer.separator is None else np.array([tokenizer.separator], dtype=dtype)
    documents = characters = size = 0
    inside = False  # whether a document has begun and not ended
    with (
        open(f"{path}.tokens", "wb") as tokens_file,
        open(f"{path}.documents", "wb") as documents_file,
        console.progress(title, unit="B") as bar,
    ):
        tokens, ends = _Out(tokens_file, dtype), _Out(documents_file, np.dtype(np.int64))

        def end_document() -> None:
            nonlocal documents
            if separator is not None:
                tokens.add(separator)
            documents += 1
            ends.add(np.array([tokens.count]))

        def note() -> None:
            nonlocal before
            before = {"documents": documents, "characters": characters, "bytes": size, "tokens": tokens.count}
            before |= {"inside": int(inside), "unknown": tokenizer.unknown_count}

        for text, last in _split_at(pieces, cut):
            if characters == cut and text and before is None:
                note()
            length = len(text) if text.isascii() else len(text.encode(errors="replace"))
            characters += len(text)
            size += length
            if tokens.add(tokenizer.encode(text)):
                bar.advance(size - bar.done)
            inside = not last
            if last:
                end_document()
        if inside:
            end_document()
        tokens.flush()
        ends.flush()
        if bar.done:
            bar.advance(size - bar.done)
    return before, {"documents": documents, "characters": characters, "bytes": size, "tokens": tokens.count}


def _split_at(pieces: Iterator[Piece], cut: int | None) -> Iterator[Piece]:
    """The same pieces, but that one of them ends after so many characters in all."""
    left = cut or 0
    for text, last in pieces:
        if 0 < left < len(text):
            yield Piece(text[:left], last=False)
            yield Piece(text[left:], last)
        else:
            yield Piece(text, last)
        left -= len(text)


class _Out:
    """Arrays written to a file one after the other, many small ones together."""

    def __init__(self, file: BinaryIO, dtype: np.dtype) -> None:
        self.file, self.dtype, self.count = file, dtype, 0
        self.kept: list[np.ndarray] = []
        self.room = FLUSH

    def add(self, array: np.ndarray) -> bool:
        """Whether it was written with this one."""
        self.kept.append(array)
        self.count += len(array)
        self.room -= len(array) + 16  # so that a list of many empty ones ends too
        if self.room > 0:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        if self.kept:
            # an item at a time where it is large: joined, it would be in memory twice
            parts = self.kept if len(self.kept) < 8 else [np.concatenate(self.kept)]
            for part in parts:
                self.file.write(part.astype(self.dtype, copy=False).data)
        self.kept, self.room = [], FLUSH


def _cut_validation(meta: dict[str, Any], before: dict[str, int]) -> None:
    """Make what follows the counts `before` of training the split "val". A document cut in two is one of both."""
    whole, cut = meta["splits"]["train"], before["tokens"]
    units = ("characters", "bytes", "tokens")
    train = {"documents": before["documents"] + before["inside"]} | {name: before[name] for name in units}
    val = {name: whole[name] - before[name] for name in ("documents", *units)}
    meta["splits"]["train"] = {"file": "train", "begin": 0, "end": cut, **train}
    meta["splits"]["val"] = {"file": "train", "begin": cut, "end": whole["end"], **val}
    meta["unknown"] |= {"train": before["unknown"], "val": meta["unknown"]["train"] - before["unknown"]}


# -------------------------------------------------------------------------------------------------------------- files
def _whole(folder: Path) -> Corpus | None:
    """The corpus in `folder`, unless it is missing or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        width = np.dtype(meta["dtype"]).itemsize
        sizes = {"tokenizer.json": None}
        for name, file in meta["files"].items():
            sizes |= {f"{name}.tokens": file["tokens"] * width, f"{name}.documents": file["documents"] * 8}
        for name, size in sizes.items():
            found = (folder / name).stat().st_size
            if size is not None and found != size:
                console.say(f"{folder / name}: {found:,} bytes instead of {size:,}; the corpus is made anew")
                return None
        for name, checksum in meta["checksums"].items():
            if _checksum(folder / name) != checksum:
                console.say(f"{folder / name}: not what was written; the corpus is made anew")
                return None
        return Corpus(folder, meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _checksum(path: Path) -> str:
    """Of the whole file, or of both ends of one that takes long to read."""
    with open(path, "rb") as file:
        if path.stat().st_size <= SUMMED:
            return hashlib.file_digest(file, "sha256").hexdigest()
        found = hashlib.sha256(file.read(ENDS_SUMMED))
        file.seek(-ENDS_SUMMED, 2)
        found.update(file.read())
        return found.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process makes what belongs at `path`. The kernel frees the lock of one that is killed."""
    with open(path.parent / f".{path.name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.say(f"{path.name}: another process is making it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
