"""zstandard: the bytes that go into it by hand, and what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coded_states import parts_of, sparse_codes

from frugal.coding.encoding import Encoding
from frugal.coding.zstd import ZstdBody, compress, decompress

pytest.importorskip("zstandard")


@pytest.mark.parametrize(
    "codes, plain",
    [
        ([1, -1, 7, -8, 3], [0, 0xF1, 0x87, 0x03]),  # nibbles: two a byte, the first the lower
        ([1, 8, -128], [1, 1, 8, 0x80]),
        ([1, 200], [2, 1, 0, 200, 0]),
        ([-(2**31)], [3, 0, 0, 0, 0x80]),
    ],
)
def test_codes_in_the_smallest_type(codes: list[int], plain: list[int]) -> None:
    body = ZstdBody(None)
    body.codes(np.array(codes), (len(codes),))
    assert list(body.out) == plain
    assert ZstdBody(body.finish()).codes(np.empty(0), (len(codes),)).tolist() == codes


def test_a_frame_of_another_size_is_refused() -> None:
    frame = compress(b"frugal" * 100)
    assert len(frame) < 20 and decompress(frame, 600) == b"frugal" * 100
    for size in (0, 599, 601):
        with pytest.raises(ValueError):
            decompress(frame, size)
    with pytest.raises(ValueError):
        ZstdBody(b"\xff\xff\xff\xff\xff\x7f" + frame)


def test_sparse_codes_become_small() -> None:
    parts = parts_of("zstd", {"weight": Encoding(sparse_codes((100, 200), 0.05, 3), torch.tensor(0.1))})
    assert parts["tensors"] < 1300  # 20,000 weights: about 960 bytes by entropy
