"""Classes of images and of the rows of tables, and quantities; batch by batch, so that input may be of any size.

Images come to the network's size and channels in the very way in which those that it was trained on did
(`data.images`); arrays must have its shape.
"""

from __future__ import annotations

import csv
import inspect
import io
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from frugal import settings
from frugal.artefact import Description, crafted, floating_dtype
from frugal.data import images
from frugal.data.array_file import NPY, NPZ, read_archive, read_array, role
from frugal.data.csv_text import DELIMITERS, is_number
from frugal.data.preprocess import Preprocess
from frugal.data.text_file import BYTE_ORDER_MARK, told
from frugal.errors import DataError, RunError
from frugal.paths import shown
from frugal.predict.output import Rows, output

TABLES = (".csv", ".tsv", ".txt")
HEAD = 16  # bytes that tell what input is
LARGEST = 2**28  # values of a sample


class Item(NamedTuple):
    """A sample as it is stored, or why there is none."""

    key: str | int  # a file's path, or the number of a row
    array: np.ndarray | None
    error: str | None = None


@dataclass
class Input:
    """What is to be predicted for; `counts` and `notes` are filled while `items` are taken."""

    name: str  # what to call it
    key: str  # what items are called by, "file" or "row"
    items: Iterator[Item]
    counts: Counter[str]
    notes: list[str] = field(default_factory=list)


class Model:
    """A network with what stands before and behind it."""

    def __init__(self, network: nn.Module, description: Description, path: Path) -> None:
        self.network, self.path = network, path
        dims, state = description.dims, description.state
        self.shape = tuple(dims.get("input_shape", ()))
        if len(self.shape) not in (1, 3) or math.prod(self.shape) > LARGEST:
            raise RunError(f"{path}: describes itself wrongly (dims.input_shape is {list(self.shape)})")
        self.stored = state.get("dtype")  # of the samples that it was trained on
        self.features: list[str] | None = state.get("feature_names")
        if self.features is not None and self.shape != (len(self.features),):
            raise RunError(f"{path}: describes itself wrongly ({len(self.features)} feature_names for {self.shape})")
        with crafted(path):
            target = settings.resolve(description.preprocess.get("_target_"), "preprocess._target_")
            if not inspect.isclass(target) or not issubclass(target, Preprocess):
                raise RunError(f"{path}: describes itself wrongly (preprocess is no Preprocess)")
            self.preprocess = settings.instantiate(description.preprocess, "preprocess")
            self.preprocess.load_state_dict(state["preprocess"])
            self.mean = float(state["preprocess"].get("target_mean", 0))
            self.std = float(state["preprocess"].get("target_std", 1))
        self.dtype = floating_dtype(network.state_dict().values()) or torch.float32
        self.names: list[str] | None = None
        if description.task == "classification":
            self.names = state.get("class_names") or [str(label) for label in range(dims.get("classes", 0))]

    def __call__(self, samples: Sequence[np.ndarray]) -> list[list[float]]:
        """Of each sample the probabilities of the classes, or one number."""
        with crafted(self.path, "its network cannot predict"), torch.inference_mode():
            x = self.preprocess(torch.from_numpy(np.stack(samples)), training=False)
            found: Tensor = self.network(x.to(self.dtype)).float()
            outputs = 1 if self.names is None else len(self.names)
            if found.shape != (len(samples), outputs):
                raise RunError(
                    f"{self.path}: describes itself wrongly (its network gives {list(found.shape)} for "
                    f"{len(samples)} samples, not {outputs} numbers each)"
                )
            found = found.double() * self.std + self.mean if self.names is None else found.softmax(dim=1)
            return found.tolist()


def predict(cfg: DictConfig, network: nn.Module, description: Description, path: Path) -> None:
    """Write a row for each sample of `input`. Raises DataError for input that cannot be read at all."""
    model = Model(network, description, path)
    given = open_input(str(cfg.input), model)
    size, rows_done, predicted = int(cfg.batch_size), 0, 0
    first: tuple[str | int, str] | None = None  # that could not be used, and why
    started = time.perf_counter()
    with output(cfg.output) as write:
        rows = Rows(cfg, write, given.key, model.names, errors=True)
        while batch := list(islice(given.items, size)):
            batch = [_stored(item, model) for item in batch]
            samples = [item.array for item in batch if item.array is not None]
            found = iter(model(samples) if samples else [])
            for item in batch:
                error = rows.add(item.key, None if item.array is None else next(found), item.error)
                if error is None:
                    predicted += 1
                else:
                    first = first or (item.key, error)
            rows.flush()
            rows_done += len(batch)
        if not rows_done:
            raise DataError(f"{given.name}: holds nothing to predict for{told(given.counts)}")
        seconds = time.perf_counter() - started
        if first is not None and not predicted:
            raise DataError(f"{given.name}: nothing in it can be used; {first[0]}: {first[1]}")
        said = [f"{rows_done - predicted:,} of {rows_done:,} cannot be used: see error"] * (predicted < rows_done)
        for line in (*given.notes, *said, told(given.counts).strip(" ()")):
            if line:
                print(f"frugal: {line}", file=sys.stderr)
    print(
        f"frugal: {predicted:,} samples in {seconds:.2f} s, {predicted / max(seconds, 1e-9):,.0f} samples/s "
        f"(batch {size}, {torch.get_num_threads()} thread(s), {shown(path)})",
        file=sys.stderr,
    )


