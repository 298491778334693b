"""Whole numbers times scales, by hand; which weights; straight-through gradients; masks beneath."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from frugal.coding.encoding import encodings_of
from frugal.errors import RunError, SettingsError
from frugal.pruning.masks import add_masks
from frugal.quantization.fake import FakeQuantizer, groups_of, kept, quantizable, scales, spread, whole
from frugal.quantization.qat_int4 import QATInt4
from frugal.quantization.weight_int4 import WeightInt4
from frugal.quantization.weight_int8 import WeightInt8


def linear(rows: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def test_scales_by_hand() -> None:
    weight = torch.tensor([[1.2, -2.0, 0.5, 3.5], [0.0, 0.0, 0.0, 0.0]])
    assert scales(weight, 7).tolist() == [0.5, 1.0]  # an empty row: 1, never NaN
    torch.testing.assert_close(scales(weight, 7, group=2), torch.tensor([[2 / 7, 0.5], [1.0, 1.0]]))
    codes = whole(weight, spread(scales(weight, 7), weight.shape), 7)
    assert codes.tolist() == [[2, -4, 1, 7], [0, 0, 0, 0]]
    grouped = whole(weight, spread(scales(weight, 7, group=2), weight.shape), 7)
    assert grouped.tolist() == [[4, -7, 1, 7], [0, 0, 0, 0]]  # 1.2 / (2 / 7) = 4.2


def test_of_a_convolution_the_inputs_are_all_that_follows_the_output() -> None:
    weight = torch.arange(1.0, 17.0).view(2, 2, 2, 2)
    assert scales(weight, 8).tolist() == [1.0, 2.0]
    assert scales(weight, 8, group=4).tolist() == [[0.5, 1.0], [1.5, 2.0]]
    assert spread(scales(weight, 8, group=4), weight.shape)[1, :, 0, 1].tolist() == [1.5, 2.0]


@pytest.mark.parametrize(
    ("inputs", "group", "groups"), [(784, 32, 28), (300, 32, 10), (64, 32, 2), (25, 32, 1), (37, 8, 1), (37, 32, 1)]
)
def test_groups_are_equal(inputs: int, group: int, groups: int) -> None:
    assert groups_of(inputs, group) == groups and inputs % groups == 0


def test_a_smaller_scale_cuts_an_outlier_off() -> None:
    """A hundred weights of 0.45 and one of 7. With the scale 1 the small ones are lost, 20.25 squared; with 0.65 they
    err by 0.2 and the large one by 2.45, 10.0; with 0.7 and 0.6 it is 10.66 and 10.09."""
    row = torch.full((1, 101), 0.45)
    row[0, 0] = 7.0
    plain, cut = scales(row, 7), scales(row, 7, clip="mse")
    assert plain.item() == 1.0 and cut.item() == pytest.approx(0.65)


def test_weights_only() -> None:
    network = nn.Sequential(linear([[1.0, -2.0, 127.0], [0.0, 0.0, 0.0]]), nn.ReLU(), nn.Embedding(4, 3))
    embedding = network[2].weight.detach().clone()
    technique = WeightInt8()
    assert technique.finalize(network, []) is network
    (name, encoding), *rest = encodings_of(network).items()  # checks them against the weights
    assert name == "0.weight" and not rest
    assert encoding.codes.tolist() == [[1, -2, 127], [0, 0, 0]] and encoding.scale.tolist() == [1.0, 1.0]
    assert torch.equal(network[2].weight, embedding)
    assert technique.figures() == {
        "levels": 255, "group": None, "layers": ["0"], "not_quantized": ["2.weight"], "status": "simulated",
    }  # fmt: skip
    WeightInt4(group=None, clip="max", embeddings=True).finalize(network, [])
    found = encodings_of(network)
    assert set(found) == {"0.weight", "2.weight"} and int(found["2.weight"].codes.abs().max()) == 7
    assert len(network[2].weight.unique()) <= 4 * 15


def test_which_layers() -> None:
    tied = nn.Linear(3, 4, bias=False)
    network = nn.ModuleDict({"embedding": nn.Embedding(4, 3), "a": nn.Linear(3, 3), "norm": nn.LayerNorm(3), "b": tied})
    tied.weight = network["embedding"].weight
    chosen = quantizable(network)
    assert list(chosen) == ["a"] and list(quantizable(network, embeddings=True)) == ["a"]
    assert kept(network, chosen) == ["embedding.weight"]
    assert not quantizable(network, ["a"])
    with pytest.raises(SettingsError, match=r"quantization\.exclude: no layer is called c; there are a"):
        quantizable(network, ["c"])


def test_the_gradient_goes_straight_through() -> None:
    layer = linear([[1.0, -2.0, 0.6, 3.5]])
    quantizer = FakeQuantizer(7, None)
    parametrize.register_parametrization(layer, "weight", quantizer)
    assert layer.weight.tolist() == [[1.0, -2.0, pytest.approx(0.6), 3.5]]  # not yet active
    quantizer.active.fill_(True)
    assert layer.weight.tolist() == [[1.0, -2.0, 0.5, 3.5]]
    (layer.weight * torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    assert layer.parametrizations.weight.original.grad.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_masks_come_first() -> None:
    """The largest weight is pruned: the scale is that of those that are left, and no gradient reaches it."""
    layer = linear([[1.0, -0.6, 100.0], [5.0, 6.0, 7.0]])
    (mask,) = add_masks(layer).values()
    mask.mask[0, 2], mask.mask[1] = False, False
    technique = QATInt4(group=None)
    technique.prepare(layer)
    technique.prepare(layer)  # idempotent: a resume calls it again
    steps = layer.parametrizations.weight
    assert [type(step).__name__ for step in steps] == ["Mask", "FakeQuantizer"]
    steps[1].active.fill_(True)
    assert torch.equal(layer.weight, torch.tensor([[7.0, -4.0, 0.0], [0.0, 0.0, 0.0]]) * torch.tensor(1.0 / 7))
    layer.weight.sum().backward()
    assert steps.original.grad.tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    technique.finalize(layer, [])
    assert not parametrize.is_parametrized(layer)
    assert encodings_of(layer)["weight"].codes.tolist() == [[7, -4, 0], [0, 0, 0]]


def test_what_whoever_baked_before_has_left_is_quantized_alike() -> None:
    torch.manual_seed(0)
    layer, other = nn.Linear(8, 5), nn.Linear(8, 5)
    other.load_state_dict(layer.state_dict())
    first, second = QATInt4(group=4), QATInt4(group=4)
    for technique, module in ((first, layer), (second, other)):
        technique.prepare(module)
        module.parametrizations.weight[0].active.fill_(True)
    parametrize.remove_parametrizations(other, "weight", leave_parametrized=True)
    first.finalize(layer, [])
    second.finalize(other, [])
    assert torch.equal(encodings_of(layer)["weight"].codes, encodings_of(other)["weight"].codes)
    torch.testing.assert_close(layer.weight, other.weight, rtol=1e-6, atol=0)


def test_bad_input() -> None:
    broken = linear([[1.0, torch.nan]])
    with pytest.raises(RunError, match=r"weight: has NaN or infinite values"):
        WeightInt8().finalize(broken, [])
    with pytest.raises(SettingsError, match=r"quantization\.group=0: needs to be 1 or more inputs"):
        WeightInt4(group=0)
    with pytest.raises(SettingsError, match=r"quantization\.begin=soon: needs a step"):
        QATInt4(begin="soon")
