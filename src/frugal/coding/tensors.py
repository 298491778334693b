"""A network's tensors as a sequence of numbers, bytes, masks and codes: the same walk for each coder, and both ways.

A `Body` writes or reads. Whoever walks hands in what is to be written and goes on with what comes out: when reading,
what is handed in is ignored.
"""

from __future__ import annotations

import contextlib
import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from frugal.coding.encoding import Encoding

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]
Array = np.ndarray[Any, Any]

WAVES = 4  # added to the dimensions of a scale where codes are numbers of waves
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Kind(enum.IntEnum):
    """How a tensor is written."""

    RAW = 0  # its bytes
    CONSTANT = 1  # one element for all
    AS_BEFORE = 2  # that of an earlier tensor (tied weights), by its index
    CODES = 3
    # fp32 of which the lower bits are all zero: fp16 or bfloat16 holds it exactly
    HALF = 4
    BFLOAT = 5
    # with zeros, of which the sign is not kept: a mask, and the others as above
    SPARSE = 6
    SPARSE_HALF = 7
    SPARSE_BFLOAT = 8
    NO_CODES = 9  # all of them zero: whatever the scale is, it is not written


SHORT = {Kind.HALF: torch.float16, Kind.BFLOAT: torch.bfloat16}
MAYBE_SPARSE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OF_SPARSE = {Kind.SPARSE: Kind.RAW, Kind.SPARSE_HALF: Kind.HALF, Kind.SPARSE_BFLOAT: Kind.BFLOAT}


class Body(ABC):
    """Where tensors are written to or read from; one of each coder for both."""

    sparse: ClassVar[bool] = True  # whether masks pay

    def __init__(self, content: bytes | None) -> None:
        """
        Args:
            content: to read from; None to write.
        """
        self.writing = content is None
        self.parts: dict[str, int] = {}

    @abstractmethod
    def number(self, value: int) -> int:
        """A whole number from 0 on."""

    @abstractmethod
    def raw(self, content: bytes, size: int) -> bytes:
        """Bytes as they are."""

    @abstractmethod
    def mask(self, mask: Array, shape: tuple[int, ...]) -> Array:
        """Which elements of a tensor of this shape are not zero, flat; what comes out may have a few more."""

    @abstractmethod
    def codes(self, codes: Array, shape: tuple[int, ...]) -> Array:
        """int64 codes of a tensor of this shape, flat."""

    @abstractmethod
    def finish(self) -> bytes:
        """What was written; when reading, a check that all of it was read."""

    def size(self) -> int:
        """Bytes written so far."""
        return 0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is written in here counts as `name`; innermost wins."""
        before, inner = self.size(), sum(self.parts.values())
        yield
        here = self.size() - before - (sum(self.parts.values()) - inner)
        self.parts[name] = self.parts.get(name, 0) + here


def walk(
    body: Body, layout: Layout, state: Mapping[str, Tensor], encodings: Mapping[str, Encoding]
) -> tuple[dict[str, Tensor], dict[str, Encoding]]:
    """Write `state`, or read what `layout` says; the state and the encodings that came out."""
    found: dict[str, Tensor] = {}
    coded: dict[str, Encoding] = {}
    names = list(layout)
    for name, (shape, dtype) in layout.items():
        given = state[name].detach().cpu() if body.writing else torch.empty(0)
        encoding = encodings.get(name) if body.writing else None
        before = _earlier(given, encoding, found, coded) if body.writing else 0
        kind = Kind.RAW
        if body.writing:
            kind = Kind.AS_BEFORE if before is not None else _kind(given, encoding, body.sparse)
        kind = Kind(body.number(kind))
        if kind is Kind.AS_BEFORE:
            other = names[: len(found)][body.number(before or 0)]
            if layout[other] != layout[name]:
                raise ValueError(f"{name} cannot be the same as {other}")
            found[name] = found[other]
            if other in coded:
                coded[name] = coded[other]
        elif kind is Kind.CODES:
            coded[name] = _encoding(body, shape, encoding)
            found[name] = coded[name].decode().to(dtype)
        elif kind is Kind.NO_CODES:
            coded[name] = Encoding(torch.zeros(shape, dtype=torch.int32))
            found[name] = torch.zeros(shape, dtype=dtype)
        else:
            with body.part("floats" if dtype.is_floating_point else "other"):
                found[name] = _plain(body, kind, shape, dtype, given)
    return found, coded


def _earlier(
    tensor: Tensor, encoding: Encoding | None, found: Mapping[str, Tensor], coded: Mapping[str, Encoding]
) -> int | None:
    """The index of a tensor that is the same, bit for bit; worth it from a few bytes on."""
    if tensor.numel() * tensor.element_size() <= 4:
        return None
    elements = bits(tensor)
    for index, (name, other) in enumerate(found.items()):
        if other.shape != tensor.shape or other.dtype != tensor.dtype or (encoding is not None and name not in coded):
            continue
        there = bits(other)
        if there[0] == elements[0] and np.array_equal(there, elements):
            return index
    return None


def bits(tensor: Tensor) -> Array:
    """The elements as unsigned integers, flat."""
    flat = tensor.contiguous().flatten()
    if not flat.dtype.is_complex and flat.element_size() in UNSIGNED:
        return flat.view(torch.uint8).numpy().view(UNSIGNED[flat.element_size()])
    return torch.view_as_real(flat).contiguous().view(torch.uint8).numpy()


def _kind(tensor: Tensor, encoding: Encoding | None, sparse: bool) -> Kind:
    if encoding is not None:
        return Kind.CODES if encoding.codes.any() else Kind.NO_CODES
    elements = bits(tensor)
    if len(elements) > 1 and not tensor.is_complex() and (elements == elements[0]).all():
        return Kind.CONSTANT
    short = next((kind for kind, dtype in SHORT.items() if _fits(tensor, dtype)), Kind.RAW)
    if sparse and tensor.dtype in MAYBE_SPARSE and 8 * int(torch.count_nonzero(tensor)) < 7 * len(elements):
        return next(kind for kind, values in OF_SPARSE.items() if values is short)
    return short


def _fits(tensor: Tensor, dtype: torch.dtype) -> bool:
    if tensor.dtype != torch.float32 or not tensor.numel():
        return False
    return bool((bits(tensor.to(dtype).to(torch.float32)) == bits(tensor)).all())


def _plain(body: Body, kind: Kind, shape: tuple[int, ...], dtype: torch.dtype, given: Tensor) -> Tensor:
    count = math.prod(shape)
    if kind is Kind.CONSTANT:
        one = given.flatten()[:1]
        return _values(body, Kind.RAW, dtype, one, 1).expand(count).reshape(shape).clone()
    if kind not in OF_SPARSE:
        return _values(body, kind, dtype, given.flatten(), count).reshape(shape)
    mask = (given != 0).flatten().numpy()
    with body.part("positions"):
        mask = body.mask(mask, shape)
    kept = torch.from_numpy(np.flatnonzero(mask))
    flat = given.flatten()[kept] if body.writing else given
    flat = torch.where(flat == 0, torch.zeros_like(flat), flat)  # fillers
    tensor = torch.zeros(count, dtype=dtype)
    tensor[kept] = _values(body, OF_SPARSE[kind], dtype, flat, len(kept))
    return tensor.reshape(shape)


def _values(body: Body, kind: Kind, dtype: torch.dtype, given: Tensor, count: int) -> Tensor:
    """A flat tensor's bytes, as they are or in half the bits."""
    written = SHORT.get(kind, dtype)
    if written is not dtype and dtype is not torch.float32:
        raise ValueError(f"{dtype} is not written as {written}")
    content = bits(given.to(written)).tobytes() if body.writing else b""
    content = body.raw(content, count * written.itemsize)
    tensor = torch.frombuffer(bytearray(content), dtype=written) if count else torch.empty(0, dtype=written)
    return tensor.to(dtype)


