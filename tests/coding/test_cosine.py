"""Waves in whole numbers: by their formula, by hand, and there and back."""

from __future__ import annotations

import math

import pytest
import torch

from frugal.coding import cosine
from frugal.coding.encoding import Encoding


@pytest.mark.parametrize("size", [2, 5, 28])
def test_the_waves_by_their_formula(size: int) -> None:
    for k, row in enumerate(cosine.waves(size).tolist()):
        for j, value in enumerate(row):
            length = math.sqrt((1 if k == 0 else 2) / size)
            assert abs(value - 4096 * length * math.cos(math.pi * (2 * j + 1) * k / (2 * size))) <= 0.5 + 1e-9


def test_pixels_by_hand() -> None:
    """Of 2 x 2 pixels: 2896 is 4096 times the square root of one half."""
    flat, down, right = (torch.tensor([[int(i == k) for i in range(4)]]) for k in (0, 2, 1))
    square = 2896**2
    assert cosine.to_pixels(flat).tolist() == [[square] * 4]
    assert cosine.to_pixels(down).tolist() == [[square, square, -square, -square]]
    assert cosine.to_pixels(3 * right - flat).tolist() == [[2 * square, -4 * square, 2 * square, -4 * square]]


def test_there_and_back() -> None:
    weight = torch.randn(7, 784, generator=torch.Generator().manual_seed(0))
    waves = cosine.coefficients(weight)
    torch.testing.assert_close(cosine.pixels(waves), weight, rtol=0, atol=3e-3)
    torch.testing.assert_close(waves.norm(), weight.norm(), rtol=1e-3, atol=0)
    numbers = torch.randint(-9, 10, (7, 784), generator=torch.Generator().manual_seed(1))
    whole = cosine.to_pixels(numbers)
    assert whole.dtype == torch.int64
    torch.testing.assert_close(whole.double() / 2**24, cosine.pixels(numbers.double()))
    assert torch.equal(cosine.coefficients(cosine.pixels(numbers.double())).round().long(), numbers)


def test_sides() -> None:
    assert [cosine.side(inputs) for inputs in (1, 4, 8, 784)] == [None, 2, None, 28]


def test_an_encoding_of_waves() -> None:
    codes = torch.tensor([[2, 0, 0, -1], [0, 0, 0, 0]], dtype=torch.int32)
    found = Encoding(codes, torch.tensor(0.5), waves=True).decode()
    square = 2896**2
    assert found.tolist() == [[square / 2, square * 1.5, square * 1.5, square / 2], [0.0] * 4]
    assert found[1].view(torch.int32).tolist() == [0] * 4
    assert Encoding(codes, waves=True).fault() is None
    refused = "codes of shape {} are no rows of square images"
    assert Encoding(codes[:, :3], waves=True).fault() == refused.format((2, 3))
    assert Encoding(codes[0], waves=True).fault() == refused.format((4,))
    assert (
        Encoding(codes.abs(), None, torch.ones(3), waves=True).fault()
        == "numbers of waves have neither a table nor groups"
    )
    assert Encoding(codes, torch.ones(2, 2), waves=True).fault() == "numbers of waves have neither a table nor groups"
