"""k-means, codes and the gradients of shared values, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from frugal.coding.encoding import encodings_of
from frugal.errors import SettingsError
from frugal.quantization.codebook import Codebook, SharedValues, cluster


def layer_of(rows: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def test_k_means_by_hand() -> None:
    """Two centroids begin at -1 and 9; the middle 4 parts {-1, 0.5, 1} from {5, 9}: means 1/6 and 7, middle 3.58."""
    weight = torch.tensor([[-1.0, 0.5, 0.0, 1.0], [5.0, 9.0, 0.0, 0.0]])
    table, codes = cluster(weight, 2)
    assert table.tolist() == [pytest.approx(1 / 6), 7.0]
    assert codes.tolist() == [[1, 1, 0, 1], [2, 2, 0, 0]]  # zeros stay zeros


def test_lloyd_goes_on_until_nothing_moves() -> None:
    """From 0.1 and 10.1, middle 5.1: {0.1, 5} and {6, 10.1}; then 2.55 and 8.05, middle 5.3: settled. From three even
    centroids the middle one takes 5 and 6."""
    weight = torch.tensor([0.1, 5.0, 6.0, 10.1])
    assert cluster(weight, 2)[0].tolist() == [pytest.approx(2.55), pytest.approx(8.05)]
    assert cluster(weight, 3)[0].tolist() == [pytest.approx(0.1), pytest.approx(5.5), pytest.approx(10.1)]
    moving = torch.tensor([1.0, 2.0, 3.0, 10.0, 5.9])  # 5.9 is the second's after 5.5, then the first's: 6.45, then not
    table, codes = cluster(moving, 2)
    assert table.tolist() == [pytest.approx(2.0), pytest.approx(7.95)] and codes.tolist() == [1, 1, 1, 2, 2]


def test_few_rounds_stay_near_the_beginning() -> None:
    """None: the even values 1 and 11, middle 6. One: means 4.2 and 8.6, middle 6.4: 6.2 changes. Two: 4.7 and 11."""
    weight = torch.tensor([1.0, 5.8, 5.8, 6.2, 11.0])
    for rounds, expected in ((0, [1.0, 11.0]), (1, [4.2, 8.6]), (2, [4.7, 11.0])):
        table, codes = cluster(weight, 2, rounds=rounds)
        assert table.tolist() == pytest.approx(expected)
        assert codes.tolist() == [1, 1, 1, 1 if rounds else 2, 2]
    assert Codebook(bits=1, rounds=0).finalize(nn.Sequential(layer_of([[1.0, 2.0, 9.0]])), [])[0].weight.tolist() == [
        [1.0, 1.0, 9.0]
    ]
    with pytest.raises(SettingsError, match=r"^quantization\.rounds=-1: "):
        Codebook(rounds=-1)


def test_an_even_beginning_keeps_the_large_ones() -> None:
    """Many small weights and one large: by rank all centroids begin among the small."""
    weight = torch.cat([torch.linspace(1, 2, 99), torch.tensor([100.0])])
    assert cluster(weight, 4, "linear")[0][-1] == 100.0
    begun = cluster(weight, 4, "density")[0]
    assert (begun[:-1] < 2.1).all()


def test_few_values_are_their_own_table() -> None:
    weight = torch.tensor([3.0, -1.0, 0.0, 3.0])
    table, codes = cluster(weight, 4)
    assert table.tolist() == [-1.0, 3.0, 0.0, 0.0] and codes.tolist() == [2, 1, 0, 2]
    table, codes = cluster(torch.zeros(2, 3), 4)
    assert not table.any() and not codes.any()


@pytest.mark.parametrize(("mean", "expected"), [(False, [6.0, 9.0]), (True, [2.0, 4.5])])
def test_gradients_of_a_cluster(mean: bool, expected: list[float]) -> None:
    layer = layer_of([[-1.0, 0.5, 0.0, 1.0], [5.0, 9.0, 0.0, 0.0]])
    quantizer = SharedValues(layer.weight, 2, "linear", mean)
    parametrize.register_parametrization(layer, "weight", quantizer)
    quantizer.start(layer.parametrizations.weight.original)
    quantizer.active.fill_(True)
    assert layer.weight[1].tolist() == [7.0, 7.0, 0.0, 0.0]
    (layer.weight * torch.tensor([[1.0, 2.0, 50.0, 3.0], [4.0, 5.0, 50.0, 50.0]])).sum().backward()
    assert quantizer.table.grad.tolist() == expected
    assert not layer.parametrizations.weight.original.grad.any()


def test_what_is_written() -> None:
    """Unused values and those that became zero are left out, the rest in ascending order."""
    layer = layer_of([[1.0, 2.0, 3.0, 0.0]])
    technique = Codebook(bits=2)
    technique.prepare(layer)
    quantizer = layer.parametrizations.weight[0]
    quantizer.start(layer.weight.detach())
    quantizer.active.fill_(True)
    quantizer.table.data = torch.tensor([5.0, 0.0, -1.0, 8.0])
    technique.finalize(layer, [])
    encoding = encodings_of(layer)["weight"]
    assert encoding.table.tolist() == [-1.0, 5.0] and encoding.codes.tolist() == [[2, 0, 1, 0]]
    assert layer.weight.tolist() == [[5.0, 0.0, -1.0, 0.0]]
    assert technique.figures()["bits"] == {"": 2} and technique.figures()["status"] == "simulated"


def test_without_training_it_clusters_at_the_end() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(8, 6))
    technique = Codebook(bits=3, layer_bits={"0": 4})
    technique.finalize(network, [])
    found = encodings_of(network)
    assert len(found["0.weight"].table) <= 16 and len(found["2.weight"].table) <= 8
    assert len(network[2].weight.unique()) == len(found["2.weight"].table)


def test_bad_input() -> None:
    with pytest.raises(SettingsError, match=r"quantization\.bits=9: a shared value has 1 to 8 bits"):
        Codebook(bits=9)
    with pytest.raises(SettingsError, match=r"quantization\.layer_bits=0: a shared value has 1 to 8 bits"):
        Codebook(layer_bits=[5, 0])
    with pytest.raises(SettingsError, match=r"quantization\.layer_bits: 2 values for 1 layers, a"):
        Codebook(layer_bits=[5, 4]).prepare(nn.ModuleDict({"a": nn.Linear(2, 2)}))


def test_of_a_network_that_lost_units_since() -> None:
    layer = layer_of([[1.0, 2.0, 3.0, 0.0], [3.0, 3.1, 2.0, 1.0]])
    technique = Codebook(bits=2)
    technique.prepare(layer)
    quantizer = layer.parametrizations.weight[0]
    quantizer.start(layer.weight.detach())
    quantizer.active.fill_(True)
    quantizer.table.data = torch.tensor([5.0, 0.5, -1.0, 8.0])
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    layer.weight = nn.Parameter(layer.weight.detach()[:, [0, 2]])
    technique.finalize(layer, [])
    encoding = encodings_of(layer)["weight"]
    assert encoding.table.tolist() == [-1.0, 0.5, 5.0] and encoding.codes.tolist() == [[3, 1], [1, 2]]
