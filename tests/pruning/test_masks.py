"""Masks by hand: what is kept, what they leave alone, and what is left when they are baked in."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from frugal.errors import SettingsError
from frugal.pruning.gradual import GradualPruning
from frugal.pruning.masks import (
    add_masks,
    bake,
    count_of,
    largest,
    masked_weight,
    masks_of,
    per_layer,
    prunable,
    remove_masks,
    weight_of,
)  # fmt: skip
from frugal.pruning.n_m import NMPruning
from frugal.pruning.structured import StructuredPruning
from frugal.quantization.codebook import Codebook
from frugal.quantization.qat_int8 import QATInt8
from frugal.quantization.rate import Rate
from frugal.quantization.weight_int4 import WeightInt4
from frugal.technique import Technique


def tiny() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]]))
    return network


def test_the_largest_and_ties() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [3.0, 3.0, 0.0]])
    assert largest(scores, 1).tolist() == [[False, True, False], [False, False, False]]  # the first of three
    assert largest(scores, 2).tolist() == [[False, True, False], [True, False, False]]
    assert largest(scores, 4).tolist() == [[False, True, True], [True, True, False]]
    assert largest(scores, 6).all() and not largest(scores, 0).any()
    assert int(largest(torch.zeros(1000), 123).sum()) == 123
    broken = torch.tensor([float("nan"), 1.0, float("inf")])
    assert largest(broken, 2).tolist() == [False, True, True]


def test_han_2015s_densities_are_whole_numbers_of_weights() -> None:
    """Table 2: 8, 9 and 26 % of LeNet-300-100 and its 410 biases."""
    kept = [count_of(n, d) for n, d in ((784 * 300, 0.08), (300 * 100, 0.09), (100 * 10, 0.26))]
    assert kept == [18_816, 2_700, 260] and sum(kept) + 410 == 22_186
    assert count_of(10, 0.01) == 1  # never a whole layer


def test_a_mask_acts_and_is_baked() -> None:
    network = tiny()
    masks = add_masks(network)
    assert list(masks) == ["0", "2"] and add_masks(network) == masks  # again: nothing new
    assert not parametrize.is_parametrized(network[1])
    masks["0"].mask.copy_(torch.tensor([[True, False, True], [False, True, False]]))
    wanted = torch.tensor([[1.0, 0.0, 3.0], [0.0, 5.0, 0.0]])
    assert torch.equal(weight_of(network[0]), wanted)
    weight_of(network[0]).sum().backward()
    assert torch.equal(network[0].parametrizations["weight"].original.grad, masks["0"].mask.float())
    bake(network)
    assert torch.equal(network[0].weight, wanted) and type(network[0]) is nn.Linear
    assert set(network.state_dict()) == set(tiny().state_dict())


def test_a_copy_is_baked_alone() -> None:
    """torch's own removal deletes a property of the class that copies share."""
    network = tiny()
    add_masks(network)
    other = copy.deepcopy(network)
    bake(other)
    assert weight_of(network[0]).shape == (2, 3) and list(masks_of(network)) == ["0", "2"]
    assert not masks_of(other)


def test_a_changed_mask_acts_at_once() -> None:
    """In training, validation and a copy, and where it was written to behind torch's back."""
    network = tiny()
    mask = add_masks(network)["0"]
    for _ in range(2):
        with torch.inference_mode():
            mask.mask[0] = ~mask.mask[0]
            assert torch.equal(weight_of(network[0])[0] != 0, mask.mask[0])
        weight_of(network[0]).sum().backward()
        assert torch.equal(weight_of(network[0])[0] != 0, mask.mask[0])
    twin = copy.deepcopy(network)
    masks_of(twin)["0"].mask.fill_(False)
    assert not weight_of(twin[0]).any() and bool(weight_of(network[0]).all())
    mask.mask.data.fill_(False)
    assert not weight_of(network[0]).any()
    network.double()
    assert weight_of(network[0]).dtype == torch.float64


