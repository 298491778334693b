"""An ONNX file as a network: ONNX Runtime runs it on the CPU, and what tests and times networks takes it for one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frugal.coding.encoding import Encoding
from frugal.deploy.base import KEY, FileNetwork
from frugal.errors import FrugalError, RunError

ASIDE = ("_scale", "_zero_point")  # of a quantized tensor's own, beside its whole numbers


def _runtime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise FrugalError(f'{error.name} is not installed; install it with: pip install "frugal-ml[onnx]"') from None
    return onnxruntime


GRAPH = "onnx.graph"  # the name under which a coded file keeps all that is no weight


class OnnxNetwork(FileNetwork):
    """(B, ...) -> the file's first output, with torch's number of threads.

    `content` is the file. Raises RunError for what is no ONNX file.
    """

    suffix = ".onnx"

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._session: Any = None
        self._threads = 0
        self._open()

    @property
    def backend(self) -> str:
        return "onnxruntime int8" if self.converted else "onnxruntime"

    @property
    def converted(self) -> bool:
        """Whether it computes in whole numbers."""
        import onnx

        kinds = {node.op_type for node in onnx.load_from_string(self.content).graph.node}
        return any(kind == "QuantizeLinear" or "Dynamic" in kind or "Integer" in kind for kind in kinds)

    def _open(self) -> Any:
        if self._session is None or self._threads != torch.get_num_threads():
            runtime = _runtime()
            options = runtime.SessionOptions()
            self._threads = options.intra_op_num_threads = torch.get_num_threads()
            options.inter_op_num_threads = 1
            options.enable_cpu_mem_arena = False  # a small network's call is shorter without, a large one's the same
            options.log_severity_level = 3
            try:
                self._session = runtime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime's own, without a common base
                raise RunError(f"not an ONNX network ({str(error).splitlines()[0][:200]})") from None
            given = self._session.get_inputs()[0]
            self._name, self._outputs = given.name, [self._session.get_outputs()[0].name]
            self._dtype = torch.float32 if given.type == "tensor(float)" else torch.int64
            self._array = np.dtype(np.float32 if self._dtype == torch.float32 else np.int64)
            tokens = self._dtype == torch.int64 and len(given.shape) == 2 and isinstance(given.shape[1], int)
            self.length = given.shape[1] if tokens else None
            # A small network is done in 9 us, of which these two take a fifth: the session's own `run`, which checks
            # names and feeds once more, and waiting for devices that are not there.
            self._run = self._session._sess.run
            self._options = runtime.RunOptions()
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return self._session

    def run(self, x: Tensor) -> Tensor:
        if self._threads != torch.get_num_threads():
            self._open()
        try:
            array = x.numpy()
        except (TypeError, RuntimeError):  # on another device, of a dtype that numpy lacks, or with a gradient
            array = x.detach().cpu().to(self._dtype).numpy()
        if array.dtype is not self._array:
            array = array.astype(self._array)
        found = torch.from_numpy(self._run(self._outputs, {self._name: array}, self._options)[0])
        return found if x.is_cpu else found.to(x.device)

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

    def described(self, text: str) -> bytes:
        return described(self.content, text)

    def description(self) -> str | None:
        text = self._open().get_modelmeta().custom_metadata_map.get(KEY)
        return None if text is None else str(text)

    def __getstate__(self) -> dict[str, Any]:
        # a session cannot be copied: it is opened anew
        return {**self.__dict__, "_session": None, "_run": None, "_options": None, "_threads": 0}


def taken_apart(content: bytes) -> tuple[dict[str, Tensor], dict[str, Encoding]]:
    """An ONNX file as a state for a coder: its weights by name, int8 ones as whole numbers, and what is left of the
    file as bytes. `put_together` gives the file back, bit for bit."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(content)
    state, encodings = {}, {}
    for item in model.graph.initializer:
        if len(item.dims) < 2 or item.data_type not in (onnx.TensorProto.INT8, onnx.TensorProto.FLOAT):
            continue
        tensor = torch.from_numpy(numpy_helper.to_array(item).copy())
        if item.data_type == onnx.TensorProto.INT8:
            encodings[item.name] = Encoding(tensor.int())
            tensor = tensor.float()
        state[item.name] = tensor
        for field in ("raw_data", "int32_data", "float_data"):
            item.ClearField(field)
    graph = model.SerializeToString(deterministic=True)
    return {**state, GRAPH: torch.frombuffer(bytearray(graph), dtype=torch.uint8)}, encodings


def put_together(state: dict[str, Tensor]) -> bytes:
    """The file that `taken_apart` was given. Raises RunError for a state that it did not give."""
    import onnx

    try:
        model = onnx.load_from_string(state[GRAPH].numpy().tobytes())
        for item in model.graph.initializer:
            if item.name in state:
                whole = item.data_type == onnx.TensorProto.INT8
                tensor = state[item.name].reshape(list(item.dims))
                item.raw_data = (tensor.to(torch.int8) if whole else tensor).numpy().tobytes()
        return model.SerializeToString(deterministic=True)
    except Exception as error:  # protobuf's own
        said = (str(error).splitlines() or [""])[0][:200]
        raise RunError(f"not an ONNX network ({type(error).__name__}: {said})") from None


def described(content: bytes, description: str) -> bytes:
    """The file with one metadata entry in place of all others: its bytes follow from graph and description alone."""
    import onnx

    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        for field in ("metadata_props", "doc_string"):  # where in the source a node came from, paths among it
            part.ClearField(field)
    model.graph.ClearField("value_info")  # shapes in between, which every reader infers
    model.graph.ClearField("metadata_props")
    model.ClearField("doc_string")
    used = {node.domain or "ai.onnx" for node in model.graph.node} | {"ai.onnx"}
    domains = [one for one in model.opset_import if (one.domain or "ai.onnx") in used]
    model.ClearField("opset_import")
    model.opset_import.extend(domains)
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
