"""What of arrays cannot be learnt from, or only seems to be more: samples with NaN or infinity in them, and copies."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

CHUNK = 1 << 16  # samples that are looked at together


def broken(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which samples (N,) have NaN or infinity in `x` (N, ...) or `y` (N,); none where both hold whole numbers."""
    mask = np.zeros(len(x), dtype=bool)
    for array in (x, y):
        if array.dtype.kind == "f":
            flat = _rows(array)
            for begin in range(0, len(flat), CHUNK):
                mask[begin : begin + CHUNK] |= ~np.isfinite(flat[begin : begin + CHUNK]).all(axis=1)
    return mask


def place(x: np.ndarray, y: np.ndarray, row: int, names: Sequence[str] | None) -> str:
    """Where the first broken value of a row stands and what it is, in words: "column bmi is nan"."""
    values = x[row].ravel()
    wrong = np.flatnonzero(~np.isfinite(values))
    if not len(wrong):
        return f"target is {y[row]}"
    first = wrong[0]
    if x.ndim == 2:
        return f"column {names[first] if names else first} is {values[first]}"
    return f"value {[int(i) for i in np.unravel_index(first, x.shape[1:])]} is {values[first]}"


def first_alike(rows: np.ndarray) -> np.ndarray:
    """For each of the rows (N, ...) the number of the first that is equal to it, int64 (N,): its own where it is new.

    Rows are equal where their bytes are, but 0.0 and -0.0 are the same. Hashes only say what is to be compared.
    """
    flat = np.ascontiguousarray(_rows(rows))
    first = np.arange(len(flat))
    seen: dict[bytes, list[int]] = {}  # by hash, the rows that differ
    for begin in range(0, len(flat), CHUNK):
        part = flat[begin : begin + CHUNK]
        for i, row in enumerate(part + 0 if flat.dtype.kind == "f" else part, begin):
            alike = seen.setdefault(_hash(row), [])
            for j in alike:
                if _equal(flat[j], flat[i]):
                    first[i] = j
                    break
            else:
                alike.append(i)
    return first


def copies(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which samples (N,) are equal to an earlier one, their target included."""
    both = np.stack((first_alike(x), first_alike(y)), axis=1)
    return first_alike(both) != np.arange(len(x))


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), math.prod(array.shape[1:]))  # -1 would not do where there is none


def _hash(row: np.ndarray) -> bytes:
    return hashlib.blake2b(row.data, digest_size=8).digest()


def _equal(row: np.ndarray, other: np.ndarray) -> bool:
    if row.dtype.kind == "f":
        row, other = row + 0, other + 0
    return row.tobytes() == other.tobytes()