def test_what_is_baked_is_a_plain_zero() -> None:
    network = nn.Sequential(nn.Linear(2, 1))
    nn.init.constant_(network[0].weight, -1.0)
    add_masks(network)["0"].mask.fill_(False)
    bake(network)
    assert not torch.signbit(network[0].weight).any()


class Fours(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight / 4).round() * 4


def test_what_follows_a_mask_is_not_scored_and_not_baked() -> None:
    network = tiny()
    masks = add_masks(network)
    parametrize.register_parametrization(network[0], "weight", Fours())
    masks["0"].mask[0, 2] = False
    assert masked_weight(network[0]).tolist() == [[1.0, -2.0, 0.0], [-4.0, 5.0, -6.0]]
    assert weight_of(network[0]).tolist() == [[0.0, 0.0, 0.0], [-4.0, 4.0, -8.0]]
    remove_masks(network)
    assert parametrize.is_parametrized(network[0]) and not parametrize.is_parametrized(network[2])


def test_what_is_prunable() -> None:
    network = nn.ModuleDict(
        {"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5), "norm": nn.LayerNorm(4), "conv": nn.Conv1d(2, 3, 2)}
    )
    assert list(prunable(network)) == ["head", "conv"]
    assert list(prunable(network, ["c*"])) == ["head"]
    network["head"].weight = network["embedding"].weight  # two modules' weight is nobody's to prune
    assert list(prunable(network)) == ["conv"]
    with pytest.raises(SettingsError, match=r"^pruning\.exclude: no layer is called hed; there are conv$"):
        prunable(network, ["hed"])


def test_values_by_layer() -> None:
    layers = ["layers.1", "layers.3", "head"]
    assert per_layer(None, layers, 0.5, "k") == dict.fromkeys(layers, 0.5)
    assert list(per_layer([0.1, 0.2, 0.3], layers, 0.5, "k").values()) == [0.1, 0.2, 0.3]
    patterns = {"layers.1": 0.1, "layers.*": 0.2}
    assert list(per_layer(patterns, layers, 0.5, "k").values()) == [0.1, 0.2, 0.5]  # the first that fits
    with pytest.raises(SettingsError, match=r"^pruning\.densities: 2 values for 3 layers, layers\.1, layers\.3, head$"):
        per_layer([0.1, 0.2], layers, 0.5, "pruning.densities")
    with pytest.raises(SettingsError, match=r"^pruning\.densities: no layer is called fc1; there are layers\.1"):
        per_layer({"fc1": 0.1}, layers, 0.5, "pruning.densities")


def test_a_mask_comes_before_what_quantizes_whichever_was_first() -> None:
    """In a Trainer of one's own callbacks may stand the other way round: no momentum brings a weight back."""
    network = tiny()
    technique = QATInt8()
    technique.prepare(network)
    mask = add_masks(network)["0"]
    steps = network[0].parametrizations["weight"]
    assert [type(step).__name__ for step in steps] == ["Mask", "FakeQuantizer"]
    steps[1].active.fill_(True)
    mask.mask[1, 2] = False  # the largest, -6
    assert masked_weight(network[0]).tolist() == [[1.0, -2.0, 3.0], [-4.0, 5.0, 0.0]]
    assert weight_of(network[0])[1].tolist() == pytest.approx([-4.0, 5.0, 0.0], abs=5 / 127)
    technique.finalize(network, [])
    assert network[0].weight[1, 2] == 0 and network[0].weight[1, 1] == 5.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradualPruning(density=0.5),
        lambda: NMPruning(1, 2),
        lambda: StructuredPruning(density=0.5),
        lambda: WeightInt4(group=None, clip="mse"),
        lambda: QATInt8(),
        lambda: Codebook(bits=2),
        lambda: Rate(largest=7, step=0.5),
    ],
)
def test_finishing_twice_changes_nothing(make: Callable[[], Technique]) -> None:
    torch.manual_seed(0)
    network, technique = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), make()
    batches = [torch.randn(4, 6)]
    once = technique.finalize(network, batches)
    expected, said = {name: value.clone() for name, value in once.state_dict().items()}, technique.figures()
    again = technique.finalize(once, batches)
    assert set(again.state_dict()) == set(expected) and technique.figures() == said
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=0)
