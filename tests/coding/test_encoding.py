"""Whole numbers to floats, by hand, and the checks before they are written."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from frugal.coding.encoding import Encoding, attach, encodings_of
from frugal.errors import RunError

CODES = torch.tensor([[0, 1, -2, 3], [4, 0, 5, -6]], dtype=torch.int32)


def test_scales() -> None:
    assert torch.equal(Encoding(CODES).decode(), CODES.float())
    assert torch.equal(Encoding(CODES, torch.tensor(0.5)).decode(), CODES.float() / 2)
    channels = Encoding(CODES, torch.tensor([0.5, 2.0])).decode()
    assert channels.tolist() == [[0, 0.5, -1, 1.5], [8, 0, 10, -12]]
    groups = Encoding(CODES, torch.tensor([[1.0, 10.0], [0.5, 0.0]])).decode()
    assert groups.tolist() == [[0, 1, -20, 30], [2, 0, 0, 0]]
    conv = Encoding(CODES.reshape(2, 2, 1, 2), torch.tensor([[1.0, 10.0], [0.5, 0.0]])).decode()
    assert torch.equal(conv, groups.reshape(2, 2, 1, 2))


def test_tables() -> None:
    codes = torch.tensor([[0, 1], [3, 2]], dtype=torch.int32)
    table = torch.tensor([0.1, -0.7, 9.0])
    assert torch.equal(Encoding(codes, None, table).decode(), torch.tensor([[0.0, 0.1], [9.0, -0.7]]))


def test_zero_stays_zero_whatever_the_scale() -> None:
    zero = Encoding(torch.zeros(2, 1, dtype=torch.int32), torch.tensor([-1.0, float("inf")])).decode()
    assert zero.view(torch.int32).tolist() == [[0], [0]]


@pytest.mark.parametrize(
    "encoding, message",
    [
        (Encoding(CODES.long()), "codes are torch.int64, not int32"),
        (Encoding(CODES, torch.tensor(0.5).double()), "its scale is torch.float64"),
        (Encoding(CODES, torch.ones(3)), r"a scale of shape \(3,\) does not fit codes of shape \(2, 4\)"),
        (Encoding(CODES, torch.ones(2, 3)), "4 inputs are not 3 groups of one size"),
        (Encoding(CODES, None, torch.ones(6)), "codes are not from 0 to 6"),
        (Encoding(CODES.abs(), None, torch.ones(5)), "codes are not from 0 to 5"),
        (Encoding(CODES.abs(), None, torch.ones(6, 1)), "its table has 2 dimensions"),
    ],
)
def test_what_no_weight_follows_from(encoding: Encoding, message: str) -> None:
    layer = nn.Linear(4, 2)
    attach(layer, {"weight": encoding})
    with pytest.raises(RunError, match=f"weight: cannot be coded .{message}"):
        encodings_of(layer)


class Rounded(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.round(weight * 2) / 2


def test_checked_against_the_weight_as_it_acts() -> None:
    layer = nn.Linear(4, 2)
    assert encodings_of(layer) == {}
    with torch.no_grad():
        layer.weight.copy_(CODES / 2 + 0.1)
    attach(layer, {"weight": Encoding(CODES, torch.tensor(0.5))})
    with pytest.raises(RunError, match=r"weight: .*not those that its codes stand for"):
        encodings_of(layer)
    parametrize.register_parametrization(layer, "weight", Rounded())
    assert torch.equal(encodings_of(layer)["weight"].codes, CODES)
    attach(layer, {"bias": Encoding(torch.zeros(2, dtype=torch.int32))})
    with pytest.raises(RunError, match="bias"):
        encodings_of(layer)
    layer.bias.data.zero_()
    assert list(encodings_of(layer)) == ["weight", "bias"]
    attach(layer, {"gone": Encoding(CODES)})
    with pytest.raises(RunError, match="gone: has codes, but the network has no such parameter"):
        encodings_of(layer)
