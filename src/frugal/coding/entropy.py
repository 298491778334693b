"""`coding=entropy`: arithmetic coding with adaptive contexts, the smallest file.

Of a weight matrix first which outputs and inputs have no weight at all, then for each weight between the others whether
it is zero, seen by its input, its output, its neighbours and how full both are so far; then signs and magnitudes of
those that are not. All probabilities adapt from nothing, so that no table is stored; see `arithmetic` for how they are
mixed. Tensors of more decisions than `STEPS` are written with one table of frequencies instead (`rans`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from frugal.coding import rans
from frugal.coding.arithmetic import Coder, Decoder, Encoder, Mixed, Numbers
from frugal.coding.bytestream import read_varint, unzigzag, varint, zigzag
from frugal.coding.coder import CodingTechnique
from frugal.coding.tensors import Array, Body, matrix

STEPS = 1_000_000  # binary decisions of a tensor, at about a quarter of a million a second
EVEN = 32768  # a bit of no known leaning


class Entropy(CodingTechnique):
    """Needs no setting."""

    coder = "entropy"


class EntropyBody(Body):
    """Raw bytes apart, in front; all else is one arithmetic code to the end of the file."""

    def __init__(self, content: bytes | None) -> None:
        super().__init__(content)
        self._raw = bytearray()
        self._at = self._end = 0
        self._content = content or b""
        self._stream: Coder = Encoder()
        if content is not None:
            size, self._at = read_varint(content, 0)
            self._end = self._at + size
            if self._end > len(content):
                raise ValueError("the file ends too soon")
            self._stream = Decoder(content[self._end :])
        self._numbers = Numbers()
        self._alive: list[int] = []  # which outputs of the matrix before have weights: the next one's inputs

    def number(self, value: int) -> int:
        return self._numbers.code(self._stream, value)

    def raw(self, content: bytes, size: int) -> bytes:
        if self.writing:
            self._raw += content
            return content
        if size > self._end - self._at:
            raise ValueError("the file ends too soon")
        self._at += size
        return self._content[self._at - size : self._at]

    def size(self) -> int:
        return len(self._raw) + len(self._stream.out) if isinstance(self._stream, Encoder) else 0

    def finish(self) -> bytes:
        if isinstance(self._stream, Encoder):
            return varint(len(self._raw)) + bytes(self._raw) + self._stream.finish()
        if self._at != self._end:
            raise ValueError("the file has more numbers than its network")
        return b""

    def mask(self, mask: Array, shape: tuple[int, ...]) -> Array:
        """Rows and columns without any, then the elements between the others."""
        coder, (rows, columns) = self._stream, matrix(shape)
        given = (mask if self.writing else np.zeros(rows * columns)).astype(np.int64).reshape(rows, columns)
        width = self._width(shape)
        row_flags = [1] * rows
        if rows > 1:
            row_flags = _flags(coder, _plain(given.any(1)), rows, 1, [])
        column_flags = _flags(coder, _plain(given.any(0)), columns, width, self._alive)
        live = [c for c, flag in enumerate(column_flags) if flag]
        found = np.zeros((rows, columns), bool)
        if rows == 1:
            found[0, live] = True
            return found.reshape(-1)
        if sum(row_flags) * len(live) > STEPS:
            between = np.ix_(np.flatnonzero(row_flags), np.asarray(live, np.int64))
            found[between] = self._static(given[between].reshape(-1), sum(row_flags) * len(live)).reshape(-1, len(live))
        else:
            self._elements(given, found, row_flags, live, width)
        self._alive = row_flags
        return found.reshape(-1)

    def _elements(self, given: Array, found: Array, row_flags: list[int], live: list[int], width: int) -> None:
        coder, columns = self._stream, found.shape[1]
        model = Mixed([1, columns, len(row_flags), 32, 64, 64, 96], sets=4)
        counts = np.zeros(columns + 2 * width + 2, np.int64)  # of weights so far by column, with a margin
        shift = width + 1
        here = counts[shift : shift + columns]
        done = 0
        for r, flag in enumerate(row_flags):
            if not flag:
                continue
            near = _around(counts, columns, width)
            # how full the column and its neighbours are, in steps of powers of 2 of the share of rows seen
            full = np.minimum(7, _log2(16 * here // max(1, done) if done else here)).tolist()
            around = np.minimum(7, _log2(8 * near // max(1, done) if done else near)).tolist()
            bits = given[r].tolist()
            row = [0] * (columns + 1)
            weights = 0
            for cells, c in enumerate(live):
                left, left2 = row[c - 1], row[c - 2] if c > 1 else 0
                up = row[c - width] if c >= width else 0
                upper_left = row[c - width - 1] if c > width else 0
                upper_right = row[c - width + 1] if c >= width else 0
                wide = sum(row[max(0, c - 3) : c])
                if c >= width:
                    wide += sum(row[max(0, c - width - 2) : c - width + 3])
                if c >= 2 * width:
                    wide += sum(row[max(0, c - 2 * width - 1) : c - 2 * width + 2])
                fill = (weights * 32 // (cells + 1)).bit_length() if cells else 3
                contexts = (
                    0, c, r,
                    left + 2 * up + 4 * upper_left + 8 * upper_right + 16 * left2,
                    8 * full[c] + around[c],
                    8 * min(7, fill) + full[c],
                    12 * full[c] + wide,
                )  # fmt: skip
                bit = model.code(coder, bits[c], contexts, left + 2 * up)
                row[c] = bit
                weights += bit
            found[r] = row[:columns]
            here += found[r]
            done += 1

    def codes(self, codes: Array, shape: tuple[int, ...]) -> Array:
        count = math.prod(shape)
        many = self.number(int(count + 4 * np.count_nonzero(codes) > STEPS))
        if count > STEPS and not many:
            raise ValueError("more codes than are written one by one")
        if many:
            with self.part("values"):
                return self._static(codes, count)
        width = self._width(shape)
        with self.part("positions"):
            mask = self.mask(codes != 0, shape).reshape(matrix(shape))
        with self.part("values"):
            given = (codes if self.writing else np.zeros(count, np.int64)).reshape(mask.shape)
            return self._signs_and_magnitudes(given, mask, width).reshape(-1)

    def _signs_and_magnitudes(self, given: Array, mask: Array, width: int) -> Array:
        coder, (rows, columns) = self._stream, mask.shape
        found = np.zeros(mask.shape, np.int64)
        column_of = range(columns) if rows > 1 else [0] * columns
        signs = Mixed([1, max(column_of, default=0) + 1, rows, 27, 27])
        # lengths in bits of magnitudes - 1, step by step
        lengths = Mixed([32, 8 * max(column_of, default=0) + 8, 8 * rows, 32 * 9, 32 * 18])
        below = Mixed([9 * 256, 2 * 9 * 256])
        margin = np.zeros(columns + 2 * width + 2, np.int64)
        shift = width + 1
        before = [0] * columns
        for r in range(rows):
            here = np.flatnonzero(mask[r]).tolist()
            if not here:
                continue
            margin[shift : shift + columns] = mask[r]
            near = _around(margin, columns, width).tolist()
            numbers = given[r].tolist()
            row = [0] * columns
            for c in here:
                number = numbers[c]
                left, up = row[c - 1] if c else 0, row[c - width] if c >= width else 0
                beside = row[c - width + 1] if c >= width else 0
                last = before[c]
                a, b, d, e = _sign(left), _sign(up), _sign(last), _sign(beside)
                by = column_of[c]
                negative = signs.code(coder, int(number < 0), (0, by, r, 9 * a + 3 * b + d, 9 * a + 3 * b + e))
                size = abs(number)
                wanted = size.bit_length() - 1
                loud = max(abs(left), abs(up))
                near_by = 3 * min(2, near[c]) + min(2, loud)
                there = 9 * negative + 3 * min(2, abs(last)) + min(2, loud)
                length = 0
                while length < 32:
                    step = min(7, length)
                    contexts = (length, 8 * by + step, 8 * r + step, 32 * near_by + length, 32 * there + length)
                    if not lengths.code(coder, int(length < wanted), contexts):
                        break
                    length += 1
                magnitude = 1
                for k in range(length - 1, -1, -1):
                    bit = size >> k & 1
                    if length < 9:
                        node = 256 * length + magnitude
                        bit = below.code(coder, bit, (node, 2304 * negative + node))
                    else:
                        bit = coder.bit(EVEN, bit)
                    magnitude = 2 * magnitude + bit
                before[c] = row[c] = -magnitude if negative else magnitude
            found[r] = row
        return found

    def _width(self, shape: tuple[int, ...]) -> int:
        """Of the images that a row is: a kernel's, a channel's as flattened after a convolution, the input's; 2 where
        there are none."""
        if len(shape) > 2:
            return max(2, shape[-1])
        columns = matrix(shape)[1]
        channels = [len(self._alive), 1, 3] if 1 < len(self._alive) < columns else [1, 3]
        for count in channels:
            side = math.isqrt(columns // count)
            if side > 1 and side * side * count == columns:
                return side
        return 2

    def _static(self, flat: Array, count: int) -> Array:
        """Many numbers by one table of frequencies."""
        lowest = unzigzag(self.number(zigzag(int(flat.min())) if self.writing else 0))
        size = self.number(int(flat.max()) - lowest if self.writing else 0) + 1
        if size > rans.MOST:
            content = flat.astype("<i4").tobytes() if self.writing else b""
            return np.frombuffer(self.raw(content, 4 * count), "<i4").astype(np.int64)
        occurs = np.bincount(flat - lowest, minlength=size) if self.writing else np.zeros(size, np.int64)
        table = rans.frequencies(occurs) if self.writing else occurs
        table = np.array([self.number(int(entry)) for entry in table.tolist()], np.int64)
        if int(table.sum()) != rans.TOTAL:
            raise ValueError("frequencies that do not add up")
        content = rans.encode(flat - lowest, table) if self.writing else b""
        written = self.raw(content, self.number(len(content)))
        return flat if self.writing else rans.decode(written, table, count) + lowest


def _flags(coder: Coder, flags: list[int], count: int, width: int, alive: list[int]) -> list[int]:
    """Which rows or columns have any weight, seen by those to the left and above and by the matrix before."""
    model = Mixed([1, 32, 3, 12])
    group = count // len(alive) if alive and count % len(alive) == 0 else 0
    found = [0] * count
    for c in range(count):
        left, left2 = found[c - 1] if c else 0, found[c - 2] if c > 1 else 0
        up = found[c - width] if c >= width else 0
        upper_left = found[c - width - 1] if c > width else 0
        upper_right = found[c - width + 1] if c >= width else 0
        known = 1 + alive[c // group] if group else 0
        near = left + 2 * up
        contexts = (0, near + 4 * upper_left + 8 * upper_right + 16 * left2, known, 4 * known + near)
        found[c] = model.code(coder, flags[c], contexts)
    return found


def _plain(flags: Any) -> list[int]:
    return [int(flag) for flag in flags]


def _around(counts: Array, columns: int, width: int) -> Array:
    """The sums of the four neighbours of each column; `counts` has a margin of width + 1 on both sides."""
    found = np.zeros(columns, np.int64)
    for step in (-1, 1, -width, width):
        found += counts[width + 1 + step : width + 1 + step + columns]
    return found


def _log2(values: Array) -> Any:
    """The length in bits of whole numbers below 2^31, exactly."""
    return np.frexp(values.astype(np.float64))[1]


def _sign(number: int) -> int:
    return 0 if number == 0 else 1 if number > 0 else 2
