"""`quantization=dynamic_int8`: int8 weights; activations are quantized anew at each call, by their own range."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from frugal.quantization.onnx_int8 import OnnxInt8


class DynamicInt8(OnnxInt8):
    """After training, by ONNX Runtime; needs no calibration. Only matrix products gain: a convolution that is quantized
    at each call is slower than in fp32, so it stays unless `convolutions` asks for it.

    Args:
        per_channel: a scale for each output channel of a weight, instead of one.
        convolutions: quantize them too.
        exclude: layers by their module path (shell patterns) that stay in fp32.
    """

    def __init__(self, per_channel: bool = False, convolutions: bool = False, exclude: list[str] | None = None) -> None:
        super().__init__(per_channel, exclude)
        self.convolutions = convolutions

    def quantize(self, source: Path, target: Path, batches: list[Tensor], exclude: list[str]) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            str(source),
            str(target),
            per_channel=self.per_channel,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", *(["Conv"] if self.convolutions else [])],
            nodes_to_exclude=exclude,
        )
