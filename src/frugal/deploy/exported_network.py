"""A file of `torch.export` as a network: any PyTorch runs it without the code that the network was written in.

torch's own reader evaluates text of the file and unpickles parts of it, so that a crafted one could run anything. Here
a file is looked through first, and refused where it holds more than tensors, a graph of tensor operations and sizes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from frugal.deploy.base import KEY, FileNetwork
from frugal.errors import RunError

# Members of the archive, below its one folder.
MEMBERS = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/model_(weights|constants)_config\.json|"
    r"models/model\.json|data/sample_inputs/model\.pt|extra/frugal|archive_format|archive_version|byteorder|"
    r"\.data/(version|serialization_id|alignment)|\.format_version|\.storage_alignment"
)
# What a graph may call: tensor operations, and arithmetic with sizes.
TARGETS = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_)|"
    r"math\.(ceil|floor|trunc)|torch\.sym_(int|float|not|max|min|ite|sum)"
)
SYMBOL = re.compile(r"Symbol\('[su]\d+', (positive|nonnegative)=True, integer=True\)")
SIZES = re.compile(r"((Add|Mul|Pow|Max|Min|Integer|Rational|FloorDiv|Mod|PythonMod|CleanDiv|CeilDiv)\b|[\d\s,()-])*")


class ExportedNetwork(FileNetwork):
    """(B, ...) -> the program's output. Raises RunError for what is no such file, or holds more than one."""

    suffix = ".pt2"

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._program: ExportedProgram | None = None
        self._module: tuple[nn.Module] | None = None  # in a tuple, so that `train` and `to` of a parent pass it by
        self._text = ""
        self._open()

    @property
    def backend(self) -> str:
        return "torch.export"

    def _open(self) -> ExportedProgram:
        if self._program is None:
            refuse_code(self.content)
            found = {KEY: ""}
            try:
                self._program = torch.export.load(io.BytesIO(self.content), extra_files=found)
                self._module = (self._program.module(check_guards=False),)
                given = next(node for node in self._program.graph.nodes if node.name in self._inputs())
                value = given.meta["val"]
            except Exception as error:  # whatever torch raises for a damaged one
                said = (str(error).splitlines() or [""])[0][:200]
                raise RunError(f"not a torch.export network ({type(error).__name__}: {said})") from None
            self._text = found[KEY]
            tokens = not value.is_floating_point() and value.ndim == 2 and isinstance(value.shape[1], int)
            self.length = value.shape[1] if tokens else None
            self._dtype = value.dtype
        return self._program

    def _inputs(self) -> tuple[str, ...]:
        assert self._program is not None
        return self._program.graph_signature.user_inputs

    def run(self, x: Tensor) -> Tensor:
        if self._module is None:
            self._open()
        found = self._module[0](x.to("cpu", self._dtype))  # type: ignore[index]
        return found if x.is_cpu else found.to(x.device)

    def plain_weights(self) -> dict[str, Tensor]:
        program = self._open()
        state = program.state_dict
        return {name: state[name].detach() for name in program.graph_signature.parameters}

    def plain_state(self) -> dict[str, Tensor]:
        """The state of the network that was exported, by its names."""
        return {name: tensor.detach() for name, tensor in self._open().state_dict.items()}

    def described(self, text: str) -> bytes:
        return _save(self._open(), text)

    def description(self) -> str | None:
        self._open()
        return self._text or None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_program": None, "_module": None}


def export(network: nn.Module, example: Tensor) -> bytes:
    """`network` as a file of torch.export with any batch size; `example` is an input (B, ...) with B of 2 or more."""
    with torch.no_grad():
        program = torch.export.export(network.eval(), (example,), dynamic_shapes=({0: Dim("batch", min=1)},))
    return _save(program, "")


def _save(program: ExportedProgram, text: str) -> bytes:
    """Without the inputs that it was traced with, and without where in whose source its operations stood: its bytes
    follow from the network, the text and torch's version."""
    program._example_inputs = None
    program._guards_code = []  # code, as text
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom"):
                node.meta.pop(key, None)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={KEY: text})
    return file.getvalue()


def refuse_code(content: bytes) -> None:
    """Raises RunError for a file of which torch would run or unpickle anything."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for item in archive.infolist():
                folder, _, name = item.filename.partition("/")
                if not folder or not MEMBERS.fullmatch(name) or (name.endswith(".pt") and item.file_size):
                    raise RunError(f"not a torch.export network of Frugal's (it holds {item.filename})")
                if name.endswith(".json"):
                    fault = _fault(json.loads(archive.read(item)))
                    if fault is not None:
                        raise RunError(f"not a torch.export network of Frugal's ({fault})")
    except RunError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [""])[0][:200]
        raise RunError(f"not a torch.export network ({type(error).__name__}: {said})") from None


def _fault(part: Any, key: str = "") -> str | None:
    """What of a parsed JSON text would be run, or None."""
    if isinstance(part, dict):
        if part.get("use_pickle"):
            return "it holds a pickle"
        if part.get("guards_code"):
            return "it holds code"
        if key == "nodes" and part.get("metadata"):
            return "its graph has notes, which name code"
        return next((fault for name, value in part.items() if (fault := _fault(value, str(name))) is not None), None)
    if isinstance(part, list):
        return next((fault for value in part if (fault := _fault(value, key)) is not None), None)
    if key in ("target", "as_operator") and isinstance(part, str) and not TARGETS.fullmatch(part):
        return f"its graph calls {part[:60]}"
    if key == "expr_str" and not SIZES.fullmatch(SYMBOL.sub("1", str(part))):
        return f"a size is {str(part)[:60]}"
    return None
