"""`coding=huffman`: the format of Han et al. 2016, "Deep Compression": weights that are not zero by their distance from
the one before, in few bits, with zeros as fillers where a distance is too long; codes and distances Huffman coded.

A distance of n is written as n - 1 in b bits, the first counted from the element before the tensor; where more than 2^b
are to go, a filler stands 2^b further on. Each tensor has its own canonical tables. A tensor of which so much is left
that distances cost more than they save is written without them. Floats that are no codes stay as they are, at their
positions.
"""

from __future__ import annotations

import heapq
import math

import numpy as np

from frugal.coding.bytestream import ByteBody, unzigzag, zigzag
from frugal.coding.coder import CodingTechnique
from frugal.coding.tensors import Array
from frugal.errors import SettingsError

LONGEST = 15  # bits of a Huffman code: its length is stored in 4
MOST = 4096  # symbols of a table


class Huffman(CodingTechnique):
    """
    Args:
        position_bits: of distances in matrices (Han et al.: 5).
        conv_position_bits: of distances in tensors of three dimensions and more (Han et al.: 8).
    """

    coder = "huffman"

    def __init__(self, position_bits: int = 5, conv_position_bits: int = 8) -> None:
        super().__init__()
        for key, value in (("position_bits", position_bits), ("conv_position_bits", conv_position_bits)):
            if not 1 <= value <= 12:
                raise SettingsError(f"coding.{key}={value}: must be from 1 to 12")
        self.position_bits, self.conv_position_bits = position_bits, conv_position_bits

    def arguments(self) -> dict[str, int]:
        return {"position_bits": self.position_bits, "conv_position_bits": self.conv_position_bits}


