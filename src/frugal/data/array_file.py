"""The user's own arrays: an .npz with samples and targets, or two .npy files; images or a table, classes or numbers.

Arrays of an .npz are known by their names, in any case: `x`, `images`, `data`, `features` or `inputs` hold samples,
`y`, `labels`, `label`, `targets` or `target` their targets, alone or with a split's name before or after: x_train,
y_train, test_images, val_labels. `feature_names` and `class_names` (or `target_names`) may stand beside them; others
are not looked at. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np

from frugal.data.room import refuse_too_large
from frugal.data.source import ArraySource, Split
from frugal.data.split import cut_test
from frugal.data.text_file import file_sha256
from frugal.errors import DataError, FrugalError, SettingsError

KINDS = dict.fromkeys(("x", "images", "data", "features", "inputs"), "x")
KINDS |= dict.fromkeys(("y", "labels", "label", "targets", "target"), "y")
SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
NAMES = {"feature_names": "features", "class_names": "classes", "target_names": "classes"}
CHANNELS = (1, 2, 3, 4)  # what a dimension of images is taken for channels by
MERGED = 0.1  # of a column's distinct values: where float32 makes more than these equal to others, it cannot stand in
LOOKED_AT = 1 << 12  # rows of a table by which this is seen
VALUES_LOOKED_AT = 1 << 22
NOISE = 1e-12  # relative differences below are those of computing, which float32 may lose
OWN_CLASSES = 20  # samples with a class of their own each, from which on targets cannot be classes
NPY, NPZ = b"\x93NUMPY", b"PK"  # how their files begin

Layout = Literal["auto", "channels_first", "channels_last"]


class ArrayFile(ArraySource):
    """Samples of an .npz or .npy file: images (N, H, W), (N, C, H, W) or (N, H, W, C), or a table (N, F).

    Images of bytes stay bytes; everything else becomes float32. `layout` says where the channels of 4-d arrays are;
    "auto" tells it by which of the two dimensions is 1 to 4, if one of them only is. `targets` is the .npy file that
    belongs to an .npy.

    With `task` "classification" targets are whole numbers, text, or one-hot rows; those that are not 0, 1, 2, ... are
    numbered in order and keep their value as the class's name. With "regression" they are numbers. Without a test split
    of its own, the share `test_fraction` is cut with `split_seed`, of each class; equal samples stay on one side.
    """

    places: ClassVar[tuple[str, ...]] = ("path", "targets")
    own_splits = False  # until it is found that there is a test split

    def __init__(
        self,
        path: str,
        targets: str | None = None,
        task: Literal["classification", "regression"] = "classification",
        layout: Layout = "auto",
        feature_names: list[str] | None = None,
        test_fraction: float = 0.2,
        split_seed: int = 0,
    ) -> None:
        if not path:
            raise SettingsError("data.source.path: name an .npz file, or an .npy file and data.source.targets")
        if task not in ("classification", "regression"):
            raise SettingsError(f"data.task={task}: it is classification or regression")
        if layout not in ("auto", "channels_first", "channels_last"):
            raise SettingsError(f"data.source.layout={layout}: it is auto, channels_first or channels_last")
        if not 0 < test_fraction < 1:
            raise SettingsError(f"data.source.test_fraction={test_fraction}: it is above 0 and below 1")
        self.path = Path(path).expanduser()
        self.targets = None if targets is None else Path(targets).expanduser()
        self.task = task  # type: ignore[misc]  # the class's where a source has but one
        self.layout: Layout = layout
        self.feature_names = feature_names
        self.given_names = feature_names
        self.test_fraction, self.split_seed = test_fraction, split_seed
        self.class_names: list[str] | None = None
        self.classes: int | None = None

    def sha256(self) -> str:
        self.prepare()
        how = (self.task, self.layout, self.given_names, self.test_fraction, self.split_seed)
        files = [file_sha256(path) for path in (self.path, self.targets) if path is not None]
        return hashlib.sha256(repr((how, files)).encode()).hexdigest()

    def prepare(self) -> None:
        for key, path in (("path", self.path), ("targets", self.targets)):
            if path is not None and not path.is_file():
                raise DataError(f"data.source.{key}={path}: there is no such file")
        if self.targets is None and not is_archive(self.path):
            raise DataError(
                f"{self.path}: holds samples only; name the .npy of their targets, data.source.targets=FILE"
            )
        if self.targets is not None and is_archive(self.path):
            raise DataError(f"data.source.targets={self.targets}: belongs to an .npy, and {self.path} is an .npz")

    def load(self) -> dict[str, Split]:
        self.prepare()
        parts, names = self._read()
        if "train" not in parts:
            raise DataError(f"{self.path}: has samples of {', '.join(parts) or 'no split'}, and none to train on")
        samples: dict[str, np.ndarray] = {}
        targets: dict[str, np.ndarray] = {}
        for split in ("train", "val", "test"):
            if split not in parts:
                continue
            if len(parts[split]) != 2:
                missing = "targets" if "x" in parts[split] else "samples"
                raise DataError(f"{self.path}: has no {missing} for the {split} split")
            x = to_samples(parts[split]["x"], self.layout, f"{self.path}: the samples of {split}")
            if len(x) != len(parts[split]["y"]):
                raise DataError(f"{self.path}: {len(x):,} samples and {len(parts[split]['y']):,} targets in {split}")
            if not len(x):
                raise DataError(f"{self.path}: no sample in {split}")
            if x.ndim == 2:
                columns = self.given_names or names.get("features") or []
                columns = columns if len(columns) == x.shape[1] else [str(column) for column in range(x.shape[1])]
                self._refuse_merged(parts[split]["x"], split, [f"column {column}" for column in columns])
            samples[split], targets[split] = x, parts[split]["y"]
        shapes = {name: x.shape[1:] for name, x in samples.items()}
        for split, shape in shapes.items():
            if shape != shapes["train"] or samples[split].dtype != samples["train"].dtype:
                raise DataError(
                    f"{self.path}: samples of {split} are {_said(samples[split])}, of train {_said(samples['train'])}"
                )
        y = self._numbers(targets) if self.task == "regression" else self._labels(targets, names.get("classes"))
        self._name_features(names.get("features"), shapes["train"])
        splits = {name: Split(samples[name], y[name]) for name in samples}
        self.own_splits = "test" in splits
        if not self.own_splits:
            splits |= cut_test(splits["train"], self.test_fraction, self.split_seed)
            if not len(splits["test"]) or not len(splits["train"]):
                raise DataError(
                    f"{self.path}: {len(samples['train']):,} samples cannot be cut in two; "
                    "give it more, or change data.source.test_fraction"
                )
        return splits

    # ------------------------------------------------------------------------------------------------------- reading
    def _read(self) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, list[str]]]:
        """Arrays by split and "x" or "y", and the names of "features" and "classes" that stand beside them."""
        if self.targets is not None:
            return {"train": {"x": read_array(self.path), "y": np.atleast_1d(read_array(self.targets))}}, {}
        found: dict[str, dict[str, np.ndarray]] = {}
        names: dict[str, list[str]] = {}
        for name, array in read_archive(self.path, self._choose).items():
            split, kind = role(name) or ("", "")
            if split:
                found.setdefault(split, {})[kind] = np.atleast_1d(array)
            else:
                names[kind] = [_text(value) for value in array.ravel().tolist()]
        return found, names

    def _choose(self, there: list[str]) -> list[str]:
        """Of the arrays in the file those that are looked at."""
        chosen: dict[tuple[str, str], str] = {}
        for name in there:
            part = role(name)
            if part is not None and part in chosen:
                raise DataError(f"{self.path}: {chosen[part]} and {name} are the same by their names; leave one out")
            if part is not None:
                chosen[part] = name
        if not any(split for split, _ in chosen):
            listed = ", ".join(there[:8]) or "no array"
            raise DataError(f"{self.path}: has {listed}; call samples x (or x_train) and targets y (or y_train)")
        return list(chosen.values())

    # ------------------------------------------------------------------------------------------------------- targets
    def _numbers(self, targets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {}
        for split, y in targets.items():
            y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
            if y.ndim != 1 or y.dtype.kind not in "biuf":
                raise DataError(f"{self.path}: targets of {split} are {_said(y)}; a regression takes one number each")
            self._refuse_merged(y, split, ["targets"])
            found[split] = _float32(y)  # NaN and infinity are for preprocess.broken
        return found

    def _labels(self, targets: Mapping[str, np.ndarray], given: list[str] | None) -> dict[str, np.ndarray]:
        """Labels 0, 1, 2, ... (N,); sets `class_names` where they were anything else, or had names beside them."""
        plain = {split: self._classes_of(split, y) for split, y in targets.items()}
        values = np.unique(plain["train"])
        if given is not None:
            double = next((name for name in given if given.count(name) > 1), None)
            if double is not None:
                raise DataError(f"{self.path}: class_names have {double!r} twice; give each class a name of its own")
            self.class_names = list(given)
            values = np.arange(len(given)) if values.dtype.kind == "i" else np.array(given, dtype=str)
        elif values.dtype.kind != "i" or not np.array_equal(values, np.arange(len(values))):
            self.class_names = [str(value) for value in values.tolist()]
        for split, y in plain.items():
            if y.dtype.kind != values.dtype.kind:
                raise DataError(f"{self.path}: targets are text in one split and numbers in another")
            strange = np.setdiff1d(y, values)
            if len(strange):
                lacks = "train lacks" if given is None else "class_names lack"
                raise DataError(f"{self.path}: {split} has the class {strange[0]}, which {lacks}")
        if len(values) < 2:
            raise DataError(f"{self.path}: only the class {values[0]} to train on; a classifier needs two or more")
        if len(values) == len(plain["train"]) >= OWN_CLASSES:
            raise DataError(
                f"{self.path}: each of {len(values):,} samples has a class of its own; "
                "where targets are quantities, set data.task=regression model=linear preprocess=features"
            )
        self.classes = len(values)
        order = np.argsort(values)  # of names that were given
        return {split: order[np.searchsorted(values, y, sorter=order)].astype(np.int64) for split, y in plain.items()}

    def _classes_of(self, split: str, y: np.ndarray) -> np.ndarray:
        """The classes of a split as int64 or text (N,)."""
        what = f"{self.path}: targets of {split}"
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.dtype.kind in "US" and y.ndim == 1:
            return y.astype(str) if y.dtype.kind == "U" else np.char.decode(y, "utf-8", "replace")
        if y.dtype.kind not in "biuf" or y.ndim not in (1, 2):
            raise DataError(f"{what} are {_said(y)}; a class is a whole number or text")
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            raise DataError(f"{what}: {np.argwhere(~np.isfinite(y))[0][0]} (from 0) is NaN or infinite; take it out")
        if y.ndim == 2:
            if not ((y == 0) | (y == 1)).all() or not (y.sum(axis=1) == 1).all():
                raise DataError(f"{what} are {_said(y)}, and not one-hot; give one class a sample")
            return y.argmax(axis=1).astype(np.int64)
        if y.dtype.kind == "f" and not (y == np.rint(y)).all():
            raise DataError(
                f"{what} are fractions like {y[y != np.rint(y)][0]:g}, and a class is a whole number or text; "
                "where they are quantities, set data.task=regression model=linear preprocess=features"
            )
        outside = np.zeros(len(y), dtype=bool)  # of int64
        if y.dtype.kind == "u":
            outside = y > np.iinfo(np.int64).max
        elif y.dtype.kind == "f":
            outside = (y >= np.float64(2**63)) | (y < np.float64(-(2**63)))
        if outside.any():
            raise DataError(f"{what}: {y[outside][0]:g} is more than a label can be; number the classes 0, 1, 2, ...")
        return y.astype(np.int64)

    def _name_features(self, found: list[str] | None, shape: tuple[int, ...]) -> None:
        names = self.given_names if self.given_names is not None else found
        if names is not None and (len(shape) != 1 or len(names) != shape[0]):
            raise DataError(
                f"{self.path}: {len(names)} feature_names for samples {list(shape)}; name each column of a table"
            )
        self.feature_names = names

    def _refuse_merged(self, values: np.ndarray, split: str, names: list[str]) -> None:
        """Raises DataError where float32 makes distinct values of a column, or of targets, the same: those of a large
        offset, like times in seconds. A part of the rows is looked at, the first and some of all."""
        if np.can_cast(values.dtype, np.float32):
            return
        table = values.reshape(len(values), -1)
        few = max(2, min(LOOKED_AT, VALUES_LOOKED_AT // table.shape[1]) // 2)
        some = table if len(table) <= 2 * few else np.concatenate([table[:few], table[:: -(-len(table) // few)]])
        before, after = _distinct(some), _distinct(_float32(some))
        for column in np.flatnonzero(before - after > MERGED * before)[:1]:
            raise DataError(
                f"{self.path}: {names[column]} of {split}: float32 makes {before[column]:,} distinct values "
                f"{after[column]:,}; subtract an offset, their mean say, or save them as float32"
            )


# ----------------------------------------------------------------------------------------------- also for predictions
def is_archive(path: Path) -> bool:
    """Whether a file is an .npz; False is an .npy. Raises DataError for anything else."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(6)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not beginning.startswith((NPY, NPZ)):
        raise DataError(f"{path}: neither an .npy nor an .npz file")
    return beginning.startswith(NPZ)


