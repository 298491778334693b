"""The artefact: the file that a run leaves for use, and what is needed to read it back.

A safetensors file holds the network's state and, as its one metadata entry, how to build the network: its bytes
depend on weights and configuration only. A checkpoint says the same of itself under the key "frugal".
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import pickle
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from frugal import settings
from frugal.coding import container, packed
from frugal.coding.coder import CodingTechnique
from frugal.coding.encoding import Encoding, attach, encodings_of
from frugal.data.cleaning import Cleaning
from frugal.deploy.base import FileNetwork
from frugal.deploy.exported_network import ExportedNetwork
from frugal.deploy.onnx_network import GRAPH, OnnxNetwork, put_together, taken_apart
from frugal.errors import FrugalError, RunError
from frugal.models.lora import merge
from frugal.paths import FORMATS, find_weights
from frugal.pruning.masks import bake
from frugal.pruning.structured import reshape
from frugal.quantization.qat_int8 import remove_inputs
from frugal.record import write_atomic
from frugal.technique import Technique
from frugal.tokenizer.base import Tokenizer

NEEDED = {  # dims without which text cannot be fed
    "text_classification": ("vocabulary", "classes", "max_length"),
    "language_modeling": ("vocabulary", "block_size"),
}
COUNTS = ("vocabulary", "classes", "outputs", "max_length", "block_size")
IDS = ("separator", "space")
MOST = 2**31 - 1  # of any of them
# Stages whose techniques keep something in the network's state while it is trained.
IN_THE_STATE = ("pruning", "quantization")
# Artefacts that a runtime of their own runs, by their suffix.
RUN_AS_THEY_LIE: dict[str, type[FileNetwork]] = {".onnx": OnnxNetwork, ".pt2": ExportedNetwork}


@dataclass
class Description:
    """How to build a network and feed it; plain values only.

    Args:
        model: the model option's node (with `_target_` and `network`).
        dims: what the network takes from the data, as `ArrayDataModule.dims()`.
        task: the data's task.
        preprocess: the option's node.
        data: the data option's node, the default of an evaluation.
        state: what the data module learnt of the training split: statistics, a tokenizer's vocabulary.
        techniques: of a checkpoint, the nodes of those that keep something of their own in the network's state (masks,
            fake quantization), by stage; an artefact has weights as they act.
        shapes: of weights that a technique made smaller than the model option says, by the module's name.
    """

    model: dict[str, Any]
    dims: dict[str, Any]
    task: str
    preprocess: dict[str, Any]
    data: dict[str, Any]
    tokenizer: dict[str, Any]
    state: dict[str, Any]
    techniques: dict[str, dict[str, Any]] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "dims": self.dims,
            "task": self.task,
            "preprocess": self.preprocess,
            "data": self.data,
            "tokenizer": self.tokenizer,
            "state": self.state,
            **({"techniques": self.techniques} if self.techniques else {}),
            **({"shapes": self.shapes} if self.shapes else {}),
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any], path: Path) -> Description:
        nodes = ("model", "dims", "preprocess", "data", "tokenizer", "state")
        if not isinstance(plain, dict) or not all(isinstance(plain.get(key), dict) for key in nodes):
            raise RunError(f"{path}: does not say which network it holds; it was not written by Frugal")
        further = {key: plain[key] for key in ("techniques", "shapes") if key in plain}
        description = cls(**{key: plain[key] for key in nodes}, task=str(plain.get("task")), **further)
        fault = description.fault()
        if fault:
            raise RunError(f"{path}: describes itself wrongly ({fault})")
        return description

    def fault(self) -> str | None:
        """What is not as a run writes it, or None; nothing is built for that."""
        dims, state = self.dims, self.state
        for key in NEEDED.get(self.task, ()):
            if key not in dims:
                return f"dims.{key} is missing"
        for key in COUNTS:
            if key in dims and not _is_count(dims[key], 1):
                return f"dims.{key} is no number from 1 to {MOST}"
        for key in IDS:
            if dims.get(key) is not None and not (_is_count(dims[key], 0) and dims[key] < dims.get("vocabulary", MOST)):
                return f"dims.{key} is no token"
        shape = dims.get("input_shape", [])
        if not isinstance(shape, list) or not all(_is_count(size, 1) for size in shape):
            return "dims.input_shape is no list of sizes"
        for key in ("preprocess", "tokenizer") if self.task in NEEDED else ("preprocess",):
            if not isinstance(state.get(key), dict):
                return f"state.{key} is missing"
        if not isinstance(self.techniques, dict) or not set(self.techniques) <= set(IN_THE_STATE):
            return f"techniques are not some of {', '.join(IN_THE_STATE)}"
        if not isinstance(self.shapes, dict) or not all(
            isinstance(sizes, list) and all(_is_count(size, 1) for size in sizes) for sizes in self.shapes.values()
        ):
            return "shapes are no lists of sizes"
        if state.get("dtype") not in (None, "uint8", "float32"):
            return "state.dtype is neither uint8 nor float32"
        columns = state.get("feature_names")
        if columns is not None and not (isinstance(columns, list) and all(isinstance(name, str) for name in columns)):
            return "state.feature_names is no list of text"
        names = state.get("class_names")
        if names is not None:
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                return "state.class_names is no list of text"
            if len(set(names)) < len(names):
                return "state.class_names has a name twice"
            if len(names) != dims.get("classes"):
                return f"state.class_names has {len(names)} names, dims.classes is {dims.get('classes')}"
        return None


def _is_count(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= MOST  # type: True is an int


@contextlib.contextmanager
def crafted(path: Path, what: str = "describes itself wrongly") -> Iterator[None]:
    """A file may say of itself whatever it likes: what cannot be built from that is one line."""
    try:
        yield
    except FrugalError:
        raise
    except BaseException as error:
        # a panic of a library in Rust is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = (str(error).splitlines() or [""])[0][:200]
        raise RunError(f"{path}: {what} ({type(error).__name__}: {said})") from None


def build_network(description: Description, like: nn.Module | None = None) -> nn.Module:
    """The network with fresh weights, or a copy of one like it; every target in it passes the allow-list."""
    network = copy.deepcopy(like)
    if network is None:
        network = settings.instantiate(description.model.get("network"), "model.network", description.dims)
    if not isinstance(network, nn.Module):
        raise RunError(f"model.network: a {type(network).__name__} is no network")
    add_adapters(network, description.model)
    reshape(network, description.shapes)
    for stage, node in description.techniques.items():
        technique = settings.instantiate(node, stage)
        if not isinstance(technique, Technique):
            raise RunError(f"{stage}: a {type(technique).__name__} is no technique")
        technique.prepare(network)
    return network


def dense(description: Description) -> nn.Module:
    """The network that the model option says, before any technique, with fresh weights: what compression is compared
    with."""
    return build_network(replace(description, techniques={}, shapes={})).eval()


def add_adapters(network: nn.Module, model: dict[str, Any]) -> dict[str, Any]:
    """Add the low-rank adapters that the model option asks for (`model.lora`), if any; their figures."""
    if not model.get("lora"):
        return {}
    adapters = settings.instantiate(model["lora"], "model.lora")
    adapters.apply(network)
    return adapters.figures()


def finished(description: Description, network: nn.Module) -> Description:
    """The description of a network whose adapters were merged into its weights and whose techniques have acted."""
    model = {**description.model, "lora": None} if description.model.get("lora") else description.model
    techniques, shapes = getattr(network, "frugal_techniques", {}), getattr(network, "frugal_shapes", {})
    return replace(description, model=model, techniques=techniques, shapes=shapes)


def write(network: nn.Module, description: Description, path: Path, coding: CodingTechnique | None = None) -> Path:
    """Write the network, whole or not at all, in place of another artefact of that name; the file's path.

    The suffix is that of the format, whatever `path` has: a `FileNetwork`'s own, `.frugal` with a `coding`, else
    safetensors. Weights that are whole numbers (`coding.encoding`) are written as such.
    """
    about = finished(description, network)
    text = json.dumps(about.to_dict(), sort_keys=True)
    encodings = encodings_of(network)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if isinstance(network, OnnxNetwork) and coding is not None:
        # without the description, which the coded file holds itself
        state, encodings = taken_apart(network.described(""))
        path, content = path.with_suffix(".frugal"), coding.encode(state, encodings, text)
    elif isinstance(network, FileNetwork):
        path, content = path.with_suffix(network.suffix), network.described(text)
    elif coding is not None:
        path, content = path.with_suffix(".frugal"), coding.encode(state, encodings, text, _layout(text))
    else:
        # One metadata key: safetensors keeps them in a hash map, whose order would differ from run to run.
        tensors = _without_shared(state) | packed.pack(encodings)
        path, content = path.with_suffix(".safetensors"), save(tensors, metadata={"frugal": text})
    write_atomic(path, content)
    for other in FORMATS:
        if other != path.suffix:
            path.with_suffix(other).unlink(missing_ok=True)
    return path


def _layout(text: str) -> container.Layout | None:
    """Names, shapes and types of the tensors of the network that a description says, without memory for them; None
    where it cannot be built that way."""
    try:
        with torch.device("meta"), _NoDraws():
            return container.layout_of(build_network(Description.from_dict(json.loads(text), Path("description"))))
    except Exception:  # of anybody's code
        return None


def plain_state(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint or an artefact as they act, by their plain names."""
    state, plain = read(path)
    if GRAPH in state:
        raise RunError(f"{path}: an ONNX file, coded, has no weights to read; give the run's checkpoint")
    return remove_inputs(load(path)[0]).state_dict() if plain.get("techniques") else state


