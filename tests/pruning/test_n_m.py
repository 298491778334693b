"""The pattern by hand, along the inputs of linear and convolutional layers, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_training import Toy, fit, perceptron

from frugal.errors import SettingsError
from frugal.pruning.masks import weight_of
from frugal.pruning.n_m import NMPruning, accelerate, no_kernels, pattern


def test_the_pattern_by_hand() -> None:
    weight = torch.tensor([[1.0, -4.0, 2.0, 3.0, 0.0, 0.0, 0.0, -1.0], [5.0, 5.0, 5.0, 5.0, 1.0, 2.0, 3.0, 4.0]])
    wanted = [[0, 1, 0, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0, 1, 1]]  # of equal ones the first
    assert pattern(weight, 2, 4).int().tolist() == wanted
    assert pattern(weight[:, :4], 1, 2).int().tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]


def test_of_a_convolution_channels_are_compared_at_each_place() -> None:
    weight = torch.arange(1 * 4 * 1 * 2, dtype=torch.float32).view(1, 4, 1, 2)
    weight[0, :, 0, 1] *= -torch.tensor([4.0, 3.0, 0.1, 0.2])  # 4, 9, 0.5, 1.4
    kept = pattern(weight, 2, 4)
    assert kept[0, :, 0, 0].tolist() == [False, False, True, True]
    assert kept[0, :, 0, 1].tolist() == [True, True, False, False]


def test_in_training() -> None:
    module, pruning = Toy(perceptron()), NMPruning(at=3)
    fit(module, pruning)
    network = pruning.finalize(module.network, [])
    groups = (weight_of(network.get_submodule("0")) != 0).view(-1, 4).sum(1)
    assert bool((groups == 2).all()) and bool(weight_of(network.get_submodule("3")).all())
    figures = pruning.figures()
    assert figures["left_alone"] == ["3"] and figures["pattern"] == "2:4" and figures["status"] == "masked"
    assert figures["density"] == 0.5 and figures["layers"] == {"0": 0.5}


def test_kernels() -> None:
    assert no_kernels(1, 4) == "there are kernels for 2:4 only, not 1:4"
    if not torch.cuda.is_available():
        assert no_kernels() == "no CUDA device"
        with pytest.raises(SettingsError, match=r"^pruning=n_m: no CUDA device$"):
            accelerate(perceptron())


@pytest.mark.gpu
def test_kernels_compute_the_same() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(128, 64)).to("cuda", torch.float16)
    NMPruning().finalize(network, [])
    x = torch.randn(64, 128, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        wanted = network(x)
        assert accelerate(network) == ["0"]
        assert torch.allclose(network(x), wanted, atol=1e-2)


def test_bad_settings() -> None:
    with pytest.raises(SettingsError, match=r"^pruning\.n=4: .*pruning\.m=4"):
        NMPruning(n=4)
    with pytest.raises(SettingsError, match=r"^pruning\.m=7: no layer's inputs divide by it \(0, 3\)$"):
        NMPruning(n=1, m=7).prepare(perceptron())
