"""Rows, channels and whole layers that pruning emptied: in no quantization do they become NaN or come back to life."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from frugal.deploy.base import FileNetwork
from frugal.measure.size import plain_weights
from frugal.quantization.codebook import Codebook
from frugal.quantization.dynamic_int8 import DynamicInt8
from frugal.quantization.qat_int4 import QATInt4
from frugal.quantization.qat_int8 import QATInt8
from frugal.quantization.rate import Rate
from frugal.quantization.static_int8 import StaticInt8
from frugal.quantization.weight_int4 import WeightInt4
from frugal.quantization.weight_int8 import WeightInt8
from frugal.technique import Technique

OPTIONS: dict[str, Callable[[], Technique]] = {
    "weight_int8": WeightInt8,
    "weight_int8, mse": lambda: WeightInt8(group=4, clip="mse"),
    "weight_int4": WeightInt4,
    "qat_int8": QATInt8,
    "qat_int4": QATInt4,
    "codebook": Codebook,
    "rate": Rate,
    "static_int8": StaticInt8,
    "static_int8, per channel": lambda: StaticInt8(per_channel=True),
    "static_int8, entropy": lambda: StaticInt8(calibration="entropy", samples=8),
    "dynamic_int8": DynamicInt8,
    "dynamic_int8, all": lambda: DynamicInt8(per_channel=True, convolutions=True),
}


def emptied() -> nn.Module:
    """A convolution without its second channel, a layer without its first row, and one without any weight."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 2)
    )
    with torch.no_grad():
        network[0].weight[1] = 0
        network[3].weight[0] = 0
        network[5].weight.zero_()
    return network


@pytest.mark.onnx
@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_empty_stays_empty_and_finite(option: str) -> None:
    technique, network, batches = OPTIONS[option](), emptied(), [torch.rand(8, 1, 4, 4)]
    technique.prepare(network)
    finished = technique.finalize(network, batches)
    with torch.no_grad():
        assert torch.isfinite(finished(batches[0])).all() and torch.isfinite(finished(torch.zeros(2, 1, 4, 4))).all()
    if isinstance(finished, FileNetwork):
        return  # its weights lie there as its runtime likes them
    weights = plain_weights(finished)
    assert not weights["0.weight"][1].any() and not weights["3.weight"][0].any() and not weights["5.weight"].any()
    assert all(
        torch.isfinite(weight).all() and (weight.any() or name == "5.weight") for name, weight in weights.items()
    )
