"""Deep Compression's format, byte for byte by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coded_states import coded, layout, parts_of, sparse_codes

from frugal.coding import container
from frugal.coding.encoding import Encoding
from frugal.coding.huffman import Huffman, HuffmanBody, canonical, code_lengths, pack, relative, unpack
from frugal.errors import SettingsError


def test_distances_and_fillers() -> None:
    # The paper's figure 3: positions 1, 4 and 15 in 3 bits; a filler 8 after the second.
    assert (relative(np.array([1, 4, 15]), 3) + 1).tolist() == [2, 3, 8, 3]
    assert relative(np.array([31]), 5).tolist() == [31]  # 32 from before the tensor: the longest without one
    assert relative(np.array([32]), 5).tolist() == [31, 0]
    assert relative(np.array([0, 300, 301]), 8).tolist() == [0, 255, 43, 0]
    assert relative(np.array([100]), 5).tolist() == [31, 31, 31, 4]
    assert relative(np.empty(0, np.int64), 5).tolist() == []


def test_lengths_and_canonical_codes() -> None:
    # 5, 2, 1, 1: the two ones join, then the two, then the five
    assert code_lengths([5, 0, 2, 1, 1]) == [1, 0, 2, 3, 3]
    assert canonical([1, 0, 2, 3, 3]) == [0b0, 0, 0b10, 0b110, 0b111]
    assert canonical([2, 1, 0, 2]) == [0b10, 0b0, 0, 0b11]
    assert code_lengths([0, 7]) == [0, 1] and code_lengths([3, 3]) == [1, 1]
    fibonacci = [1, 1]
    while len(fibonacci) < 25:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = code_lengths(fibonacci)  # 24 bits where none is too long
    assert 10 < max(lengths) <= 15 and sum(2.0**-length for length in lengths) == 1


def test_packed_bits() -> None:
    symbols = np.array([0, 3, 2, 0, 4, 0])
    content = pack(symbols, [1, 0, 2, 3, 3])
    assert content == bytes([0b0_110_10_0_1, 0b11_0_00000])
    found, used = unpack(content + b"more", [1, 0, 2, 3, 3], 6)
    assert found.tolist() == symbols.tolist() and used == 2
    with pytest.raises(ValueError, match="ends too soon"):
        unpack(content[:1], [1, 0, 2, 3, 3], 6)


def test_a_layer_by_hand() -> None:
    codes = np.zeros(512, np.int64)
    codes[[1, 4, 15]] = [2, 1, 2]
    body = HuffmanBody(None, position_bits=3)
    body.codes(codes, (8, 64))
    assert body.finish().hex(" ") == " ".join(
        [
            "01",  # with positions
            "03 04",  # in 3 bits, 4 of them, the filler among them
            "02 06 12 00 00 02",  # distances - 1 from 1 (zigzag) to 1 + 6; lengths of 1 and 2: 2 and 1, of 7: 2
            "98",  # 1 2 7 2: 10 0 11 0
            "00 02 22 01",  # values from 0 to 2: lengths 2, 2, 1
            "70",  # 2 1 0 2: 0 11 10 0
        ]
    )
    reader = HuffmanBody(body.finish())
    assert reader.codes(np.empty(0), (8, 64)).tolist() == codes.tolist()
    reader.finish()


def test_what_is_dense_has_no_positions() -> None:
    codes = sparse_codes((30, 40), 0.95, 7)
    assert "positions" not in parts_of("huffman", {"weight": Encoding(codes)})
    parts = parts_of("huffman", {"weight": Encoding(sparse_codes((30, 40), 0.1, 7))})
    assert parts["positions"] > 0 and parts["values"] > 0


def test_positions_have_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("frugal.coding.huffman.relative", lambda at, bits: seen.append(bits) or relative(at, bits))
    state, encodings = coded(
        {"conv": Encoding(sparse_codes((8, 4, 3, 3), 0.1, 3)), "linear": Encoding(sparse_codes((8, 40), 0.1, 3))}
    )
    Huffman(position_bits=4, conv_position_bits=7).encode(state, encodings, "{}")
    assert seen == [7, 7, 4, 4]
    for key in ("position_bits", "conv_position_bits"):
        with pytest.raises(SettingsError, match=rf"coding\.{key}=13: must be from 1 to 12"):
            Huffman(**{key: 13})


def test_floats_without_codes_keep_their_positions() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 60, generator=draw) * (torch.rand(50, 60, generator=draw) < 0.1)
    kept = int(weight.count_nonzero())
    content, parts = container.write("huffman", {"w": weight}, {}, "{}", {"w": ((50, 60), torch.float32)})
    fillers = int((relative(np.flatnonzero(weight), 5) == 31).sum())  # a few may be distances of just 32
    assert 4 * kept < parts["floats"] <= 4 * (kept + fillers) and parts["positions"] < kept
    found = container.read(content, lambda text: {"w": ((50, 60), torch.float32)})[0]["w"]
    assert torch.equal(found, weight)
    assert (weight.signbit() & (weight == 0)).any() and not (found.signbit() & (found == 0)).any()  # -0.0 is a zero


def test_lenet_300_100_as_han_left_it() -> None:
    """266,200 weights at 8, 9 and 26 %, codebooks of 64, 64 and 64: the paper's file is 27 to 29 kB."""
    draw = torch.Generator().manual_seed(0)
    encodings = {}
    for k, (shape, density) in enumerate((((300, 784), 0.08), ((100, 300), 0.09), ((10, 100), 0.26))):
        codes = torch.randn(shape, generator=draw).mul(10).round().clamp(-31, 31).add(32)  # most near zero
        kept = torch.rand(shape, generator=draw) < density
        encodings[f"{k}"] = Encoding((codes * kept).int(), None, torch.linspace(-1, 1, 63))
    assert 27_000 < sum(parts_of("huffman", encodings).values()) < 32_000
    state, _ = coded(encodings)
    content, _ = container.write("huffman", state, encodings, "{}", layout(state))
    assert torch.equal(container.read(content, lambda text: layout(state))[0]["0"], state["0"])
