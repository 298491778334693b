"""What a weight costs, its derivative, the steps' gradients: by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from frugal.coding import cosine
from frugal.coding.encoding import encodings_of
from frugal.errors import RunError, SettingsError
from frugal.quantization.rate import PricedWeights, Rate, Stepped, step_gradient_scale


def priced(weight: torch.Tensor, step: float = 1.0, largest: int = 3, units: int = 99) -> PricedWeights:
    quantizer = PricedWeights(weight, largest, 1.0, True, units)
    quantizer.log_step.data.fill_(math.log(step))
    quantizer.active.fill_(True)
    quantizer.count(weight)
    return quantizer


WEIGHT = torch.tensor([[1.0, 0.2, -2.2], [0.0, 0.4, 0.0]])  # codes 1 0 -2, 0 0 0


def test_the_cost_by_hand() -> None:
    quantizer = priced(WEIGHT)
    assert quantizer.rows.tolist() == [2, 0] and quantizer.columns.tolist() == [1, 0, 1]
    assert quantizer.magnitudes.tolist() == [1, 1, 0]
    # odds of not being zero, half a weight of either kind added: rows 2.5/1.5 and 0.5/3.5, columns 1, 0.5/2.5, 1, all
    # 2.5/4.5
    odds = [
        [5 / 3 * column / (5 / 9) for column in (1, 1 / 5, 1)],
        [1 / 7 * column * 9 / 5 for column in (1, 1 / 5, 1)],
    ]
    zero = [[math.log2(1 + o) for o in row] for row in odds]
    nonzero = [[math.log2(1 + 1 / o) for o in row] for row in odds]
    magnitude = 1 + math.log2(3.5 / 1.5)  # the sign, then 1.5 of 3.5 for a 1 or a 2
    bits = nonzero[0][0] + nonzero[0][2] + 2 * magnitude + zero[0][1] + sum(zero[1])
    assert quantizer.bits(WEIGHT) == pytest.approx(bits, rel=1e-5)

    by_weight, by_step = quantizer.derivatives(WEIGHT)
    rise = [
        [max(0.0, n + magnitude - z) for n, z in zip(*rows, strict=True)] for rows in zip(nonzero, zero, strict=True)
    ]
    third = math.log2(1.5 / 0.5)  # from 2 to 3; from 1 to 2 costs nothing more
    expected = [[0.0, rise[0][1], -third], [0.0, rise[1][1], 0.0]]
    torch.testing.assert_close(by_weight, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    moved = 0.2 * rise[0][1] + 2.2 * third + 0.4 * rise[1][1]
    assert float(by_step) == pytest.approx(-moved / math.sqrt(6 * 3), rel=1e-5)


def test_the_derivative_is_by_the_weight_not_by_its_code() -> None:
    by_weight, by_step = priced(WEIGHT).derivatives(WEIGHT)
    halved, same_step = priced(WEIGHT / 2, step=0.5).derivatives(WEIGHT / 2)
    torch.testing.assert_close(halved, 2 * by_weight)
    torch.testing.assert_close(same_step, by_step)


def test_steps_and_their_gradients() -> None:
    weight = torch.tensor([0.3, -0.9, 5.0], requires_grad=True)
    log_step = torch.tensor(math.log(0.5), requires_grad=True)
    found = Stepped.apply(weight, log_step, 3)
    torch.testing.assert_close(found, torch.tensor([0.5, -1.0, 1.5]))
    (found * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert weight.grad.tolist() == [1.0, 10.0, 0.0]  # what is cut off gets none
    by_hand = 0.5 * (1 * (1 - 0.6) + 10 * (-2 + 1.8) + 100 * 3) * step_gradient_scale(weight, 3)
    assert float(log_step.grad) == pytest.approx(by_hand, rel=1e-5)


def test_waves_cost_what_they_are_and_weights_get_their_share() -> None:
    """Codes and derivatives of waves are those of plain weights that are as large; a step against a derivative by the
    weights is one against that by the waves."""
    numbers = torch.tensor([[1.2, 0.2, -2.2, 0.1], [-0.1, 0.4, 0.2, 0.3]])
    plain = priced(numbers)
    waves = PricedWeights(numbers, 3, 1.0, True, 99, waves=True)
    waves.log_step.data.zero_()
    waves.active.fill_(True)
    weight = cosine.pixels(numbers)
    waves.count(weight)
    assert waves.rows.tolist() == [2, 0] and waves.columns.tolist() == [1, 0, 1, 0]
    by_number, by_step = plain.derivatives(numbers)
    by_weight, waves_by_step = waves.derivatives(weight)
    torch.testing.assert_close(cosine.coefficients(by_weight), by_number, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(waves_by_step, by_step, rtol=1e-3, atol=0)
    assert waves.bits(weight) == pytest.approx(plain.bits(numbers))
    found = waves.encoding(weight)
    assert found.waves and found.codes.tolist() == [[1, 0, -2, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(found.decode(), waves.quantize(weight).detach())
    assert torch.equal(waves.encoding(found.decode()).codes, found.codes)


def test_waves_are_of_square_images() -> None:
    network = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 2))
    technique = Rate(waves=["0"], units={"0": 4})
    technique.finalize(network, [])
    found = encodings_of(network)
    assert found["0.weight"].waves and not found["0.bias"].waves and not found["2.weight"].waves
    with pytest.raises(SettingsError, match=r"quantization\.waves=\['2'\]: 2 has 6 inputs, which are no square image"):
        Rate(waves=["2"]).prepare(nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 2)))
    with pytest.raises(SettingsError, match=r"quantization\.waves"):
        Rate(waves=["nothing"]).prepare(nn.Sequential(nn.Linear(9, 6)))
    pruned = nn.Linear(9, 2)
    parametrize.register_parametrization(pruned, "weight", nn.Identity())
    with pytest.raises(SettingsError, match=r"quantization\.waves=\[''\]:  is pruned; waves have no such zeros"):
        Rate(waves=[""]).prepare(pruned)


def test_the_step_is_written_in_two_bytes() -> None:
    quantizer = priced(WEIGHT, step=0.3)
    found = quantizer.encoding(WEIGHT * 0.3)
    assert found.codes.tolist() == [[1, 0, -2], [0, 0, 0]]
    assert found.scale == torch.tensor(0.3).bfloat16().float() and found.scale != torch.tensor(0.3)


def test_units_that_are_never_used() -> None:
    layer = nn.Linear(4, 3)
    technique = Rate(units={"": 2}, step=0.5)
    technique.prepare(layer)
    for quantizer in technique.quantizers.values():
        quantizer.start(torch.ones(3, 4))
        quantizer.active.fill_(True)
    assert not layer.weight[2].any() and not layer.bias[2]
    layer(torch.ones(1, 4)).sum().backward()
    gradient = layer.parametrizations.weight.original.grad
    assert gradient[:2].all() and not gradient[2].any()
    quantizer = technique.quantizers["weight"]
    quantizer.count(torch.ones(3, 4))
    assert quantizer.rows.tolist() == [4, 4] and quantizer.columns.tolist() == [2] * 4
    assert quantizer.derivatives(torch.ones(3, 4))[0].shape == (2, 4)


def test_what_is_written() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    technique = Rate(step=1.0, largest=3)
    technique.finalize(network, [])
    found = encodings_of(network)
    assert set(found) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(encoding.scale.ndim == 0 and int(encoding.codes.abs().max()) <= 3 for encoding in found.values())
    rms = float(found["2.bias"].scale)
    assert rms > 0 and technique.figures()["estimated_bytes"] > 0


def test_an_estimate_changes_nothing() -> None:
    quantizer = priced(WEIGHT)
    by_weight, _ = quantizer.derivatives(WEIGHT)
    quantizer.bits(torch.ones(2, 3))
    assert torch.equal(quantizer.derivatives(WEIGHT)[0], by_weight)
    quantizer.count(torch.ones(2, 3))
    assert not torch.equal(quantizer.derivatives(WEIGHT)[0], by_weight)


def test_bad_input() -> None:
    with pytest.raises(SettingsError, match=r"quantization\.bits_weight=-1: needs to be 0 or above"):
        Rate(bits_weight=-1)
    with pytest.raises(SettingsError, match=r"quantization\.step=0: needs to be above 0"):
        Rate(step=0)
    with pytest.raises(SettingsError, match=r"quantization\.largest=0: the least value is 1"):
        Rate(largest=0)


def test_a_diverged_training_is_said_in_one_line() -> None:
    quantizer = priced(WEIGHT)
    with pytest.raises(RunError, match="weights became NaN or infinite"):
        quantizer.count(torch.full_like(WEIGHT, torch.nan))
