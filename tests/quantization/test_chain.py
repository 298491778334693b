"""A small network all the way by hand: pruned, clustered, and the bytes of its file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from frugal.coding import packed
from frugal.coding.encoding import encodings_of
from frugal.pruning.magnitude import MagnitudePruning
from frugal.quantization.codebook import Codebook
from frugal.quantization.weight_int4 import WeightInt4


def hand() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0, 0.5], [-4.0, 5.0, -6.0, 0.1]]))
        network[1].weight.copy_(torch.tensor([[0.5, -0.25], [7.0, 0.125]]))
        network[1].bias.copy_(torch.tensor([1.0, 2.0]))
    return network


def test_masks_centroids_and_codes() -> None:
    """Five of eight stay: -2, 3, -4, 5, -6. Two values between -6 and 5: means of (-2, -4, -6) and of (3, 5)."""
    network = MagnitudePruning(densities=[0.625, 0.5]).finalize(hand(), [])
    assert network[0].weight.tolist() == [[0, -2, 3, 0], [-4, 5, -6, 0]]
    assert network[1].weight.tolist() == [[0.5, 0], [7, 0]]
    network = Codebook(bits=1).finalize(network, [])
    assert network[0].weight.tolist() == [[0, -4, 4, 0], [-4, 4, -4, 0]]
    found = encodings_of(network)
    assert found["0.weight"].codes.tolist() == [[0, 1, 2, 0], [1, 2, 1, 0]]
    assert found["0.weight"].table.tolist() == [-4, 4] and found["1.weight"].table.tolist() == [0.5, 7]
    assert found["1.weight"].codes.tolist() == [[1, 0], [2, 0]] and network[1].bias.tolist() == [1, 2]


def test_quantized_values_and_bytes(tmp_path: Path) -> None:
    """Scales 3/7 and 6/7 of the rows; codes by rounding, and two of them a byte in the file."""
    network = MagnitudePruning(densities=[0.625, 1.0]).finalize(hand(), [])
    network = WeightInt4(group=None, clip="max").finalize(network, [])
    encoding = encodings_of(network)["0.weight"]
    assert encoding.codes.tolist() == [[0, -5, 7, 0], [-5, 6, -7, 0]]  # -2 / (3/7) = -4.67, 5 / (6/7) = 5.83
    scale = torch.tensor([3.0, 6.0]) / 7
    assert torch.equal(encoding.scale, scale)
    assert torch.equal(network[0].weight, encoding.codes * scale[:, None])
    file = tmp_path / "model.safetensors"
    save_file(packed.pack({"0.weight": encoding}), file)
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    begin, end = header["0.weight"]["data_offsets"]
    data = content[-12:]  # two scales of four bytes, four pairs of codes, each code with 8 added
    assert data[begin:end] == bytes([0x83, 0xF8, 0x3E, 0x18])
    begin, end = header["0.weight.scale"]["data_offsets"]
    assert data[begin:end] == struct.pack("<2f", 3 / 7, 6 / 7)