def load(path: Path, like: nn.Module | None = None) -> tuple[nn.Module, Description]:
    """Read a network from an artefact or a checkpoint. Raises RunError with one line for anything else.

    `like` is a network as it was before any technique, where the file does not say how to build one
    (`frugal.compress`); it stays as it is.
    """
    if path.suffix in RUN_AS_THEY_LIE:
        return _load_file(path)
    state, plain, encodings = _read(path)
    description = Description.from_dict(plain, path)
    if GRAPH in state:
        return _described_file(OnnxNetwork, put_together(state), plain, path)
    with crafted(path):
        with _no_larger_than(state, path):
            if like is None:
                _refuse_another(description, state, path)
            network = build_network(description, like)
        dtype = floating_dtype(state.values())
        if dtype is not None:  # as it was written: a network in half is tested in half
            network.to(dtype)
        load_state(network, state, path)
        merge(network)
        bake(network)
        attach(network, encodings)
        network.frugal_shapes = description.shapes  # type: ignore[assignment]
    return network.eval(), replace(description, techniques={})


def _load_file(path: Path) -> tuple[FileNetwork, Description]:
    return _described_file(RUN_AS_THEY_LIE[path.suffix], _content(path), None, path)


def _described_file(kind: type[FileNetwork], content: bytes, plain: Any, path: Path) -> tuple[FileNetwork, Description]:
    """A file that runs as it lies; its description, where it is not `plain`, is in it."""
    try:
        network = kind(content)
    except RunError as error:
        raise RunError(f"{path}: {error}") from None
    try:
        plain = plain or json.loads(network.description() or "null")
    except (ValueError, RecursionError):
        plain = None
    description = Description.from_dict(plain, path)
    network.frugal_shapes = description.shapes
    network.eval()
    return network, description


