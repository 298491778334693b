"""ResNet-20: the paper's number of parameters, shortcuts by hand, and which convolutions halve."""

from __future__ import annotations

import pytest
import torch

from frugal.errors import SettingsError
from frugal.models.resnet20 import Block, ResNet20


def test_parameters_are_the_papers() -> None:
    """Table 6 of the paper: 0.27 M, 0.46 M and 0.85 M for 20, 32 and 56 layers."""
    counts = [sum(p.numel() for p in ResNet20((3, 32, 32), 10, blocks).parameters()) for blocks in (3, 5, 9)]
    assert counts == [269_722, 464_154, 853_018]


def test_sizes_halve_between_stages() -> None:
    network = ResNet20((3, 32, 32), 10)
    x = torch.zeros(2, 3, 32, 32)
    x = network.norm(network.conv(x))
    shapes = [tuple((x := stage(x)).shape) for stage in network.stages]
    assert shapes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


def test_a_shortcut_takes_every_other_place_and_adds_empty_channels() -> None:
    block = Block(2, 4, stride=2).eval()
    with torch.no_grad():
        for convolution in (block.conv1, block.conv2):
            convolution.weight.zero_()  # nothing comes through the convolutions
        x = torch.arange(32.0).reshape(1, 2, 4, 4)
        out = block(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2]) and torch.equal(out[:, 2:], torch.zeros(1, 2, 2, 2))


def test_memory_format_changes_no_prediction() -> None:
    x = torch.randn(2, 3, 16, 16)
    outputs = []
    for channels_last in (True, False):
        torch.manual_seed(0)
        outputs.append(ResNet20((3, 16, 16), 5, blocks=1, channels_last=channels_last).eval()(x))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shape", "options"), [((3, 7, 9), {}), ((10,), {}), ((3, 32, 32), {"blocks": 0})])
def test_what_it_cannot_take_is_refused(shape: tuple[int, ...], options: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=r"resnet20|blocks=0"):
        ResNet20(shape, 10, **options)