def _stored(item: Item, model: Model) -> Item:
    """An item of the type that the network's own samples had: bytes or float32."""
    array = item.array
    if array is None or (array.dtype == np.uint8 and model.stored != "float32"):
        return item
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        return Item(item.key, None, "holds NaN or infinity")
    if model.stored != "uint8":
        return Item(item.key, values)
    if not ((values == np.rint(values)) & (values >= 0) & (values <= 255)).all():
        return Item(item.key, None, "holds other numbers than 0 to 255, the bytes of the images in training")
    return Item(item.key, values.astype(np.uint8))


# ---------------------------------------------------------------------------------------------------------------- input
def open_input(name: str, model: Model) -> Input:
    """What there is at `input=name`, by its content. Raises DataError."""
    given = Input(f"input={name}", "row", iter(()), Counter())
    if name == "-":
        stream: BinaryIO = sys.stdin.buffer
        beginning = stream.read(HEAD)
        if images.begins_like_an_image(beginning):
            given.key, given.items = "file", _pictures(["-"], [beginning + stream.read()], model, given)
        elif beginning.startswith((NPY, NPZ)):
            whole = io.BytesIO(beginning + stream.read())
            array = _of_archive(whole, given) if beginning.startswith(NPZ) else read_array(whole)
            given.items = _samples(array, model, given)
        else:
            given.items = _rows(chain(io.BytesIO(beginning + stream.readline()), stream), model, given)
        return given
    path = Path(name).expanduser()
    if path.is_dir():
        names = []
        for listing in images.walk(path):
            names += listing.images
            given.counts["other_files"] += len(listing.others)
            given.counts["hidden_files"] += len(listing.hidden)
            given.counts["links_not_followed"] += len(listing.links)
        given.key, given.items = "file", _pictures(names, (path / file for file in names), model, given)
        return given
    try:
        with open(path, "rb") as file:
            beginning = file.read(HEAD)
    except OSError as error:
        raise DataError(f"input={name}: {error.strerror}") from None
    if images.is_image(name) or images.begins_like_an_image(beginning):
        given.key, given.items = "file", _pictures([name], [path], model, given)
    elif beginning.startswith(NPY):
        given.items = _samples(read_array(path, mapped=True), model, given)
    elif beginning.startswith(NPZ):
        given.items = _samples(_of_archive(path, given), model, given)
    elif path.suffix.lower() in TABLES:
        given.items = _rows(_lines(path), model, given)
    else:
        raise DataError(f"input={name}: neither an image nor a folder, an .npy, an .npz or a .csv file")
    return given


def _pictures(names: Sequence[str], files: Iterable[images.Origin], model: Model, given: Input) -> Iterator[Item]:
    if len(model.shape) != 3 or model.shape[0] not in (1, 3) or model.stored == "float32":
        what = f"samples {list(model.shape)}" + (
            " of fractions" if len(model.shape) == 3 and model.stored == "float32" else ""
        )
        raise DataError(f"{given.name}: {model.path} was trained on {what}, which no image is; give an .npy")
    channels, height, width = model.shape

    def items() -> Iterator[Item]:
        resized, coloured = f"brought_to_{width}x{height}", "made_grey" if channels == 1 else "made_colour"
        for name, found in zip(names, images.read_images(files, (height, width), channels), strict=True):
            if isinstance(found, images.UnreadableImage):
                yield Item(name, None, str(found))
                continue
            given.counts[resized] += found.resized
            given.counts[coloured] += found.recoloured
            yield Item(name, found.array)

    return items()


# --------------------------------------------------------------------------------------------------------------- arrays
def _of_archive(file: Path | BinaryIO, given: Input) -> np.ndarray:
    """The samples in an .npz: its only array, or the only one that is called so."""

    def choose(there: list[str]) -> list[str]:
        named = there if len(there) == 1 else [name for name in there if (role(name) or ("", ""))[1] == "x"]
        if len(named) != 1:
            raise DataError(f"{given.name}: has {', '.join(there[:8]) or 'no array'}; save the samples alone, as x")
        return named

    (found,) = read_archive(file, choose).values()
    return found