def text_parts(description: Description, path: Path) -> tuple[Cleaning, Tokenizer]:
    """What makes a text a network's tokens: cleaning, and the tokenizer with its vocabulary. Raises RunError for what
    does not fit the network."""
    found: list[Any] = []
    for key, node, base in (
        ("preprocess", description.preprocess, Cleaning),
        ("tokenizer", description.tokenizer, Tokenizer),
    ):
        with crafted(path):
            target = settings.resolve(node.get("_target_"), f"{key}._target_")
            if not inspect.isclass(target) or not issubclass(target, base):
                raise RunError(f"{path}: describes itself wrongly ({key} is no {base.__name__})")
            thing = settings.instantiate(node, key)
            thing.load_state_dict(description.state[key])
            found.append(thing)
    cleaning, tokenizer = found
    ids = tokenizer.vocabulary + (description.task == "text_classification")  # and the padding
    if ids != description.dims["vocabulary"]:
        raise RunError(
            f"{path}: describes itself wrongly (dims.vocabulary is {description.dims['vocabulary']}, its tokenizer "
            f"has {ids})"
        )
    return cleaning, tokenizer


def _refuse_another(description: Description, state: dict[str, Tensor], path: Path) -> None:
    """Compare the network that is described with the tensors there are before any memory is taken for it."""
    try:
        with torch.device("meta"), _NoDraws():
            network = build_network(description)
    except FrugalError:
        raise
    except Exception:  # of anybody's code
        return  # it computes with its tensors while it is built: compared when it stands
    refuse_other_state(network, state, path)


