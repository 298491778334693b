"""Adaptive contexts: near the ideal where there is nothing to find, far below plain counting where there is."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from coded_states import coded, layout, parts_of, sparse_codes

from frugal.coding import container, entropy
from frugal.coding.encoding import Encoding


def bits(share: float) -> float:
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def test_near_the_entropy_of_what_has_no_pattern() -> None:
    codes = sparse_codes((200, 400), 0.1, 1) * 1
    share = float((codes != 0).float().mean())
    parts = parts_of("entropy", {"weight": Encoding(codes)})
    positions, signs = codes.numel() * bits(share) / 8, codes.count_nonzero().item() / 8
    assert positions * 0.995 < parts["positions"] < positions * 1.01 + 48
    assert signs * 0.995 < parts["values"] < signs * 1.01 + 32


def test_rows_and_columns_are_found() -> None:
    """Shares that are products of one by row and one by column, a third of each zero."""
    draw = torch.Generator().manual_seed(3)
    rows, columns = (torch.rand(size, generator=draw) ** 2 for size in (120, 784))
    rows[::3], columns[::3] = 0, 0
    shares = (rows[:, None] * columns).double().clamp(max=0.99)
    codes = (torch.rand(120, 784, generator=draw) < shares).int()
    kept = shares[shares > 0]
    ideal = float(-(kept * kept.log2() + (1 - kept) * (1 - kept).log2()).sum()) / 8  # by one who knows them
    plain = codes.numel() * bits(float(codes.float().mean())) / 8  # by one who counts weights
    found = parts_of("entropy", {"weight": Encoding(codes)})["positions"]
    assert ideal < found < 1.15 * ideal + 120 and found < 0.8 * plain


def test_neighbours_in_images_are_found() -> None:
    """Blobs in 28 x 28 inputs, of one sign each."""
    yy, xx = np.mgrid[:28, :28]
    draw = np.random.default_rng(0)
    codes = np.zeros((60, 28, 28), np.int32)
    for image in codes:
        for sign in (1, -1):
            y, x = draw.integers(4, 24, 2)
            image[(yy - y) ** 2 + (xx - x) ** 2 < 8] = sign
    parts = parts_of("entropy", {"weight": Encoding(torch.from_numpy(codes.reshape(60, 784)))})
    kept = int((codes != 0).sum())
    assert parts["positions"] < 0.55 * codes.size * bits(kept / codes.size) / 8
    assert parts["values"] < 0.45 * kept / 8


def test_outputs_without_weights_are_the_next_layers_inputs() -> None:
    """A third of the units lives: the second matrix needs no word for the others, and the bias hardly one."""
    living = torch.rand(300, generator=torch.Generator().manual_seed(0)) < 0.3
    first = sparse_codes((300, 50), 0.9, 1) * living[:, None]
    second = sparse_codes((40, 300), 0.9, 1, seed=1) * living
    bias = torch.ones(300, dtype=torch.int32) * living
    matrices = {"1": Encoding(first.int()), "2": Encoding(second.int())}
    both = parts_of("entropy", matrices)["positions"]
    alone = sum(parts_of("entropy", {name: encoding})["positions"] for name, encoding in matrices.items())
    assert both < alone - 0.7 * 300 * bits(0.3) / 8
    three = {"1": matrices["1"], "bias": Encoding(bias.int()), "2": matrices["2"]}
    assert parts_of("entropy", three)["positions"] < both + 8


def test_magnitudes() -> None:
    """Geometric ones, within 3 % of their entropy; large ones within 10 % and what the learning costs."""
    draw = np.random.default_rng(0)
    sizes = draw.geometric(0.6, (100, 100))
    ideal = sizes.size * bits(0.6) / 0.6 / 8
    assert ideal * 0.97 < parts_of("entropy", {"w": Encoding(torch.from_numpy(sizes.astype(np.int32)))})["values"]
    assert parts_of("entropy", {"w": Encoding(torch.from_numpy(sizes.astype(np.int32)))})["values"] < ideal * 1.03 + 32


def test_many_weights_by_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = sparse_codes((60, 90), 0.9, 7)
    weight = torch.where(sparse_codes((60, 90), 0.3, 1) != 0, torch.randn(60, 90), 0)
    state, encodings = coded({"w": Encoding(codes, torch.tensor(0.1)), "v": Encoding(codes * 10**6)})
    state["floats"] = weight
    adaptive, parts = container.write("entropy", state, encodings, "{}", layout(state))
    monkeypatch.setattr(entropy, "STEPS", 1000)
    content, static = container.write("entropy", state, encodings, "{}", layout(state))
    assert content != adaptive and static["values"] > 4 * codes.numel() and parts["positions"] > 0
    found, again, _ = container.read(content, lambda text: layout(state))
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert torch.equal(again["v"].codes, encodings["v"].codes)


def test_a_file_of_today_reads_for_ever() -> None:
    """Written when the format was made: the model in whole numbers gives the same on every machine."""
    state, encodings, text = container.read(bytes.fromhex(GOLDEN), lambda text: layout(golden()[0]))
    assert text == "{}"
    expected, codes = golden()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(encodings["weight"].codes, codes["weight"].codes)
    assert container.write("entropy", *golden(), "{}", layout(expected))[0].hex() == GOLDEN


def golden() -> tuple[dict[str, torch.Tensor], dict[str, Encoding]]:
    grid = torch.arange(20 * 49).reshape(20, 49)
    codes = torch.where((grid * grid // 7) % 11 == 0, grid % 9 - 4, 0) * (grid // 49 % 3 != 1)
    state, encodings = coded({"weight": Encoding(codes.int(), torch.tensor(0.5))})
    state["bias"] = torch.arange(20) / 16
    return state, encodings


@pytest.mark.slow
def test_a_quarter_of_a_million_weights_in_seconds() -> None:
    state, encodings = coded({"weight": Encoding(sparse_codes((300, 784), 0.02, 3), torch.tensor(0.1))})
    began = time.process_time()
    content, _ = container.write("entropy", state, encodings, "{}", layout(state))
    found, _, _ = container.read(content, lambda text: layout(state))
    assert torch.equal(found["weight"], state["weight"])
    assert time.process_time() - began < 15  # seen: 3 on a slow core


GOLDEN = (
    "46524713e74d5b8d02abae05002a00380000002c0030003200340035003600370038803800398039003a803a003b803b003c"
    "403c803cc03c3ba78096f58266a7ed8ce0ec3bbc530348d014f412f10e23431e9406cac0a5705d64b2d980730165ac7bfb1a"
    "be0abf3e70092ebb14b65b0eef82ce40ce9ad8ea5f250a8d7a"
)
