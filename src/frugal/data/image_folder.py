"""The user's own images: a folder a class, in splits or not. What cannot be read is counted in `dropped` and left out.

Images are decoded once (see `images.py`) and kept as one array below the cache folder, under the hash of the files and
of how they were read:

    cache/images-<hash>.npy     uint8 (N, C, H, W), a row a file, zeros where one cannot be read
    cache/images-<hash>.json    which rows those are, and the file's checksum
    cache/hashes-<hash>.json    of the files of one folder, with the sizes, times and inodes that they hold for
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from frugal import console
from frugal.data.images import Header, UnreadableImage, is_hidden, is_image, read_headers, read_images, walk
from frugal.data.room import refuse_too_large
from frugal.data.source import ArraySource, Split
from frugal.data.split import cut_test
from frugal.data.text_file import told
from frugal.errors import DataError, SettingsError
from frugal.record import write_atomic

FORMAT = 2  # of the cache; another one decodes everything anew
SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}  # folders' names
OWN_SIZE = 256  # pixels of a side up to which images that are all of one size keep it
OTHER_SIZE = 32  # pixels of a side of all others
RECENT_NS = 2_000_000_000  # a file that changed so lately may change again within one tick of the file system's clock

T = TypeVar("T")


class ImageFolder(ArraySource):
    """Images (N, C, H, W), uint8, of `path`/CLASS/* or `path`/train/CLASS/*; labels are the classes' names, sorted.

    Beside train/ there may be test/ and val/ with the same classes. Without test/, the share `test_fraction` of each
    class is cut with `split_seed`; images whose pixels are equal stay on one side. Folders within a class's folder
    belong to it; links to folders are followed where they are a class or a split, and passed over within a class.

    `size` is a side of a square or [height, width]; None takes that of the images where they all have the same, of at
    most 256 pixels a side, else 32. `channels` is 1 or 3; None takes 1 where all images are grey. `cache` is where
    decoded images are kept; None decodes them each time.
    """

    task: ClassVar[str] = "classification"
    places: ClassVar[tuple[str, ...]] = ("path", "cache")
    own_splits = False  # until it is found that there is a test/

    def __init__(
        self,
        path: str,
        size: int | list[int] | None = None,
        channels: int | None = None,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        cache: str | None = None,
    ) -> None:
        if not path:
            raise SettingsError("data.source.path: name a folder that has a folder of images for each class")
        sides = [size, size] if isinstance(size, int) else size
        if sides is not None and (len(sides) != 2 or min(sides) < 1):
            raise SettingsError(f"data.source.size={size}: it is a number of pixels, [height, width], or null")
        if channels not in (None, 1, 3):
            raise SettingsError(f"data.source.channels={channels}: it is 1 (grey), 3 (colour) or null")
        if not 0 < test_fraction < 1:
            raise SettingsError(f"data.source.test_fraction={test_fraction}: it is above 0 and below 1")
        self.path = Path(path).expanduser()
        self.size = None if sides is None else (sides[0], sides[1])
        self.channels, self.test_fraction, self.split_seed = channels, test_fraction, split_seed
        self.cache = None if cache is None else Path(cache).expanduser()
        self.class_names: list[str] | None = None
        self.classes: int | None = None
        self.dropped: dict[str, int] = {}

    def __str__(self) -> str:
        return f"ImageFolder({self.path})"

    def sha256(self) -> str:
        found = _find(self.path)
        cut = None if "test" in found.splits else (self.test_fraction, self.split_seed)
        how = (self.size, self.channels, cut, found.class_names, found.splits)
        identity = hashlib.sha256(repr(how).encode())
        identity.update("".join(self._hashes(found.files)).encode())
        return identity.hexdigest()

    def prepare(self) -> None:
        """See whether the folder is as it should be; what stands in the files is seen when they are read."""
        _find(self.path)

    def load(self) -> dict[str, Split]:
        found = _find(self.path)
        rows, unread = self._decoded(found.files)
        labels = np.array([label for part in found.splits.values() for label in part], dtype=np.int64)
        readable = np.ones(len(labels), dtype=bool)
        readable[list(unread)] = False
        counts = found.counts + Counter(unread.values())
        splits, begin = {}, 0
        for split, part in found.splits.items():
            kept = begin + np.flatnonzero(readable[begin : begin + len(part)])
            splits[split], begin = Split(rows[kept], labels[kept]), begin + len(part)
            if not len(kept):
                raise DataError(f"{self.path}: no image of the {split} split can be read{told(counts)}")
        for label in sorted(set(range(len(found.class_names))) - set(splits["train"].y.tolist())):
            name = found.class_names[label]
            raise DataError(f"{self.path}: no image of the class {name!r} can be read to train on{told(counts)}")
        self.own_splits = "test" in splits
        if not self.own_splits:
            splits |= cut_test(splits["train"], self.test_fraction, self.split_seed)
            if not len(splits["test"]):
                raise DataError(
                    f"{self.path}: {len(splits['train'])} images leave none for testing; give it more, "
                    "or set data.source.test_fraction higher"
                )
        self.class_names, self.classes, self.dropped = found.class_names, len(found.class_names), dict(counts)
        return splits

    # ----------------------------------------------------------------------------------------------- what files hold
    def _hashes(self, files: Sequence[str]) -> list[str]:
        """The SHA-256 of each file; of those that did not change since, as it was kept."""
        kept_at = None
        known: dict[str, Any] = {}
        if self.cache is not None:
            name = hashlib.sha256(str(self.path.absolute()).encode()).hexdigest()[:16]
            kept_at = self.cache / f"hashes-{name}.json"
            with contextlib.suppress(OSError, ValueError, RecursionError):
                known = json.loads(kept_at.read_text())
        known = known if isinstance(known, dict) else {}
        status = _each_file(self.path, files, os.stat)
        # a time of change may be set to any, but not that of the inode, and files may change their names
        stamps = [[found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino] for found in status]
        changed = [i for i, name in enumerate(files) if not _holds(known.get(name), stamps[i])]
        if not changed:
            return [known[name][-1] for name in files]
        with console.progress("Hashing images", sum(stamps[i][0] for i in changed), "B") as bar:
            digests = _each_file(self.path, [files[i] for i in changed], _sha256)
            for i, digest in zip(changed, digests, strict=False):
                known[files[i]] = [*stamps[i], digest]
                bar.advance(stamps[i][0])
        latest = time.time_ns() - RECENT_NS
        keep = {name: known[name] for name, stamp in zip(files, stamps, strict=True) if max(stamp[1:3]) < latest}
        if kept_at is not None and keep:
            with contextlib.suppress(OSError):  # then they are hashed again
                kept_at.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(kept_at, json.dumps(keep))
        return [known[name][-1] for name in files]

    # -------------------------------------------------------------------------------------------------- decoded images
    def _decoded(self, files: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
        """Rows (N, C, H, W) for all files, and why those that cannot be read are zeros, by row."""
        if self.cache is None:
            shape = self._shape(files)
            array = np.zeros(shape, np.uint8)
            unread: dict[int, str] = {}
            for i, row in enumerate(self._rows(files, shape, unread)):
                array[i] = row
            return array, unread
        how = (FORMAT, importlib.metadata.version("pillow"), self.size, self.channels, self._hashes(files))
        path = self.cache / f"images-{hashlib.sha256(repr(how).encode()).hexdigest()[:16]}.npy"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return _whole(path, len(files)) or self._make(path, files)
        except OSError as error:
            raise DataError(
                f"{error.filename or path}: the decoded images cannot be kept there ({error.strerror}); "
                "set paths.cache_dir (FRUGAL_CACHE_DIR) to a folder with room"
            ) from None

    def _make(self, path: Path, files: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
        """Write the array beside its place, then rename it. Another process that wants the same waits."""
        with open(path.with_name(f".{path.name}.part"), "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.say(f"{path.name}: another process is making it; waiting")
                fcntl.flock(file, fcntl.LOCK_EX)
            made = _whole(path, len(files))
            if made is not None:
                return made
            file.truncate(0)  # of one that was killed
            unread: dict[int, str] = {}
            shape = self._shape(files)
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.write(head.getvalue())
            checksum = hashlib.sha256(head.getvalue())
            for row in self._rows(files, shape, unread):
                file.write(row.data)
                checksum.update(row.data)
            file.flush()
            write_atomic(path.with_suffix(".json"), json.dumps({"sha256": checksum.hexdigest(), "unread": unread}))
            os.replace(file.name, path)
            return np.load(path, mmap_mode="r"), unread

    def _rows(self, files: Sequence[str], shape: tuple[int, ...], unread: dict[int, str]) -> Iterator[np.ndarray]:
        blank = np.zeros(shape[1:], np.uint8)
        paths = (self.path / name for name in files)
        with console.progress("Decoding images", len(files), "images") as bar:
            for i, image in enumerate(read_images(paths, (shape[2], shape[3]), shape[1])):
                if isinstance(image, UnreadableImage):
                    unread[i] = image.reason
                yield blank if isinstance(image, UnreadableImage) else image.array
                bar.advance()

    def _shape(self, files: Sequence[str]) -> tuple[int, int, int, int]:
        """Of all images together. Raises DataError where that is more than fits into memory."""
        size, channels = self.size, self.channels
        if size is None or channels is None:
            with console.progress("Reading images' sizes", len(files), "images") as bar:
                headers = []
                for found in read_headers(self.path / name for name in files):
                    headers += [found] if isinstance(found, Header) else []
                    bar.advance()
            if not headers:
                raise DataError(f"{self.path}: none of {len(files):,} images can be read")
            sizes = {found.size for found in headers}
            if size is None and len(sizes) == 1 and max(next(iter(sizes))) <= OWN_SIZE:
                size = sizes.pop()
            elif size is None:
                size = (OTHER_SIZE, OTHER_SIZE)
                console.say(
                    f"{self.path}: images of {len(sizes):,} sizes are brought to {OTHER_SIZE}x{OTHER_SIZE}; "
                    "data.source.size=64, say, for another"
                )
            channels = channels or (1 if all(found.grey for found in headers) else 3)
        shape = (len(files), channels, *size)
        refuse_too_large(
            f"{self.path}: {len(files):,} images of {size[0]}x{size[1]}",
            int(np.prod(shape, dtype=np.int64)),
            "set data.source.size smaller",
        )
        return shape


def _holds(known: Any, stamp: list[int]) -> bool:
    return isinstance(known, list) and known[:-1] == stamp and isinstance(known[-1], str)


def _each_file(folder: Path, files: Sequence[str], ask: Callable[[str], T]) -> Iterator[T]:
    for name in files:
        path = os.path.join(folder, name)
        try:
            yield ask(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole(path: Path, rows: int) -> tuple[np.ndarray, dict[int, str]] | None:
    """A kept array and which of its rows could not be read, and why; None where it is missing or damaged."""
    try:
        meta = json.loads(path.with_suffix(".json").read_text())
        if _sha256(str(path)) == meta["sha256"]:
            array = np.load(path, mmap_mode="r")
            unread = {int(row): str(reason) for row, reason in meta["unread"].items()}
            if (
                array.dtype == np.uint8
                and len(array.shape) == 4
                and len(array) == rows
                and all(0 <= row < rows for row in unread)
            ):
                return array, unread
        console.say(f"{path}: not what was written; the images are decoded anew")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return None


# ---------------------------------------------------------------------------------------------------------- the folders
class _Found(NamedTuple):
    """What there is to read."""

    class_names: list[str]
    splits: dict[str, list[int]]  # the label of each image; train, val and test in this order
    files: list[str]  # of all splits, one after the other, relative to the folder
    counts: Counter[str]  # what was passed over


def _find(path: Path) -> _Found:
    """Which of the two layouts a folder has, and what lies in it. Raises DataError."""
    if not path.is_dir():
        what = "a file; name the folder it lies in" if path.is_file() else "there is no such folder"
        raise DataError(f"data.source.path={path}: {what}")
    counts: Counter[str] = Counter()
    top = _folders(path, counts)
    parts = {name: SPLITS[name.lower()] for name in top if name.lower() in SPLITS}
    # a class may be called train too, as long as there are no folders in it
    split = {name: part for name, part in parts.items() if _folders(path / name, Counter())}
    if not split:
        if parts and len(parts) == len(top):
            raise DataError(f"{path}: {top[0]}/ has no folder a class in it; put {top[0]}/CLASS/* there")
        return _listed(path, {"train": path}, counts)
    for name in top:
        if name in parts and name not in split:
            raise DataError(
                f"{path}: {name}/ has no folder a class in it, as {next(iter(split))}/ has; make these, or move it "
                "away (images without a class are for frugal predict)"
            )
        if name not in parts:
            raise DataError(
                f"{path}: {next(iter(split))}/ has folders of classes in it, and {name}/ lies beside it; "
                "take either train/CLASS/* or CLASS/*"
            )
    for part in ("train", "val", "test"):
        names = [name for name in split if split[name] == part]
        if len(names) > 1:
            raise DataError(f"{path}: {' and '.join(f'{name}/' for name in names)} are both the {part} split; keep one")
    if "train" not in split.values():
        raise DataError(f"{path}: has {next(iter(split))}/ but no train/")
    return _listed(path, {part: path / name for name, part in split.items()}, counts)


def _folders(path: Path, counts: Counter[str]) -> list[str]:
    """The folders right in a folder; what else lies there is counted."""
    found = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    counts["hidden_files"] += 1
                elif os.path.isdir(entry.path):  # entry.is_dir() raises where a link leads to itself
                    found.append(entry.name)
                else:
                    counts["images_without_a_class" if is_image(entry.name) else "other_files"] += 1
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return sorted(found)


def _listed(path: Path, splits: dict[str, Path], counts: Counter[str]) -> _Found:
    names = _folders(splits["train"], Counter() if splits["train"] == path else counts)
    if len(names) < 2:
        found = f"only the class {names[0]!r}" if names else "no folder of a class"
        raise DataError(
            f"{splits['train']}: {found}{told(counts)}; it needs a folder of images for each of two classes or more"
        )
    labels: dict[str, list[int]] = {}
    files: list[str] = []
    for split in ("train", "val", "test"):
        if split not in splits:
            continue
        labels[split], at = [], splits[split]
        for name in names if split == "train" else _folders(at, counts):
            if name not in names:
                raise DataError(f"{at}: has a class {name!r}, which {splits['train']} lacks")
            images, passed = _images(at / name)
            counts += passed
            if split == "train" and not images:
                raise DataError(f"{at / name}: no image{told(passed)}; give it some, or remove the folder")
            prefix = os.path.relpath(at / name, path)
            files += [os.path.join(prefix, image) for image in images]
            labels[split] += [names.index(name)] * len(images)
        if not labels[split]:
            raise DataError(f"{at}: no image{told(counts)}; give it some, or remove the folder")
    return _Found(names, labels, files, counts)


def _images(folder: Path) -> tuple[list[str], Counter[str]]:
    """The images in a folder and those within, and counts of what else lies there."""
    images: list[str] = []
    counts: Counter[str] = Counter()
    for listing in walk(folder):
        images += listing.images
        counts["other_files"] += len(listing.others)
        counts["hidden_files"] += len(listing.hidden)
        counts["links_not_followed"] += len(listing.links)
    return images, +counts
