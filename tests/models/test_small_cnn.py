"""SmallCNN: its size, an output by hand, the memory format of what it computes, errors that name the option."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frugal.errors import SettingsError
from frugal.models.small_cnn import SmallCNN


def test_parameters_and_output_for_images_of_several_sizes() -> None:
    convolutions = 9 * (1 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64)
    network = SmallCNN((1, 28, 28), 10)
    assert sum(p.numel() for p in network.parameters()) == convolutions + 64 * 3 * 3 * 10 + 10 == 29_178
    assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    for shape in ((1, 8, 8), (3, 32, 20)):
        assert SmallCNN(shape, 4, widths=[2, 3, 5])(torch.zeros(2, *shape)).shape == (2, 4)


def test_output_by_hand() -> None:
    """With convolutions that pass their input on, what is left of an 8x8 image is its largest pixel, if positive."""
    network = SmallCNN((1, 8, 8), 1, widths=(1, 1, 1)).eval()
    with torch.no_grad():
        for layer in network.stages:
            if isinstance(layer, nn.Conv2d):
                layer.weight.zero_()[0, 0, 1, 1] = 1
        network.head.weight.fill_(2)
        network.head.bias.fill_(0.5)
    x = torch.full((2, 1, 8, 8), -1.0)
    x[0, 0, 5, 2] = 3
    scale = (1 + network.stages[2].eps) ** -1.5  # three BatchNorms with mean 0 and variance 1
    torch.testing.assert_close(network(x), torch.tensor([[2 * 3 * scale + 0.5], [0.5]]))


def test_tensors_stay_channels_last() -> None:
    network, seen = SmallCNN((3, 16, 16), 10), []
    for layer in network.stages:
        layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    network(torch.randn(4, 3, 16, 16))
    assert len(seen) == 12 and all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


@pytest.mark.parametrize(
    ("shape", "widths", "message"),
    [
        ((1, 7, 28), (16, 32, 64), r"takes images of at least 8x8, not \[1, 7, 28\]"),
        ((64,), (16, 32, 64), r"takes images of at least 8x8, not \[64\]"),
        ((1, 8, 8), (16, 32), r"model\.network\.widths=\[16, 32\]: needs three numbers"),
        ((1, 8, 8), (16, 0, 64), r"model\.network\.widths=\[16, 0, 64\]: needs three numbers"),
    ],
)
def test_errors_name_the_option(shape: tuple[int, ...], widths: tuple[int, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SmallCNN(shape, 10, widths)