def _samples(x: np.ndarray, model: Model, given: Input) -> Iterator[Item]:
    """The samples of an array in one of the forms that training takes."""
    shape, found = model.shape, None
    last = shape if len(shape) == 1 else (*shape[1:], shape[0])
    flat = (math.prod(shape),)
    grey = shape[1:] if shape[0] == 1 and len(shape) == 3 else None
    for single in (False, True):  # a batch before a sample alone
        inner = x.shape if single else x.shape[1:]
        batch = x[None] if single else x
        if inner in (shape, flat, grey):
            found = batch.reshape(len(batch), *shape) if inner != shape else batch
        elif inner == last:
            found = batch.transpose(0, 3, 1, 2)
        if found is not None:
            break
    if found is None and shape == (1,) and x.ndim == 1:
        found = x[:, None]
    if found is None or found.dtype.kind not in "biuf":
        raise DataError(
            f"{given.name}: samples are {x.dtype} {list(x.shape[1:])}, {model.path} was trained on {list(shape)}"
        )
    return (Item(i, np.ascontiguousarray(found[i])) for i in range(len(found)))


# --------------------------------------------------------------------------------------------------------------- tables
def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from file


def _rows(lines: Iterator[bytes], model: Model, given: Input) -> Iterator[Item]:
    """The rows of a table, streamed; its first line tells delimiter and header."""
    width = math.prod(model.shape)
    first = next((line for line in lines if line.strip()), b"").removeprefix(BYTE_ORDER_MARK)
    if not first:
        return iter(())
    text = (line.decode(errors="replace") for line in chain([first], lines))
    delimiter = _delimiter(first.decode(errors="replace"), width, model.features)
    rows: Iterator[list[str]] = csv.reader(text, delimiter=delimiter)
    try:
        header = [cell.strip() for cell in next(rows)]
    except csv.Error as error:
        raise DataError(f"{given.name}: its first row cannot be read ({error})") from None
    named, places = _columns(header, model, given)
    if named:
        given.notes.append("the first row is taken for the columns' names")
    else:
        rows = chain([header], rows)
    return _parsed(rows, header, named, places, model, given)


def _delimiter(line: str, width: int, features: Sequence[str] | None) -> str:
    """That which finds the features' names, or as many columns as there are features; else the most columns."""
    cut = {mark: [cell.strip() for cell in next(csv.reader([line], delimiter=mark), [])] for mark in DELIMITERS}
    for mark, cells in cut.items():
        if len(cells) == width or (
            features and {name.casefold() for name in features} <= {c.casefold() for c in cells}
        ):
            return mark
    return max(cut, key=lambda mark: len(cut[mark]))


def _columns(header: list[str], model: Model, given: Input) -> tuple[bool, list[int]]:
    """Whether the first row names the columns, and where the features stand: by their names, else in order."""
    width = math.prod(model.shape)
    named = any(header) and not any(map(is_number, header))  # a row of numbers is a sample
    if model.features is not None:
        folded = {cell.casefold(): i for i, cell in reversed(list(enumerate(header)))}
        exact = {cell: i for i, cell in reversed(list(enumerate(header)))}
        places = [exact.get(name, folded.get(name.strip().casefold())) for name in model.features]
        found = [place for place in places if place is not None]
        if len(found) == width:
            return True, found
        if named:
            missing = ", ".join(name for name, place in zip(model.features, places, strict=True) if place is None)
            raise DataError(f"{given.name}: has no column {missing}; it has {', '.join(header[:20])}")
    if len(header) != width:
        if len(model.shape) == 3:
            raise DataError(f"{given.name}: no image, and {len(header)} columns are no {width} numbers of one")
        raise DataError(f"{given.name}: {len(header)} columns, {model.path} was trained on {width}")
    return named, list(range(width))


def _parsed(
    rows: Iterator[list[str]], header: list[str], named: bool, places: list[int], model: Model, given: Input
) -> Iterator[Item]:
    row = -1
    try:
        for cells in rows:
            if not cells:  # an empty line
                continue
            row += 1
            if len(cells) != len(header):
                yield Item(row, None, f"has {len(cells)} columns, the first row {len(header)}")
                continue
            wrong = next((place for place in places if not is_number(cells[place])), None)
            if wrong is not None:
                name = repr(header[wrong]) if named else wrong
                yield Item(row, None, f"column {name} holds {cells[wrong]!r}, and no number")
                continue
            values = np.array([float(cells[place]) for place in places])
            yield Item(row, values.reshape(model.shape))
    except csv.Error as error:
        raise DataError(f"{given.name}: cannot be read after row {row} ({error})") from None
