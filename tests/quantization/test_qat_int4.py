"""Few levels: codes, learned scales and their gradients by hand, biases, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from frugal.coding.encoding import encodings_of
from frugal.errors import SettingsError
from frugal.quantization.fake import Target
from frugal.quantization.qat_int4 import LearnedScale, QATInt4

WEIGHT = torch.tensor([[0.0, 0.4, -1.0, 3.0], [0.0, -0.6, 1.4, -0.2]])


def layer() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight.copy_(WEIGHT)
        network[0].bias.copy_(torch.tensor([1.0, -0.25]))
    return network


def test_seven_levels_by_the_largest_weight() -> None:
    """Scales 3 / 3 and 1.4 / 3 of the two rows; -0.6 is -1.29 of the second."""
    network = QATInt4(levels=7, group=None).finalize(layer(), [])
    found = encodings_of(network)
    assert set(found) == {"0.weight"} and found["0.weight"].codes.tolist() == [[0, 0, -1, 3], [0, -1, 3, 0]]
    assert found["0.weight"].scale.tolist() == pytest.approx([1.0, 1.4 / 3])


def test_a_learned_scale_begins_as_in_the_paper() -> None:
    """2 mean|w| / sqrt(3) of the six weights that are not pruned: 2 * 1.1 / 1.732 = 1.270."""
    technique = QATInt4(levels=7, scale="learned", bias_levels=15)
    found = encodings_of(technique.finalize(layer(), []))
    assert float(found["0.weight"].scale) == pytest.approx(2.2 / math.sqrt(3))
    assert found["0.weight"].codes.tolist() == [[0, 0, -1, 2], [0, 0, 1, 0]]
    assert float(found["0.bias"].scale) == pytest.approx(1.25 / math.sqrt(7))  # mean 0.625
    assert found["0.bias"].codes.tolist() == [2, -1]
    said = technique.figures()
    assert (said["levels"], said["scale"], said["group"], said["bias_levels"]) == (7, "learned", None, 15)


def test_a_learned_scale_has_the_gradients_of_the_paper() -> None:
    """Scale 1, codes -1 to 1: inside, the weight's gradient passes and the scale's is round(w) - w; outside, 0 and the
    largest code. Over sqrt(weights * largest)."""
    quantizer = LearnedScale(torch.zeros(4), 1)
    quantizer.active.fill_(True)
    weight = torch.tensor([0.25, -0.75, 2.0, -3.0], requires_grad=True)
    acts = quantizer(weight)
    assert acts.tolist() == [0, -1, 1, -1]
    (acts * torch.tensor([1.0, 2.0, 4.0, 8.0])).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [1, 2, 0, 0]
    by_hand = (-0.25 * 1 - 0.25 * 2 + 1 * 4 - 1 * 8) / math.sqrt(4 * 1)
    assert float(quantizer.log_scale.grad) == pytest.approx(by_hand)


def test_a_weight_of_zeros_has_a_scale() -> None:
    quantizer = LearnedScale(torch.zeros(3), 3)
    quantizer.start(torch.zeros(3))
    assert math.isfinite(float(quantizer.log_scale.detach())) and not quantizer.encoding(torch.zeros(3)).codes.any()


def test_biases_are_targets_only_where_asked_for() -> None:
    assert [target.plain for target in QATInt4().targets(layer())] == ["0.weight"]
    assert [target.plain for target in QATInt4(bias_levels=3).targets(layer())] == ["0.weight", "0.bias"]
    without = nn.Sequential(nn.Linear(4, 2, bias=False))
    assert [target.plain for target in QATInt4(bias_levels=3).targets(without)] == ["0.weight"]
    made = QATInt4(bias_levels=255).make(Target("0", layer()[0], "bias"))
    assert isinstance(made, LearnedScale) and made.largest == 127


def test_bad_settings() -> None:
    for levels in (1, 8, 17):
        with pytest.raises(SettingsError, match=rf"^quantization\.levels={levels}: is an odd number from 3 to 15$"):
            QATInt4(levels=levels)
    with pytest.raises(SettingsError, match=r"^quantization\.bias_levels=256: is an odd number from 3 to 255$"):
        QATInt4(bias_levels=256)
    with pytest.raises(SettingsError, match=r"^quantization\.scale=smallest: choose largest or learned$"):
        QATInt4(scale="smallest")  # type: ignore[arg-type]
