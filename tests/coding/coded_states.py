"""Small networks' states for the tests of the coders."""

from __future__ import annotations

import torch
from torch import Tensor

from frugal.coding import container
from frugal.coding.encoding import Encoding
from frugal.coding.tensors import Layout

Written = tuple[dict[str, Tensor], dict[str, Encoding]]


def layout(state: dict[str, Tensor]) -> Layout:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def coded(encodings: dict[str, Encoding]) -> Written:
    return {name: encoding.decode() for name, encoding in encodings.items()}, encodings


def sparse_codes(shape: tuple[int, ...], density: float, most: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(-most, most + 1, shape, generator=draw)
    return torch.where(torch.rand(shape, generator=draw) < density, codes, 0).to(torch.int32)


def everything() -> Written:
    """Each kind of tensor and of encoding that there is."""
    draw = torch.Generator().manual_seed(1)
    table = torch.tensor([0.5, -0.25, 0.125, -1.5, 0.75])
    indices = torch.randint(0, 6, (6, 20), generator=draw).to(torch.int32)
    state, encodings = coded(
        {
            "scaled": Encoding(sparse_codes((12, 30), 0.2, 3), torch.tensor(0.1)),
            "by_channel": Encoding(sparse_codes((5, 4, 3, 3), 0.5, 100), torch.rand(5, generator=draw)),
            "by_group": Encoding(sparse_codes((4, 12), 0.9, 7), torch.rand(4, 3, generator=draw)),
            "waves": Encoding(sparse_codes((6, 25), 0.3, 5), torch.tensor(2.0**-26), waves=True),
            "waves_by_channel": Encoding(sparse_codes((3, 1, 2, 2), 0.9, 1), torch.tensor([0.1, 2.0, 0.3]), waves=True),
            "bare_waves": Encoding(sparse_codes((3, 4), 0.9, 1), waves=True),
            "table": Encoding(indices, None, table),
            "table_and_scale": Encoding(indices[:2], torch.tensor([2.0, 0.5]), table),
            "vector": Encoding(sparse_codes((12,), 0.5, 2), torch.tensor(0.5)),
            "large": Encoding(torch.tensor([[2**31 - 1, -(2**31)], [0, 70000]], dtype=torch.int32)),
            "one": Encoding(torch.tensor(-3, dtype=torch.int32), torch.tensor(0.25)),
            "all_zero": Encoding(torch.zeros(3, 4, dtype=torch.int32), torch.tensor(1.0)),
            "one_value": Encoding(torch.full((3, 4), 2, dtype=torch.int32)),
            "empty": Encoding(torch.zeros(0, 4, dtype=torch.int32), torch.tensor(1.0)),
        }
    )
    weight = torch.randn(9, 11, generator=draw)
    pruned = torch.where(torch.rand(9, 11, generator=draw) < 0.1, weight, 0)
    state |= {
        "floats": weight,
        "pruned": pruned,
        "pruned_conv": pruned.reshape(1, 9, 11).clone(),
        "halves": torch.randn(7, generator=draw).half().float(),
        "bfloats": torch.tensor([1e30, -3.0, 2.0**-100]),
        "pruned_halves": torch.tensor([0.0, 0.0, 0.5, 0.0]),
        "half": weight.half(),
        "double": weight.double(),
        "ones": torch.ones(64),
        "zeros": torch.zeros(3, 5),
        "signed_zero": torch.tensor([0.1, -0.0, 1.1, -0.7, 0.3, 0.9, 5.1, 0.6]),
        "not_finite": torch.tensor([float("nan"), float("inf"), -float("inf"), 1.1]),
        "none": torch.zeros(0),
        "counter": torch.tensor(1234567890123),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "complex": torch.tensor([1 + 2j, 3j]),
        "tied": weight,
        "tied_codes": state["scaled"].clone(),
    }
    return state, encodings


def same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bytes(one.contiguous().flatten().view(torch.uint8).numpy()) == bytes(
        other.contiguous().flatten().view(torch.uint8).numpy()
    )


def parts_of(coder: str, encodings: dict[str, Encoding]) -> dict[str, int]:
    state, _ = coded(encodings)
    return container.write(coder, state, encodings, "{}", layout(state))[1]
