"""Size and sparsity are what the weights and the file say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from frugal.measure import size_figures, sparsity_figures
from frugal.measure.size import dense_fp32_bytes, plain_state, plain_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 10))


@pytest.mark.parametrize(
    "build", [network, lambda: nn.Linear(1000, 3), lambda: nn.Sequential(*[nn.Linear(7, 7) for _ in range(12)])]
)
def test_dense_bytes_are_those_of_the_file(build: object, tmp_path: Path) -> None:
    net = build()  # type: ignore[operator]
    file = tmp_path / "dense.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, file)
    assert dense_fp32_bytes(plain_state(net)) == file.stat().st_size
    assert dense_fp32_bytes(plain_state(net.bfloat16())) == file.stat().st_size


def test_ratio_and_counts(tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        net[3].weight[:, :12] = 0
        net[3].bias.fill_(1)
        net[0].bias.fill_(1)
    file = tmp_path / "small"
    file.write_bytes(b"x" * 100)
    figures = size_figures(net, file)
    parameters = 4 * 9 + 4 + 4 + 4 + 160 + 10
    assert figures.parameters == parameters
    assert figures.nonzero_parameters == parameters - 120 - 4  # BatchNorm's bias begins at zero
    assert figures.file_bytes == 100
    assert figures.compression_ratio == figures.dense_fp32_bytes / 100
    sparsity = sparsity_figures(net)
    assert sparsity.prunable == pytest.approx(120 / 196)
    assert sparsity.overall == pytest.approx(124 / parameters)


def test_without_a_file_there_is_no_ratio() -> None:
    figures = size_figures(network(), None)
    assert figures.file_bytes is None
    assert figures.compression_ratio is None


def test_masked_weights_count_as_they_act() -> None:
    net = network()
    plain_names = set(net.state_dict())
    dense = dense_fp32_bytes(plain_state(net))
    prune.random_unstructured(net[3], "weight", amount=40)
    assert sparsity_figures(net).prunable == pytest.approx(40 / 196)
    assert size_figures(net, None).parameters == size_figures(network(), None).parameters
    assert set(plain_state(net)) == plain_names
    assert dense_fp32_bytes(plain_state(net)) == dense


def test_parametrized_and_tied_weights_count_once_as_they_act() -> None:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * (torch.arange(weight.numel()).view(weight.shape) % 2)

    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    net[1].weight = net[0].weight
    assert size_figures(net, None).parameters == 36
    single = nn.Sequential(nn.Linear(6, 6))
    parametrize.register_parametrization(single[0], "weight", Half())
    assert set(plain_weights(single)) == {"0.weight", "0.bias"}
    assert sparsity_figures(single).prunable == 0.5


def test_a_network_without_prunable_weights_has_no_sparsity() -> None:
    assert sparsity_figures(nn.BatchNorm1d(3)).prunable is None
    assert sparsity_figures(nn.ReLU()).overall is None
