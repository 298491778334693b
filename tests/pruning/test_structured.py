"""Units that go: which, by hand, on every kind of network; the smaller network computes the same; and its shapes."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from toy_training import Toy, Until, fit, perceptron

from frugal.errors import RefusedError, RunError, SettingsError
from frugal.measure.flops import count_flops
from frugal.models.gpt import GPT
from frugal.models.lenet5 import LeNet5
from frugal.models.resnet20 import ResNet20
from frugal.models.text_encoder import TextEncoder
from frugal.pruning.masks import masks_of, weight_of
from frugal.pruning.structured import StructuredPruning, cut, find_units, importance, reshape, rounded

pytest.importorskip("torch_pruning")


def test_neurons_by_hand() -> None:
    """Norms over the row before and the column after: sqrt(1 + 0), sqrt(0 + 25), sqrt(4 + 4)."""
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]))
        network[0].bias.copy_(torch.tensor([9.0, 1.0, 1.0]))
        network[2].weight.copy_(torch.tensor([[0.0, 3.0, 2.0], [0.0, 4.0, 0.0]]))
    (group,) = find_units(network, torch.randn(2, 2))
    assert group.name == "0" and importance(network, group).tolist() == pytest.approx([1, 5, 8**0.5])
    pruning = StructuredPruning(density=0.67)
    smaller = pruning.finalize(network, [torch.randn(2, 2)])
    assert smaller[0].weight.tolist() == [[0.0, 0.0], [0.0, 2.0]]  # type: ignore[index,operator,union-attr]
    assert smaller[0].bias.tolist() == [1.0, 1.0] and smaller[2].weight.tolist() == [[3.0, 2.0], [4.0, 0.0]]  # type: ignore[index,operator,union-attr]
    assert smaller.frugal_shapes == {"0": [2, 2], "2": [2, 2]}
    assert pruning.figures() == {
        "units": {"0": [2, 3]}, "left_alone": ["2"], "parameters": [12, 17], "macs": [8, 12], "prunings": 1,
        "first_pruned_at": None, "status": "converted",
    }  # fmt: skip


def images() -> Tensor:
    return torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def texts() -> Tensor:
    return torch.randint(1, 11, (2, 8), generator=torch.Generator().manual_seed(0))


NETWORKS: dict[str, tuple[Any, Any]] = {
    "lenet5": (lambda: LeNet5([1, 28, 28], 10), images),
    "resnet20": (lambda: ResNet20([1, 28, 28], 10, blocks=1), images),
    "gpt": (lambda: GPT(11, 8, layers=1, heads=4, width=16), texts),
    "gpt_mini": (
        lambda: GPT(11, 8, layers=2, heads=4, width=16, activation="swiglu", positions="rotary", tied=False),
        texts,
    ),
    "text_encoder": (lambda: TextEncoder(11, 3, 8, layers=1, heads=4, width=16), texts),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_smaller_network_computes_what_the_masked_one_did(name: str) -> None:
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    network, x = make().eval(), inputs()
    untouched = copy.deepcopy(network)
    pruning = StructuredPruning(density=0.5, heads=0.5)
    pruning.prepare(network)
    pruning._example = x
    pruning.prune(network, 0)
    pruning.pruned_at = [0]
    masked = network(x).detach()
    assert not torch.allclose(masked, untouched(x), atol=1e-3)
    smaller = pruning.finalize(network, [x])
    assert torch.allclose(smaller(x), masked, atol=1e-5)
    figures = pruning.figures()
    assert figures["parameters"][0] == sum(p.numel() for p in smaller.parameters()) < figures["parameters"][1]
    assert figures["macs"][0] < 0.75 * figures["macs"][1]
    assert all(kept == count // 2 for kept, count in figures["units"].values())
    if name in ("gpt", "gpt_mini", "text_encoder"):
        assert {4, 16} < {count for _, count in figures["units"].values()} | {16}  # heads, and hidden units
    again = reshape(untouched, smaller.frugal_shapes)  # type: ignore[arg-type]
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again(x), smaller(x))


def test_a_third_of_the_multiply_adds() -> None:
    pruning, network = StructuredPruning(macs=0.33, round_to=1), LeNet5([1, 28, 28], 10)
    before = count_flops(network, images()).forward
    smaller = pruning.finalize(network, [images()])
    assert 0.3 < count_flops(smaller, images()).forward / before <= 0.33
    assert pruning.figures()["macs"][1] * 2 * 2 == before == 2 * 2 * 2_293_000  # Caffe's LeNet has 2.3 million
    with pytest.raises(RunError, match=r"^pruning\.macs=0\.0001: with one unit in each layer"):
        StructuredPruning(macs=0.0001).finalize(LeNet5([1, 28, 28], 10), [images()])


@pytest.mark.parametrize(
    ("number", "multiple", "most", "wanted"),
    [(11, 1, 20, 11), (11, 8, 20, 8), (12, 8, 20, 16), (3, 8, 20, 8), (20, 8, 20, 20), (3, 8, 15, 3), (3, 8, 16, 8)],
)
def test_rounded_numbers_of_units(number: int, multiple: int, most: int, wanted: int) -> None:
    assert rounded(number, multiple, most) == wanted


def test_units_by_eights() -> None:
    """Kept to the multiply-adds as well: 8 * 14,400 + 8 * 32 * 1,600 + 16 * 32 * 288 + 10 * 288 = 675,136."""
    pruning = StructuredPruning(macs=0.33)
    pruning.finalize(LeNet5([1, 28, 28], 10), [images()])
    units = {name: kept for name, (kept, _) in pruning.figures()["units"].items()}
    assert units == {"conv1": 8, "conv2": 32, "fc1": 288}
    assert pruning.figures()["macs"] == [675_136, 2_293_000]
    tiny = StructuredPruning(macs=0.05)  # more than is left with eights
    tiny.finalize(LeNet5([1, 28, 28], 10), [images()])
    assert tiny.figures()["units"]["conv1"][0] < 8 and tiny.figures()["macs"][0] <= 0.05 * 2_293_000
    with pytest.raises(SettingsError, match=r"^pruning\.round_to=0: the least value is 1"):
        StructuredPruning(round_to=0)
    with pytest.raises(RunError, match=r"with 16 units \(pruning\.round_to\) in each layer"):
        StructuredPruning(macs=0.01, round_to=16).finalize(LeNet5([1, 28, 28], 10), [images()])


def test_by_layer_and_excluded() -> None:
    pruning = StructuredPruning(densities={"conv*": 0.2, "fc1": 0.1}, exclude=["conv2"])
    smaller = pruning.finalize(LeNet5([1, 28, 28], 10), [images()])
    assert pruning.figures()["units"] == {"conv1": [4, 20], "fc1": [50, 500]}
    assert smaller.conv2.weight.shape == (50, 4, 5, 5)  # type: ignore[union-attr]
    assert pruning.figures()["left_alone"] == ["conv2", "fc2"]


def test_in_training_and_over_a_kill(tmp_path: Path) -> None:
    whole, pruning = Toy(perceptron()), StructuredPruning(density=0.5, at=5)
    fit(whole, pruning, epochs=3)
    with pytest.raises(BaseException):  # noqa: B017
        fit(Toy(perceptron()), StructuredPruning(density=0.5, at=5), Until(8, tmp_path / "x.ckpt"), epochs=3)
    resumed, again = Toy(perceptron(seed=5)), StructuredPruning(density=0.5, at=5)
    fit(resumed, again, epochs=3, resume=tmp_path / "x.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    x = torch.randn(4, 8)
    gone = weight_of(whole.network.get_submodule("0")).detach().eq(0).all(1)
    assert int(gone.sum()) == 3 and len(masks_of(whole.network)) == 2
    wanted = whole.network.eval()(x)
    smaller, other = pruning.finalize(whole.network, [x]), again.finalize(resumed.network.eval(), [x])
    assert torch.allclose(smaller(x), wanted, atol=1e-6) and torch.equal(smaller(x), other(x))
    assert smaller.frugal_shapes == {"0": [3, 8], "1": [3], "3": [4, 3]}
    assert smaller[1].running_mean.shape == (3,) and smaller[1].num_features == 3  # type: ignore[index,union-attr]
    assert pruning.figures()["first_pruned_at"] == 5


def test_a_cut_of_nothing_is_nothing() -> None:
    network = LeNet5([1, 28, 28], 10)
    state = copy.deepcopy(network.state_dict())
    cut(network, find_units(network, images()), {})
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


class Rounded(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.round()


def test_what_cannot_be_done_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    network = perceptron()
    parametrize.register_parametrization(network[0], "weight", Rounded())
    with pytest.raises(RefusedError, match=r"^pruning=structured cannot be combined with quantization in training"):
        fit(Toy(network), StructuredPruning(), epochs=1)
    with pytest.raises(SettingsError, match=r"^pruning=structured: Linear has no units that could go"):
        StructuredPruning().finalize(nn.Linear(4, 2), [torch.randn(2, 4)])
    with pytest.raises(SettingsError, match=r"^pruning\.macs: chooses the densities itself"):
        StructuredPruning(macs=0.5, densities=[0.5])
    with pytest.raises(RunError, match=r"^frugal_shapes: LeNet5 has no fc9$"):
        reshape(LeNet5([1, 28, 28], 10), {"fc9": [1, 2]})
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(SettingsError, match=r"^pruning=structured: needs torch-pruning, an extra: pip install"):
        StructuredPruning()
