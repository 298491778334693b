"""The artefact: the file that a run leaves for use, and what is needed to read it back.

A safetensors file holds the network's state and, as its one metadata entry, how to build the network: its bytes
depend on weights and configuration only. A checkpoint says the same of itself under the key "frugal".
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from frugal import settings
from frugal.errors import RunError
from frugal.models.lora import merge
from frugal.paths import find_weights
from frugal.record import write_atomic


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
    """

    model: dict[str, Any]
    dims: dict[str, Any]
    task: str
    preprocess: dict[str, Any]
    data: dict[str, Any]
    tokenizer: dict[str, Any]
    state: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "dims": self.dims,
            "task": self.task,
            "preprocess": self.preprocess,
            "data": self.data,
            "tokenizer": self.tokenizer,
            "state": self.state,
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any], path: Path) -> Description:
        nodes = ("model", "dims", "preprocess", "data", "tokenizer", "state")
        if not isinstance(plain, dict) or not all(isinstance(plain.get(key), dict) for key in nodes):
            raise RunError(f"{path}: does not say which network it holds; it was not written by Frugal")
        return cls(**{key: plain[key] for key in nodes}, task=str(plain.get("task")))


def build_network(description: Description) -> nn.Module:
    """The network with fresh weights; every target in it passes the allow-list."""
    network = settings.instantiate(description.model.get("network"), "model.network", description.dims)
    assert isinstance(network, nn.Module)
    add_adapters(network, description.model)
    return network


def add_adapters(network: nn.Module, model: dict[str, Any]) -> dict[str, Any]:
    """Add the low-rank adapters that the model option asks for (`model.lora`), if any; their figures."""
    if not model.get("lora"):
        return {}
    adapters = settings.instantiate(model["lora"], "model.lora")
    adapters.apply(network)
    return adapters.figures()


def merged(description: Description) -> Description:
    """The description of a network whose adapters were merged into its weights."""
    return (
        replace(description, model={**description.model, "lora": None})
        if description.model.get("lora")
        else description
    )


def write(network: nn.Module, description: Description, path: Path) -> None:
    """Write the network's state to `path` (safetensors), whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    # One metadata key: safetensors keeps them in a hash map, whose order would differ from run to run.
    metadata = {"frugal": json.dumps(description.to_dict(), sort_keys=True)}
    write_atomic(path, save(_without_shared(state), metadata=metadata))


def load(path: Path) -> tuple[nn.Module, Description]:
    """Read a network from an artefact or a checkpoint. Raises RunError with one line for anything else."""
    state, plain = read(path)
    description = Description.from_dict(plain, path)
    network = build_network(description)
    dtype = floating_dtype(state.values())
    if dtype is not None:  # as it was written: a network in half is tested in half
        network.to(dtype)
    load_state(network, state, path)
    merge(network)
    return network.eval(), description


def floating_dtype(tensors: Iterable[Tensor]) -> torch.dtype | None:
    """The dtype of all floating-point tensors among these, or None where they do not agree or there are none."""
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and plain description from an artefact or a checkpoint, without building anything."""
    path = find_weights(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                plain = json.loads((file.metadata() or {}).get("frugal", "{}"))
                return {name: file.get_tensor(name) for name in file.keys()}, plain  # noqa: SIM118
        except (SafetensorError, json.JSONDecodeError, OSError) as error:
            raise RunError(f"{path}: not a safetensors artefact ({str(error).splitlines()[0]})") from None
    checkpoint = read_checkpoint(path)
    prefix = "network."
    state = {k[len(prefix) :]: v for k, v in checkpoint.get("state_dict", {}).items() if k.startswith(prefix)}
    plain = checkpoint.get("frugal")
    return state, plain if isinstance(plain, dict) else {}


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
    return checkpoint


def load_state(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load by name and shape; a state of another network is refused with the first name that differs.

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
    network.load_state_dict(state)


def _without_shared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory (tied weights): each gets its own."""
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return result