def read_array(file: Path | BinaryIO, mapped: bool = False) -> np.ndarray:
    """The array of an .npy, mapped into memory where that is asked for. Raises DataError."""
    name = file if isinstance(file, Path) else "standard input"
    if isinstance(file, Path) and not mapped:
        refuse_too_large(str(file), file.stat().st_size, "give it in parts")
    with _refused(str(name)):
        found = np.load(file, allow_pickle=False, mmap_mode="r" if mapped else None)
        if not isinstance(found, np.ndarray):
            raise ValueError("it is an archive")
        return found


def read_archive(file: Path | BinaryIO, choose: Callable[[list[str]], list[str]]) -> dict[str, np.ndarray]:
    """Those arrays of an .npz that `choose` picks of their names. Raises DataError."""
    path = file if isinstance(file, Path) else "standard input"
    with _refused(str(path)), np.load(file, allow_pickle=False) as archive:
        chosen = choose(list(archive.files))
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.zip.infolist()}
        refuse_too_large(str(path), sum(sizes.get(name, 0) for name in chosen), "give it in parts")
        return {name: archive[name] for name in chosen}


@contextlib.contextmanager
def _refused(name: str) -> Iterator[None]:
    try:
        yield
    except FrugalError:
        raise
    except Exception as error:  # of many kinds: whatever numpy and zipfile make of bytes that are none of theirs
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if "pickle" in said or "Python objects" in said:
            said = "it holds Python objects, which may run code; save plain numbers or text"
        raise DataError(f"{name}: cannot be read ({said[:200]})") from None


