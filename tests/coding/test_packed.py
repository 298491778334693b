"""Whole numbers in a safetensors file: bytes by hand, and back again."""

from __future__ import annotations

import pytest
import torch

from frugal.coding.encoding import Encoding
from frugal.coding.packed import pack, unpack


def encoding(codes: list[list[int]], **parts: torch.Tensor) -> Encoding:
    return Encoding(torch.tensor(codes, dtype=torch.int32), **parts)


def test_four_bits_lie_two_to_a_byte() -> None:
    """-8 is nibble 0, 0 is nibble 8, 7 is nibble 15; an odd one is followed by nothing."""
    found = pack({"w": encoding([[-8, 0, 7]], scale=torch.tensor(0.5))})
    assert found["w"].tolist() == [0x08, 0xF0] and found["w"].dtype == torch.uint8
    state, encodings = unpack({**found, "bias": torch.ones(1)}, {"w": ((1, 3), torch.float32)})
    assert state["w"].tolist() == [[-4.0, 0.0, 3.5]] and set(state) == {"w", "bias"}
    assert encodings["w"].codes.tolist() == [[-8, 0, 7]]


@pytest.mark.parametrize(("largest", "dtype"), [(8, torch.int8), (127, torch.int8), (128, torch.int16)])
def test_wider_codes_take_the_smallest_type(largest: int, dtype: torch.dtype) -> None:
    scale = torch.tensor([1.0, 2.0])
    found = pack({"w": encoding([[largest, 0], [-1, 1]], scale=scale)})
    assert found["w"].dtype == dtype
    assert unpack(found, None)[0]["w"].tolist() == [[largest, 0], [-2, 2]]


def test_a_table_comes_back() -> None:
    found = pack({"w": encoding([[0, 1], [2, 1]], table=torch.tensor([-1.5, 4.0]))})
    assert unpack(found, {"w": ((2, 2), torch.float32)})[0]["w"].tolist() == [[0.0, -1.5], [4.0, -1.5]]


def test_waves_come_back() -> None:
    given = encoding([[0, 1, 0, 2]], scale=torch.tensor(0.5), waves=True)  # type: ignore[arg-type]
    found = pack({"w": given})
    assert set(found) == {"w", "w.scale", "w.waves"}
    state, encodings = unpack(found, {"w": ((1, 4), torch.float32)})
    assert torch.equal(state["w"], given.decode()) and encodings["w"].waves and set(state) == {"w"}
    alone = pack({"w": encoding([[0, 1, 0, 2]], waves=True)})  # type: ignore[arg-type]
    assert torch.equal(unpack(alone, {"w": ((1, 4), torch.float32)})[0]["w"], 2 * given.decode())


@pytest.mark.parametrize("shape", [(5,), (2, 4), (0,)])
def test_codes_for_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    found = pack({"w": encoding([[1, 2, 3]], scale=torch.tensor(1.0))})
    with pytest.raises(ValueError, match="w has 4 codes"):
        unpack(found, {"w": (shape, torch.float32)})
