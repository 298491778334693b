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
    """

    def __init__(
        self,
        calibration: Literal["minmax", "percentile", "entropy"] = "minmax",
        samples: int = 512,
        percentile: float = 99.99,
        per_channel: bool = False,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(per_channel, exclude)
        if calibration not in ("minmax", "percentile", "entropy"):
            raise SettingsError(f"quantization.calibration={calibration}: it is minmax, percentile or entropy")
        if samples < 1:
            raise SettingsError(f"quantization.samples={samples}: it is 1 or more")
        if not 50 < percentile <= 100:
            raise SettingsError(f"quantization.percentile={percentile}: it is above 50 and at most 100")
        self.calibration, self.samples, self.percentile = calibration, samples, percentile

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
            nodes_to_exclude=exclude,
            extra_options=extra,
        )

    def figures(self) -> dict[str, Any]:
        return {**super().figures(), "calibration": self.calibration, "samples": self.samples}


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
