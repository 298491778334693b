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

from frugal.deploy.base import two_of
from frugal.deploy.onnx_network import OnnxNetwork, export
from frugal.errors import SettingsError
from frugal.technique import Technique

PAIR = ("DequantizeLinear", "QuantizeLinear")
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
        with tempfile.TemporaryDirectory() as folder, _quiet():
            plain, prepared, target = (Path(folder) / name for name in ("plain.onnx", "prepared.onnx", "int8.onnx"))
            plain.write_bytes(export(network, two_of(given[0])))
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            excluded = self._excluded(prepared)
            self.quantize(prepared, target, given, excluded)
            self._figures = _what_was_quantized(prepared, target)
            content = _with_plain_outputs(target.read_bytes())
        if not self._figures["quantized"]:
            raise SettingsError(
                "quantization: ONNX Runtime can quantize no layer of this network; choose quantization=none"
            )
        written = OnnxNetwork(content)
        written.frugal_shapes = getattr(network, "frugal_shapes", {})
        return written

    def figures(self) -> dict[str, Any]:
        return {"bits": 8, "status": "converted", "backend": "onnxruntime int8", **self._figures}

    def _excluded(self, file: Path) -> list[str]:
        """Names of nodes whose weights belong to an excluded layer."""
        from fnmatch import fnmatchcase

        import onnx

        graph = onnx.load(file).graph
        found = []
        for node in graph.node:
            layers = _layers(node)
            if any(fnmatchcase(layer, pattern) for layer in layers for pattern in self.exclude):
                found.append(node.name)
        return found


def _layers(node: Any) -> list[str]:
    """Module paths of the layers whose floats a node takes."""
    return sorted({name.rpartition(".")[0] for name in node.input if name.endswith((".weight", ".bias"))})


def _what_was_quantized(before: Path, after: Path) -> dict[str, Any]:
    """Operators by kind that compute in int8, and the layers (or operators without weights of their own) of a kind that
    can be quantized which stayed in fp32."""
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
                stayed.extend(_layers(node) or [node.name])
    return {"quantized": quantized, "left": stayed}


def _with_plain_outputs(content: bytes) -> bytes:
    """The file without the rounding of its outputs to uint8: the last product of a network gives floats anyhow, more
    exact ones, in one operator less."""
    import onnx

    model = onnx.load_from_string(content)
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    users = [name for node in graph.node for name in node.input]
    for output in graph.output:
        restored = made_by.get(output.name)
        rounded = made_by.get(restored.input[0]) if restored is not None else None
        if restored is None or rounded is None or (restored.op_type, rounded.op_type) != PAIR:
            continue
        value = rounded.input[0]
        maker = made_by.get(value)
        if maker is None or users.count(value) > 1 or users.count(restored.input[0]) > 1 or output.name in users:
            continue
        graph.node.remove(restored)
        graph.node.remove(rounded)
        maker.output[list(maker.output).index(value)] = output.name
        for item in list(graph.initializer):
            if item.name in rounded.input[1:] and users.count(item.name) == 2:  # by these two alone
                graph.initializer.remove(item)
    return model.SerializeToString(deterministic=True)


class _quiet:
    """onnxruntime's quantizer advises on the root logger."""

    def __enter__(self) -> None:
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)