def _encoding(body: Body, shape: tuple[int, ...], given: Encoding | None) -> Encoding:
    scale, table = (given.scale, given.table) if given is not None else (None, None)
    with body.part("tables"):
        form = 0 if scale is None else scale.ndim + 1
        form = body.number(form + WAVES if given is not None and given.waves else form)
        waves, dims = form >= WAVES, form % WAVES
        if form >= 2 * WAVES:
            raise ValueError("a scale of too many dimensions")
        if dims:
            if dims > 1 and not shape:
                raise ValueError("a scale of too many dimensions")
            size = [shape[0]] if dims > 1 else []
            if dims == 3:
                groups = body.number(scale.shape[1] if scale is not None else 0)
                if groups > math.prod(shape[1:]):
                    raise ValueError("more groups than inputs")
                size.append(groups)
            scale = _floats(body, tuple(size), scale)
        entries = body.number(0 if table is None else len(table) + 1)
        if entries:
            if entries > 1 + 2**20:
                raise ValueError("a table of too many entries")
            table = _floats(body, (entries - 1,), table)
    array = given.codes.flatten().cpu().numpy().astype(np.int64) if given is not None else np.empty(0, np.int64)
    if table is not None:
        array = body.codes(signed(array, table) if body.writing else array, shape)
        array = unsigned(array, table)
    else:
        array = body.codes(array, shape)
    if array.size and not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31:
        raise ValueError("codes of more than 32 bits")
    encoding = Encoding(torch.from_numpy(array.astype(np.int32)).reshape(shape), scale, table, waves)
    fault = encoding.fault()
    if fault:
        raise ValueError(fault)
    return encoding


def _floats(body: Body, shape: tuple[int, ...], given: Tensor | None) -> Tensor:
    given = torch.empty(0) if given is None else given.detach().cpu()
    kind = Kind(body.number(_kind(given, None, sparse=False) if body.writing else 0))
    if kind not in (Kind.RAW, Kind.CONSTANT, *SHORT):
        raise ValueError(f"floats written as {kind.name}")
    return _plain(body, kind, shape, torch.float32, given)


def signed(codes: Array, table: Tensor) -> Array:
    """Codes of a table as whole numbers with the sign and the order of what they stand for: 1 is the smallest entry
    that is not below 0, -1 the largest that is."""
    order, negative = _order(table)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return np.concatenate([[0], rank - negative + (rank >= negative)])[codes]


def unsigned(numbers: Array, table: Tensor) -> Array:
    """The inverse. Raises ValueError for numbers beyond the table."""
    order, negative = _order(table)
    ranks = numbers + negative - (numbers > 0)
    if numbers.size and not 0 <= int(ranks.min()) <= int(ranks.max()) <= len(order):
        raise ValueError("codes beyond their table")
    ranks = np.where(numbers == 0, len(order), ranks)
    if numbers.size and ((ranks == len(order)) & (numbers != 0)).any():
        raise ValueError("codes beyond their table")
    return np.concatenate([order + 1, [0]])[ranks]


def _order(table: Tensor) -> tuple[Array, int]:
    values = table.numpy()
    return np.argsort(values, kind="stable"), int((values < 0).sum())


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns: outputs by inputs, a vector as one row."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])
