"""Networks: parameter counts of the literature, outputs by hand, and errors that name the option."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from frugal.errors import SettingsError
from frugal.models.activations import activation_module
from frugal.models.lenet5 import LeNet5
from frugal.models.lenet_300_100 import LeNet300100
from frugal.models.linear import Linear
from frugal.models.mlp import MLP
from frugal.models.simple_net import SimpleNet

MNIST = (1, 28, 28)


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (SimpleNet(MNIST, 10), 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10),
        (LeNet300100(MNIST, 10), 266_610),
        (LeNet5(MNIST, 10), 431_080),
        (Linear(MNIST, 10), 7_850),
        (MLP(MNIST, 10), 784 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10),
    ],
    ids=["simple_net", "lenet_300_100", "lenet5", "linear", "mlp"],
)
def test_parameters_and_output_shape(network: nn.Module, parameters: int) -> None:
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.zeros(3, *MNIST)).shape == (3, 10)


def test_simple_net_takes_any_widths_and_input() -> None:
    network = SimpleNet([4], 3, hidden=[5, 6, 7])
    widths = [(layer.in_features, layer.out_features) for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert widths == [(4, 5), (5, 6), (6, 7), (7, 3)]
    assert SimpleNet((2, 3, 3), 4, hidden=[])(torch.zeros(2, 2, 3, 3)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "at_minus_one"),
    [
        ("relu", 0.0),
        ("sigmoid", 1 / (1 + math.e)),
        ("tanh", math.tanh(-1)),
        ("gelu", -0.5 * (1 + math.erf(-1 / math.sqrt(2)))),
    ],
)
def test_activation_reaches_the_output(name: str, at_minus_one: float) -> None:
    network = SimpleNet((1,), 1, hidden=[1], activation=name)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.full_like(p, 1.0 if p.ndim == 2 else 0.0))
    assert network(torch.tensor([[-1.0]])).item() == pytest.approx(at_minus_one, abs=1e-6)


def test_lenet5_has_no_activation_after_convolutions() -> None:
    """With all weights 1, an input of -1 stays negative through both convolutions; the hidden layer cuts it."""
    network = LeNet5(MNIST, 10)
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.fill_(1.0 if name.endswith("weight") else 0.0)
        after_convolutions: list[torch.Tensor] = []
        network.pool2.register_forward_hook(lambda _layer, _inputs, output: after_convolutions.append(output))
        network(-torch.ones(1, *MNIST))
        assert torch.equal(after_convolutions[0], torch.full((1, 50, 4, 4), -25.0 * 20 * 25))
        assert torch.equal(network(-torch.ones(1, *MNIST)), torch.zeros(1, 10))


def test_lenet5_computes_the_same_with_channels_last() -> None:
    torch.manual_seed(0)
    network, x = LeNet5(MNIST, 10), torch.randn(4, *MNIST)
    last = LeNet5(MNIST, 10, channels_last=True)
    last.load_state_dict(network.state_dict())
    lain: list[torch.Tensor] = []
    last.pool1.register_forward_hook(lambda _layer, _inputs, output: lain.append(output))
    assert torch.allclose(last(x), network(x), atol=1e-5)
    assert lain[0].is_contiguous(memory_format=torch.channels_last)


def test_lenet5_starts_as_caffe_does() -> None:
    torch.manual_seed(0)
    network = LeNet5(MNIST, 10)
    for layer, fan_in in [(network.conv1, 25), (network.conv2, 500), (network.fc1, 800), (network.fc2, 500)]:
        bound = math.sqrt(3 / fan_in)
        assert layer.get_parameter("weight").abs().max() <= bound
        assert layer.get_parameter("weight").abs().max() > 0.95 * bound
        assert not layer.get_parameter("bias").any()


def test_errors_name_the_option() -> None:
    with pytest.raises(SettingsError, match=r"model\.network.activation=swish is unknown; choose one of relu, sigmoid"):
        activation_module("swish")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"model\.network.hidden"):
        SimpleNet((4,), 2, hidden=[0])
    with pytest.raises(SettingsError, match="at least 16x16"):
        LeNet5((1, 8, 8), 10)
