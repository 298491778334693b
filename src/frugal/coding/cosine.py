"""Rows that are square images, as sums of cosine waves in whole numbers: what is smooth takes few of them.

The discrete cosine transform of Ahmed, Natarajan and Rao 1974, in both directions of the image, with waves rounded to
multiples of 2^-12. From whole numbers of waves back to pixels all is whole numbers, and so the same on every machine.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

BITS = 12  # of the waves' fractions; two directions make twice as many
FINE = 96  # of the numbers that they are computed from


def side(inputs: int) -> int | None:
    """Of the images that rows of so many inputs are; None where they are no square of 2 and more."""
    found = math.isqrt(inputs)
    return found if found > 1 and found * found == inputs else None


@functools.cache
def waves(size: int) -> Tensor:
    """(size, size) int64: row k is 2^12 * sqrt((1 if k == 0 else 2) / size) * cos(pi * (2 j + 1) * k / (2 * size)),
    rounded, by its series in whole numbers."""
    one = 1 << FINE
    pi = 16 * _arctangent(5) - 4 * _arctangent(239)  # Machin's formula
    cosines = []
    for quarter in range(4 * size):
        angle = pi * quarter // (2 * size)
        term, total, k = one, 0, 0
        while term:
            total += -term if k % 4 else term
            k += 2
            term = (term * angle * angle >> 2 * FINE) // (k * (k - 1))
        cosines.append(total)
    rows = []
    for k in range(size):
        length = math.isqrt(((1 if k == 0 else 2) << 2 * FINE) // size)
        values = [cosines[(2 * j + 1) * k % (4 * size)] * length for j in range(size)]
        rows.append([(value + (1 << 2 * FINE - BITS - 1)) >> 2 * FINE - BITS for value in values])
    return torch.tensor(rows, dtype=torch.int64)


def _arctangent(of: int) -> int:
    """arctan(1 / of) * 2^FINE."""
    power, total, k = (1 << FINE) // of, 0, 1
    while power:
        total += -(power // k) if k % 4 == 3 else power // k
        power, k = power // (of * of), k + 2
    return total


def to_pixels(numbers: Tensor) -> Tensor:
    """Whole numbers of waves (O, ...) as whole numbers of 2^-24 by pixel, int64, in the same shape."""
    images, basis = _images(numbers.to(torch.int64))
    return (basis.T @ images @ basis).reshape(numbers.shape)


def pixels(coefficients: Tensor) -> Tensor:
    """The same in floats: pixels (O, ...) of so much of each wave."""
    images, basis = _images(coefficients)
    return (basis.T @ images @ basis).reshape(coefficients.shape)


def coefficients(weight: Tensor) -> Tensor:
    """How much of each wave is in rows of pixels (O, ...), floats: the inverse of `pixels`, but for the rounding of
    the waves (some 1e-4)."""
    images, basis = _images(weight)
    return (basis @ images @ basis.T).reshape(weight.shape)


def _images(rows: Tensor) -> tuple[Tensor, Tensor]:
    size = side(rows[0].numel())
    assert size is not None
    basis = waves(size)
    if rows.dtype.is_floating_point:
        basis = _floats(size, rows.dtype, rows.device)
    return rows.reshape(len(rows), size, size), basis


@functools.cache
def _floats(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return (waves(size).double() / 2**BITS).to(device, dtype)