def to_samples(x: np.ndarray, layout: Layout, what: str) -> np.ndarray:
    """Images (N, C, H, W), of bytes where they were, or a table (N, F), float32. Raises DataError."""
    if x.dtype.kind not in "biuf" or not 1 <= x.ndim <= 4 or 0 in x.shape[1:]:
        raise DataError(f"{what} are {_said(x)}; images are (N, H, W) or with channels, a table is (N, F)")
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4:
        first, last = x.shape[1] in CHANNELS, x.shape[3] in CHANNELS
        if layout == "auto" and first == last:
            raise DataError(
                f"{what} are {_said(x)}: which dimension holds the channels? "
                "set data.source.layout=channels_first or channels_last"
            )
        if layout == "channels_last" or (layout == "auto" and last):
            x = x.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x) if x.dtype == np.uint8 and x.ndim == 4 else _float32(x)


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite then, which is looked for elsewhere
        return np.ascontiguousarray(array, dtype=np.float32)


def _distinct(table: np.ndarray) -> np.ndarray:
    """How many values of each column (N, F) differ from others by more than the noise of computing: (F,)."""
    ordered = np.sort(table, axis=0)
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.diff(ordered, axis=0)
        noise = NOISE * np.abs(ordered[1:]) if table.dtype.kind == "f" else 0
        return 1 + np.asarray(~(steps <= noise)).sum(axis=0)  # infinity and NaN are looked for elsewhere


def role(name: str) -> tuple[str, str] | None:
    """The split and "x" or "y" that an array is by its name, ("", "features") or ("", "classes"), or None."""
    name = name.lower().replace("-", "_")
    if name in NAMES:
        return "", NAMES[name]
    before, _, last = name.rpartition("_")
    first, _, after = name.partition("_")
    for split, kind in (("train", name), (SPLITS.get(last), before), (SPLITS.get(first), after)):
        if split and kind in KINDS:
            return split, KINDS[kind]
    return None


def _said(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
