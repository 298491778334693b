"""`quantization=static_int8`: int8 weights and activations, the ranges of activations taken from training samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from frugal.errors import SettingsError
from frugal.quantization.onnx_int8 import OnnxInt8


class StaticInt8(OnnxInt8):
    """After training, by ONNX Runtime: quantize and dequantize nodes around each operator (QDQ), U8S8.

    Args:
        calibration: how a range follows from what was seen of an activation: its extremes, or those that clip a share
            `percentile` or lose least by the Kullback-Leibler divergence (entropy).
        samples: training samples to calibrate with.
        per_channel: a scale for each output channel of a weight, instead of one.
        exclude: layers by their module path (shell patterns) that stay in fp32.
        few_channels: convolutions of at most so many input channels stay in fp32 too. They hold few weights, and ONNX
            Runtime's int8 kernel gathers their windows one by one: the first of LeNet-5 took 1.5 instead of 0.4 ms.
    """

    def __init__(
        self,
        calibration: Literal["minmax", "percentile", "entropy"] = "minmax",
        samples: int = 512,
        percentile: float = 99.99,
        per_channel: bool = False,
        exclude: list[str] | None = None,
        few_channels: int = 3,
    ) -> None:
        super().__init__(per_channel, exclude)
        if calibration not in ("minmax", "percentile", "entropy"):
            raise SettingsError(f"quantization.calibration={calibration}: it is minmax, percentile or entropy")
        if samples < 1:
            raise SettingsError(f"quantization.samples={samples}: it is 1 or more")
        if not 50 < percentile <= 100:
            raise SettingsError(f"quantization.percentile={percentile}: it is above 50 and at most 100")
        if few_channels < 0:
            raise SettingsError(f"quantization.few_channels={few_channels}: it is 0 or more")
        self.calibration, self.samples, self.percentile = calibration, samples, percentile
        self.few_channels = few_channels

    def quantize(self, source: Path, target: Path, batches: list[Tensor], exclude: list[str]) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        methods = {
            "minmax": CalibrationMethod.MinMax,
            "percentile": CalibrationMethod.Percentile,
            "entropy": CalibrationMethod.Entropy,
        }
        extra: dict[str, Any] = {"CalibPercentile": self.percentile} if self.calibration == "percentile" else {}
        quantize_static(
            str(source),
            str(target),
            _Reader(source, batches, self.samples),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=self.per_channel,
            calibrate_method=methods[self.calibration],
            nodes_to_exclude=[*exclude, *self._of_few_channels(source)],
            extra_options=extra,
        )
        _pool_in_floats(target)

    def _of_few_channels(self, file: Path) -> list[str]:
        """Names of convolutions whose weight (O, I, ...) has an I of at most `few_channels`."""
        import onnx

        graph = onnx.load(file).graph
        inputs = {item.name: item.dims[1] for item in graph.initializer if len(item.dims) > 2}
        return [
            node.name
            for node in graph.node
            if node.op_type == "Conv" and inputs.get(node.input[1], self.few_channels + 1) <= self.few_channels
        ]

    def figures(self) -> dict[str, Any]:
        return {**super().figures(), "calibration": self.calibration, "samples": self.samples}


def _pool_in_floats(file: Path) -> None:
    """Keeps a pooling of floats one. ONNX Runtime moves the rounding that follows it before it, and has no fast kernel
    for whole numbers in that place: the first pooling of LeNet-5 took 2.8 instead of 0.2 ms. A bound that nothing
    reaches, which costs nothing, stands in the way."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(file)
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    lowest = "lowest_float"
    found = False
    for place, node in reversed(list(enumerate(graph.node))):
        maker = made_by.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        while maker is not None and maker.op_type in ("Reshape", "Flatten", "Transpose"):
            maker = made_by.get(maker.input[0])
        if maker is None or maker.op_type != "MaxPool":
            continue
        before = made_by.get(maker.input[0])
        if before is not None and before.op_type == "DequantizeLinear":
            continue  # it is of whole numbers, and meant to be
        bound = f"{node.input[0]}_bound"
        graph.node.insert(place, helper.make_node("Clip", [node.input[0], lowest], [bound], name=bound))
        node.input[0] = bound
        found = True
    if found:
        graph.initializer.append(numpy_helper.from_array(np.array(np.finfo(np.float32).min), lowest))
        onnx.save(model, file)


class _Reader:
    """Gives ONNX Runtime's calibration one batch at a time."""

    def __init__(self, source: Path, batches: list[Tensor], samples: int) -> None:
        import onnx

        self.name = onnx.load(source).graph.input[0].name
        self.left, self.batches = samples, iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None) if self.left > 0 else None
        if batch is None:
            return None
        batch = batch[: self.left]
        self.left -= len(batch)
        return {self.name: batch.numpy()}

    def __iter__(self) -> _Reader:
        return self
