"""int8 through ONNX Runtime: values by hand, calibration, what stays in fp32, and weights that pruning emptied."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frugal.errors import SettingsError
from frugal.models.gpt import GPT
from frugal.models.lenet5 import LeNet5
from frugal.quantization.dynamic_int8 import DynamicInt8
from frugal.quantization.static_int8 import StaticInt8

pytestmark = pytest.mark.onnx


def linear(rows: list[list[float]]) -> nn.Module:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return nn.Sequential(layer)


def test_weights_by_hand() -> None:
    """One scale, 254 / 127 = 2 to a step... of the greatest magnitude, 2.54: codes 127, -64 and 0."""
    network = linear([[2.54, -1.28], [0.0, 0.02]])
    quantized = StaticInt8().finalize(network, [torch.tensor([[1.0, 1.0], [0.0, -1.0]])])
    (codes,) = quantized.plain_weights().values()
    assert sorted(codes.flatten().tolist()) == [-64, 0, 1, 127]


def test_calibration_sees_the_range_of_the_inputs() -> None:
    """Inputs from 0 to 1 in steps of 1/255; one beyond what was seen is clipped."""
    network = linear([[1.0]])
    quantized = StaticInt8().finalize(network, [torch.tensor([[0.0], [1.0]])])
    found = quantized(torch.tensor([[0.5], [1.0], [5.0]])).flatten()
    assert found[:2].tolist() == pytest.approx([0.5, 1.0], abs=2 / 255) and found[2] == pytest.approx(1.0, abs=0.02)


def test_dynamic_ranges_follow_the_call() -> None:
    quantized = DynamicInt8().finalize(linear([[1.0]]), [torch.tensor([[0.0], [1.0]])])
    assert quantized(torch.tensor([[5.0]])).item() == pytest.approx(5.0, rel=0.02)


@pytest.mark.parametrize("per_channel", [False, True])
def test_emptied_rows_stay_empty(per_channel: bool) -> None:
    network = linear([[1.0, 2.0], [0.0, 0.0], [3.0, -1.0]])
    x = torch.tensor([[1.0, 1.0], [-1.0, 0.5]])
    found = StaticInt8(per_channel=per_channel).finalize(network, [x])(x)
    assert torch.isfinite(found).all() and torch.equal(found[:, 1], torch.zeros(2))


def test_an_excluded_layer_stays_and_is_listed() -> None:
    torch.manual_seed(0)
    technique = StaticInt8(exclude=["conv*"])
    x = torch.randn(4, 1, 28, 28)
    quantized = technique.finalize(LeNet5([1, 28, 28], 10).eval(), [x])
    figures = technique.figures()
    assert figures["quantized"] == {"Gemm": 2} and figures["left"] == ["conv1", "conv2"]
    assert quantized.plain_weights()["conv1.weight"].dtype == torch.float32
    assert figures["status"] == "converted"


@pytest.mark.parametrize(("few", "left", "bounds"), [(3, ["conv1"], 1), (0, [], 0), (20, ["conv1", "conv2"], 1)])
def test_convolutions_of_few_channels_stay_in_floats(few: int, left: list[str], bounds: int) -> None:
    """The rounding of a pooling's output is held behind the pooling; that changes no value."""
    import onnx

    torch.manual_seed(0)
    network = LeNet5([1, 28, 28], 10).eval()
    x = torch.randn(64, 1, 28, 28)
    technique = StaticInt8(few_channels=few)
    quantized = technique.finalize(network, [x])
    assert technique.figures()["left"] == left
    graph = onnx.load_from_string(quantized.content).graph
    clips = [node for node in graph.node if node.op_type == "Clip"]
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    assert len(clips) == bounds and all(made_by[clip.input[0]] in ("MaxPool", "Reshape") for clip in clips)
    with torch.no_grad():
        expected = network(x)
    assert (quantized(x) - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_language_model_computes_its_products_in_int8() -> None:
    torch.manual_seed(0)
    network = GPT(vocabulary=31, block_size=16, separator=None, layers=1, heads=2, width=16).eval()
    tokens = torch.randint(0, 31, (2, 16))
    technique = DynamicInt8()
    quantized = technique.finalize(network, [tokens])
    with torch.no_grad():
        expected = network(tokens)
    assert (quantized(tokens) - expected).abs().max() < 0.05 * expected.abs().max()
    assert sum(technique.figures()["quantized"].values()) >= 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"calibration": "guess"}, "quantization.calibration=guess"),
        ({"samples": 0}, "quantization.samples=0"),
        ({"percentile": 10.0}, "quantization.percentile=10"),
        ({"few_channels": -1}, "quantization.few_channels=-1"),
    ],
)
def test_bad_settings_are_refused(words: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        StaticInt8(**words)  # type: ignore[arg-type]


def test_outputs_are_not_rounded_to_a_byte() -> None:
    """One product with 600 outputs: more than 256 values among them, and no operator after it."""
    import onnx

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 600)).eval()
    x = torch.rand(16, 8)
    quantized = StaticInt8().finalize(network, [x])
    assert len(quantized(x).unique()) > 256
    graph = onnx.load_from_string(quantized.content).graph
    assert graph.node[-1].op_type == "Gemm" and graph.node[-1].output[0] == graph.output[0].name
    names = {name for node in graph.node for name in node.input}
    assert all(item.name in names for item in graph.initializer)  # the scale of the rounding went with it