class _NoDraws(TorchFunctionMode):
    """Draws into tensors without memory do nothing: torch would import its compiler for them, which takes seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in ("normal_", "uniform_", "bernoulli_", "exponential_") and args and isinstance(args[0], Tensor):
            return args[0]
        if function in (torch.randn, torch.rand):
            return torch.empty(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def _no_larger_than(state: dict[str, Tensor], path: Path) -> Iterator[None]:
    """While networks are built here, refuse many more or much larger parts than a file has: of a million layers, or of
    a tensor that its state does not hold."""
    parts, size = 10 * len(state) + 1000, max([2**24, *(4 * tensor.numel() for tensor in state.values())])
    seen = 0

    def refuse(module: nn.Module, name: str, part: Any) -> None:
        nonlocal seen
        seen += 1
        if seen > 2 * parts:  # built twice
            raise RunError(f"{path}: holds another network (it has {len(state)} tensors, the network many more)")
        if isinstance(part, Tensor) and not is_lazy(part) and part.numel() > size:
            raise RunError(f"{path}: holds another network ({name} would be {tuple(part.shape)})")

    registered = [
        hooks.register_module_parameter_registration_hook(refuse),
        hooks.register_module_buffer_registration_hook(refuse),
        hooks.register_module_module_registration_hook(refuse),
    ]
    try:
        yield
    finally:
        for hook in registered:
            hook.remove()


def floating_dtype(tensors: Iterable[Tensor]) -> torch.dtype | None:
    """The dtype of all floating-point tensors among these, or None where they do not agree or there are none."""
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State, weights as floats, and plain description from an artefact or a checkpoint. Raises RunError."""
    state, plain, _ = _read(path)
    return state, plain


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Encoding]]:
    path = find_weights(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get("frugal", "{}")
                plain = json.loads(text)
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, RecursionError, OSError) as error:
            raise RunError(f"{path}: not a safetensors artefact ({str(error).splitlines()[0]})") from None
        try:
            state, encodings = packed.unpack(state, _layout(text) if packed.is_packed(state) else None)
        except ValueError as error:
            raise RunError(f"{path}: holds another network ({error})") from None
        return state, plain if isinstance(plain, dict) else {}, encodings
    if path.suffix == ".frugal":
        try:
            state, encodings, text = container.read(_content(path), _layout)
            plain = json.loads(text)
        except (RunError, ValueError, RecursionError) as error:
            raise RunError(f"{path}: {error}") from None
        return state, plain if isinstance(plain, dict) else {}, encodings
    if path.suffix == ".onnx":
        raise RunError(f"{path}: an ONNX file has no weights to read; give the run's checkpoint")
    if path.suffix == ".pt2":
        network, description = _load_file(path)
        assert isinstance(network, ExportedNetwork)
        return network.plain_state(), description.to_dict(), {}
    checkpoint = read_checkpoint(path)
    prefix = "network."
    state = {
        key[len(prefix) :]: tensor
        for key, tensor in checkpoint["state_dict"].items()
        if isinstance(key, str) and key.startswith(prefix)
    }
    strange = next((key for key, tensor in state.items() if not isinstance(tensor, Tensor)), None)
    if strange is not None:
        raise RunError(f"{path}: not a checkpoint ({strange} is no tensor)")
    plain = checkpoint.get("frugal")
    return state, plain if isinstance(plain, dict) else {}, {}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents: plain containers and tensors, or nothing is loaded."""
    try:
        with warnings.catch_warnings():  # of files that are no checkpoints, about their pickle protocol
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise RunError(f"{path}: refused, it holds more than tensors and plain containers (or is damaged)") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path}: not a checkpoint ({reason})") from None
    if not isinstance(checkpoint, dict):
        raise RunError(f"{path}: not a checkpoint (it holds a {type(checkpoint).__name__})")
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise RunError(f"{path}: not a checkpoint (it has no state_dict)")
    if "shards" in checkpoint:  # of a run of several ranks that was cut off
        from frugal.strategy.shards import joined

        checkpoint = joined(checkpoint, path)
    return checkpoint


def load_state(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load by name and shape; a state of another network is refused with the first name that differs."""
    refuse_other_state(network, state, path)
    network.load_state_dict(state)


def refuse_other_state(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Raises RunError with the first name or shape in which a state is not the network's, which may be on `meta`.

    Buffers of a module that says `resizes_on_load` have no shape of their own: tables of counts.
    """
    own = network.state_dict()
    resized = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in network.named_modules()
        if getattr(module, "resizes_on_load", False)
        for name, _ in module.named_buffers(recurse=False)
    }
    for name, tensor in own.items():
        if name not in state:
            raise RunError(f"{path}: holds another network (it has no {name})")
        if state[name].shape != tensor.shape and not (name in resized and state[name].ndim == tensor.ndim):
            shapes = f"{tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            raise RunError(f"{path}: holds another network ({name} is {shapes})")
    extra = sorted(set(state) - set(own))
    if extra:
        raise RunError(f"{path}: holds another network (it has {extra[0]} besides)")


def _without_shared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory (tied weights): each gets its own."""
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return result