class HuffmanBody(ByteBody):
    def __init__(self, content: bytes | None, position_bits: int = 5, conv_position_bits: int = 8) -> None:
        super().__init__(content)
        self._bits = (position_bits, conv_position_bits)

    def mask(self, mask: Array, shape: tuple[int, ...]) -> Array:
        """With fillers."""
        count = math.prod(shape)
        bits = self.number(self._bits[len(shape) > 2])
        if not 1 <= bits <= 12:
            raise ValueError("distances of too many bits")
        distances = relative(np.flatnonzero(mask), bits) if self.writing else np.empty(0, np.int64)
        kept = self.number(len(distances))
        if kept > count:
            raise ValueError("more positions than elements")
        positions = np.cumsum(self.symbols(distances, kept) + 1) - 1
        if len(positions) and (int(np.diff(positions, prepend=-1).min()) < 1 or int(positions[-1]) >= count):
            raise ValueError("positions beyond their tensor")
        found = np.zeros(count, bool)
        found[positions] = True
        return found

    def codes(self, codes: Array, shape: tuple[int, ...]) -> Array:
        count = math.prod(shape)
        if not self.number(int(self._sparse(codes, shape)) if self.writing else 0):
            with self.part("values"):
                return self.symbols(codes, count)
        with self.part("positions"):
            positions = np.flatnonzero(self.mask(codes != 0, shape))
        found = np.zeros(count, np.int64)
        with self.part("values"):
            found[positions] = self.symbols(codes[positions] if self.writing else codes, len(positions))
        return found

    def _sparse(self, codes: Array, shape: tuple[int, ...]) -> bool:
        """Whether distances pay, by the size of both."""
        distances = relative(np.flatnonzero(codes), self._bits[len(shape) > 2])
        kept = np.append(codes[codes != 0], np.zeros(len(distances) - np.count_nonzero(codes), np.int64))
        return _cost(distances) + _cost(kept) < _cost(codes)

    def symbols(self, symbols: Array, count: int) -> Array:
        """So many whole numbers: the table, then their codes, filled up to a byte."""
        if not count:
            return np.empty(0, np.int64)
        low = unzigzag(self.number(zigzag(int(symbols.min())) if self.writing else 0))
        size = 1 + self.number(int(symbols.max()) - low if self.writing else 0)
        if size > MOST:
            content = symbols.astype("<i4").tobytes() if self.writing else b""
            return np.frombuffer(self.raw(content, 4 * count), "<i4").astype(np.int64)
        with self.part("tables"):
            lengths = code_lengths(np.bincount(symbols - low, minlength=size).tolist()) if self.writing else [0] * size
            lengths = self._table(lengths)
        if size == 1:
            return np.full(count, low, np.int64)
        if self.writing:
            content = pack(symbols - low, lengths)
            self.raw(content, len(content))
            return symbols
        found, used = unpack(self.content[self.at :], lengths, count)
        self.at += used
        return found + low

    def _table(self, lengths: list[int]) -> list[int]:
        """Code lengths, two a byte."""
        if len(lengths) == 1:
            return lengths
        even = [*lengths, 0][: (len(lengths) + 1) // 2 * 2]
        packed = self.raw(bytes(a | b << 4 for a, b in zip(even[::2], even[1::2], strict=True)), len(even) // 2)
        found = [half for byte in packed for half in (byte & 15, byte >> 4)][: len(lengths)]
        if sum(1 << LONGEST - length for length in found if length) != 1 << LONGEST:
            raise ValueError("a table that is no code")
        return found


def relative(positions: Array, bits: int) -> Array:
    """Distances - 1 of ascending positions, with fillers: each below 2^bits.

    Positions 1, 4 and 15 in 3 bits (the paper's figure 3): distances 2, 3, 8 to a filler, 3.
    """
    gaps = np.diff(positions, prepend=-1) - 1
    fillers = gaps >> bits
    found = np.full(len(gaps) + int(fillers.sum()), (1 << bits) - 1, np.int64)
    found[np.cumsum(fillers + 1) - 1] = gaps & (1 << bits) - 1
    return found


def code_lengths(counts: list[int]) -> list[int]:
    """Lengths of Huffman codes in bits by symbol, 0 for what does not occur; none above `LONGEST`. Ties are broken by
    the symbol, so that the table is always the same."""
    used = [symbol for symbol, count in enumerate(counts) if count]
    if len(used) == 1:
        return [int(count > 0) for count in counts]
    weights = list(counts)
    while True:
        heap: list[tuple[int, int, tuple[int, ...]]] = [(weights[symbol], symbol, (symbol,)) for symbol in used]
        heapq.heapify(heap)
        lengths = [0] * len(counts)
        while len(heap) > 1:
            (first, tie, left), (second, _, right) = heapq.heappop(heap), heapq.heappop(heap)
            for symbol in (*left, *right):
                lengths[symbol] += 1
            heapq.heappush(heap, (first + second, tie, (*left, *right)))
        if max(lengths, default=0) <= LONGEST:
            return lengths
        weights = [(weight + 1) // 2 for weight in weights]  # flatter, until it fits


def canonical(lengths: list[int]) -> list[int]:
    """Codes by symbol: those of one length count up in the order of the symbols, shorter ones first."""
    codes, code, before = [0] * len(lengths), 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        code <<= length - before
        codes[symbol], code, before = code, code + 1, length
    return codes


def pack(symbols: Array, lengths: list[int]) -> bytes:
    """Codes one after the other, the highest bit first."""
    length = np.asarray(lengths, np.int64)[symbols]
    code = np.asarray(canonical(lengths), np.int64)[symbols]
    ends = np.cumsum(length)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for k in range(int(length.max(initial=0))):  # the k-th bit from the end of each
        here = length > k
        bits[ends[here] - 1 - k] = code[here] >> k & 1
    return np.packbits(bits).tobytes()


def unpack(content: bytes, lengths: list[int], count: int) -> tuple[Array, int]:
    """So many symbols, and the bytes that they took."""
    codes = canonical(lengths)
    table = [(0, 0)] * (1 << LONGEST)  # by the next 15 bits: symbol and length
    for symbol, length in enumerate(lengths):
        if length:
            spare = LONGEST - length
            table[codes[symbol] << spare : codes[symbol] + 1 << spare] = [(symbol, length)] * (1 << spare)
    found = np.empty(min(count, 8 * len(content)), np.int64)  # a symbol takes a bit at least
    if len(found) < count:
        raise ValueError("the file ends too soon")
    window = filled = at = used = 0
    for k in range(count):
        while filled < LONGEST:
            window = window << 8 | (content[at] if at < len(content) else 0)
            filled, at = filled + 8, at + 1
        symbol, length = table[window >> filled - LONGEST]
        filled -= length
        window &= (1 << filled) - 1
        used += length
        found[k] = symbol
    size = (used + 7) // 8
    if size > len(content):
        raise ValueError("the file ends too soon")
    return found, size


def _cost(symbols: Array) -> float:
    """Bytes of `symbols`, about: their codes and their table."""
    if not symbols.size:
        return 0.0
    low, high = int(symbols.min()), int(symbols.max())
    if high - low >= MOST:
        return 4.0 * len(symbols)
    counts = np.bincount(symbols - low)
    return (int((counts * np.asarray(code_lengths(counts.tolist()))).sum()) + 4 * len(counts)) / 8
