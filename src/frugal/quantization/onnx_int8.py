"""int8 inference by ONNX Runtime, the fastest kept route on a CPU: what `static_int8` and `dynamic_int8` share.

The network is exported with any batch size, its weights become int8 and its activations uint8 ("U8S8"): the pair for
which x86 processors have instructions.
"""

from __future__ import annotations

import logging
import tempfile
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from frugal.deploy.onnx_network import OnnxNetwork, export
from frugal.errors import SettingsError
from frugal.technique import Technique

QUANTIZABLE = ("Conv", "Gemm", "MatMul", "Attention", "LSTM", "EmbedLayerNormalization", "Gather")


class OnnxInt8(Technique):
    """Base: a subclass says in `quantize` how one file becomes another."""

    def __init__(self, per_channel: bool = False, exclude: list[str] | None = None) -> None:
        self.per_channel, self.exclude = per_channel, list(exclude or [])
        self._figures: dict[str, Any] = {}

    @abstractmethod
    def quantize(self, source: Path, target: Path, batches: list[Tensor], exclude: list[str]) -> None: ...

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        """The network as an int8 ONNX file. Raises SettingsError where nothing of it can be quantized."""
        from onnxruntime.quantization.shape_inference import quant_pre_process

        given = list(batches)
        if not given:
            raise SettingsError("quantization: needs training inputs to calibrate with, and there are none")
        example = given[0][:2] if len(given[0]) > 1 else given[0].expand(2, *given[0].shape[1:])
        with tempfile.TemporaryDirectory() as folder, _quiet():
            plain, prepared, target = (Path(folder) / name for name in ("plain.onnx", "prepared.onnx", "int8.onnx"))
            plain.write_bytes(export(network, example.contiguous()))
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            excluded = self._excluded(prepared)
            self.quantize(prepared, target, given, excluded)
            self._figures = _what_was_quantized(prepared, target)
            content = target.read_bytes()
        if not self._figures["quantized"]:
            raise SettingsError(
                "quantization: ONNX Runtime can quantize no layer of this network; choose quantization=none"
            )
        return OnnxNetwork(content)

    def figures(self) -> dict[str, Any]:
        return {"bits": 8, "status": "converted", "backend": "onnxruntime int8", **self._figures}

    def _excluded(self, file: Path) -> list[str]:
        """Names of nodes whose weights belong to an excluded layer."""
        from fnmatch import fnmatchcase

        import onnx

        graph = onnx.load(file).graph
        found = []
        for node in graph.node:
            layers = {name.rpartition(".")[0] for name in node.input if name.endswith((".weight", ".bias"))}
            if any(fnmatchcase(layer, pattern) for layer in layers for pattern in self.exclude):
                found.append(node.name)
        return found


def _what_was_quantized(before: Path, after: Path) -> dict[str, Any]:
    """Operators by kind that compute in int8, and those of a kind that can be quantized which stayed in fp32."""
    import onnx

    graph = onnx.load(after).graph
    made_by = {output: node for node in graph.node for output in node.output}
    quantized: dict[str, int] = {}
    stayed: list[str] = []
    for node in graph.node:
        if node.op_type in ("MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "QLinearConv", "QLinearMatMul"):
            quantized[node.op_type] = quantized.get(node.op_type, 0) + 1
        elif node.op_type in QUANTIZABLE:
            parents = [made_by.get(name) for name in node.input[:2]]
            if len(parents) == 2 and all(
                parent is not None and parent.op_type == "DequantizeLinear" for parent in parents
            ):
                quantized[node.op_type] = quantized.get(node.op_type, 0) + 1
            else:
                stayed.append(node.name)
    return {"quantized": quantized, "left": stayed}


class _quiet:
    """onnxruntime's quantizer advises on the root logger."""

    def __enter__(self) -> None:
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)
