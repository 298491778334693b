"""An ONNX file as a network: ONNX Runtime runs it on the CPU, and what tests and times networks takes it for one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frugal.errors import FrugalError, RunError

KEY = "frugal"  # of the one metadata entry
ASIDE = ("_scale", "_zero_point")  # of a quantized tensor's own, beside its whole numbers


def _runtime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise FrugalError(f'{error.name} is not installed; install it with: pip install "frugal-ml[onnx]"') from None
    return onnxruntime


class OnnxNetwork(nn.Module):
    """(B, ...) -> the file's first output, on the CPU, with torch's number of threads. It has no parameters.

    `content` is the file. Raises RunError for what is no ONNX file.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content
        self._session: Any = None
        self._threads = 0
        self._open()

    @property
    def backend(self) -> str:
        """What latency rows call it: by whether it computes in whole numbers."""
        import onnx

        kinds = {node.op_type for node in onnx.load_from_string(self.content).graph.node}
        return "onnxruntime int8" if any("Quantize" in kind or "Integer" in kind for kind in kinds) else "onnxruntime"

    def _open(self) -> Any:
        if self._session is None or self._threads != torch.get_num_threads():
            runtime = _runtime()
            options = runtime.SessionOptions()
            self._threads = options.intra_op_num_threads = torch.get_num_threads()
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            try:
                self._session = runtime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime's own, without a common base
                raise RunError(f"not an ONNX network ({str(error).splitlines()[0][:200]})") from None
            given = self._session.get_inputs()[0]
            self._name, self._outputs = given.name, [self._session.get_outputs()[0].name]
            self._dtype = np.float32 if given.type == "tensor(float)" else np.int64
            # the session's own `run` checks names and feeds once more: a fifth of a small network's time
            self._run = self._session._sess.run
        return self._session

    def forward(self, x: Tensor) -> Tensor:
        if self._threads != torch.get_num_threads():
            self._open()
        array = x.detach().numpy(force=True)
        if array.dtype != self._dtype:
            array = array.astype(self._dtype)
        return torch.from_numpy(self._run(self._outputs, {self._name: array}, None)[0])

    def plain_weights(self) -> dict[str, Tensor]:
        """The stored weights by name, as they are stored: whole numbers where they were quantized."""
        import onnx
        from onnx import numpy_helper

        graph = onnx.load_from_string(self.content).graph
        found = {}
        for item in graph.initializer:
            name = item.name.removesuffix("_quantized")
            if item.dims and not item.name.endswith(ASIDE) and ("weight" in name or "bias" in name):
                found[name] = torch.from_numpy(numpy_helper.to_array(item).copy())
        return found

    def description(self) -> str | None:
        """What the file says of itself."""
        text = self._open().get_modelmeta().custom_metadata_map.get(KEY)
        return None if text is None else str(text)

    def __getstate__(self) -> dict[str, Any]:
        # a session cannot be copied: it is opened anew
        return {**self.__dict__, "_session": None, "_run": None, "_threads": 0}


def described(content: bytes, description: str) -> bytes:
    """The file with one metadata entry in place of all others: its bytes follow from graph and description alone."""
    import onnx

    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        for field in ("metadata_props", "doc_string"):  # where in the source a node came from, paths among it
            part.ClearField(field)
    for value in model.graph.value_info:
        value.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    model.ClearField("doc_string")
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, description
    return model.SerializeToString(deterministic=True)


def export(network: nn.Module, example: Tensor) -> bytes:
    """`network` as ONNX with any batch size; `example` is an input (B, ...) with B of 2 or more."""
    _runtime()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        torch.onnx.export(
            network.eval(),
            (example,),
            str(file),
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
        return file.read_bytes()
