"""Checkpoints in pieces: each rank writes its own part of the tensors, and any number of ranks reads the whole.

    last.ckpt                  everything else, and of each tensor that is shared out its shape and place
    last-120.0/rank0.pt ...    the pieces, {number of the tensor: (offsets, piece)}

`last.ckpt` names the folder and is written last, whole or not at all, so that a kill at any moment leaves a checkpoint
that is complete. Plain containers and tensors, read with `weights_only=True`. torch.distributed.checkpoint would do,
but reads pickled metadata.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from frugal.callbacks.checkpoints import remove_pieces
from frugal.errors import RunError
from frugal.record import write_atomic

FOLDER = "shards"  # the checkpoint's key for the folder's name
PLACE = "shared_out"  # what stands for a tensor


@dataclass
class Leaf:
    """A tensor that ranks share out.

    `parts` above 1: its rows are so many matrices, one upon the other, of each of which every one of `ranks` holds its
    rows; `tensor` has them in the order of the ranks.
    """

    tensor: DTensor
    parts: int = 1
    ranks: int = 1

    def whole(self) -> Tensor:
        """The plain tensor; every rank of its mesh must ask."""
        return self.in_order(self.tensor.full_tensor())

    def in_order(self, whole: Tensor) -> Tensor:
        return whole if self.parts == 1 else whole[rows_of_ranks(len(whole), self.parts, self.ranks).argsort()]

    def own(self, whole: Tensor) -> Tensor:
        """This rank's piece of the plain tensor."""
        if self.parts > 1:
            whole = whole[rows_of_ranks(len(whole), self.parts, self.ranks)]
        shape, offset = piece_of(self.tensor)
        return whole[tuple(slice(begin, begin + size) for begin, size in zip(offset, shape, strict=True))]

    def like(self, whole: Tensor) -> DTensor:
        """A plain tensor of this one's shape, shared out as it is."""
        local = self.own(whole).to(self.tensor.device, copy=True).contiguous()
        spec = self.tensor
        return DTensor.from_local(
            local, spec.device_mesh, spec.placements, run_check=False, shape=spec.shape, stride=spec.stride()
        )


def rows_of_ranks(rows: int, parts: int, ranks: int) -> Tensor:
    """The order of rows in which a rank's shares of all parts lie together: by rank, then part, then row."""
    return torch.arange(rows).view(parts, ranks, -1).transpose(0, 1).reshape(-1)


def piece_of(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and offset of this rank's piece."""
    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)


def is_owner(tensor: DTensor, mesh: DeviceMesh) -> bool:
    """Whether this rank writes its piece: of the ranks on `mesh` that hold the same one, the first."""
    shared = tensor.device_mesh.mesh_dim_names or ()
    cut = {name for name, placed in zip(shared, tensor.placements, strict=True) if not placed.is_replicate()}
    return all(mesh.get_local_rank(name) == 0 for name in mesh.mesh_dim_names or () if name not in cut)


def replace_leaves(tree: Any, act: Callable[[Leaf], Any]) -> Any:
    """`tree` with each Leaf replaced by what `act` makes of it, in an order that is the same on all ranks."""
    if isinstance(tree, Leaf):
        return act(tree)
    if isinstance(tree, dict):
        return {key: replace_leaves(value, act) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [replace_leaves(value, act) for value in tree]
    return tree


def split(checkpoint: dict[str, Any], folder: str, mesh: DeviceMesh) -> tuple[dict[str, Any], dict[int, Any]]:
    """What rank 0 writes into the file, and this rank's pieces."""
    pieces: dict[int, Any] = {}
    count = 0

    def place(leaf: Leaf) -> dict[str, Any]:
        nonlocal count
        number, tensor, count = count, leaf.tensor, count + 1
        if is_owner(tensor, mesh):
            local = tensor.to_local().detach().cpu()
            if local.numel():
                pieces[number] = [list(piece_of(tensor)[1]), local.clone()]
        return {PLACE: number, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch."),
                "parts": leaf.parts, "ranks": leaf.ranks}  # fmt: skip

    rest = replace_leaves(checkpoint, place)
    rest[FOLDER] = folder
    return rest, pieces


def write(pieces: dict[int, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(pieces, buffer)
    write_atomic(path, buffer.getbuffer())


def new_folder(checkpoint: Path, step: int) -> str:
    """A name beside the checkpoint that no folder has."""
    number = 0
    while (checkpoint.parent / f"{checkpoint.stem}-{step}.{number}").exists():
        number += 1
    return f"{checkpoint.stem}-{step}.{number}"


def joined(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The checkpoint with plain tensors, from the pieces beside `path`; as it is where it has none. Raises RunError."""
    name = checkpoint.get(FOLDER)
    if name is None:
        return checkpoint
    folder = path.parent / str(name)
    if Path(str(name)).name != name or not folder.is_dir():
        raise RunError(f"{path}: its tensors lie in {path.parent / str(name)}, which is not there")
    wholes: dict[int, Tensor] = {}
    places: dict[int, dict[str, Any]] = {}

    def find(tree: Any) -> None:
        if isinstance(tree, dict) and PLACE in tree:
            places[tree[PLACE]] = tree
        elif isinstance(tree, dict | list):
            for value in tree.values() if isinstance(tree, dict) else tree:
                find(value)

    find(checkpoint)
    try:
        filled = dict.fromkeys(places, 0)
        for number, at in places.items():
            wholes[number] = torch.empty(at["shape"], dtype=getattr(torch, at["dtype"]))
        for file in sorted(folder.glob("rank*.pt")):
            for number, (offset, piece) in torch.load(file, map_location="cpu", weights_only=True).items():
                cut = tuple(slice(begin, begin + size) for begin, size in zip(offset, piece.shape, strict=True))
                wholes[number][cut] = piece
                filled[number] += piece.numel()
        short = next((n for n, whole in wholes.items() if filled[n] != whole.numel()), None)
        if short is not None:
            raise RunError(f"{folder}: a piece of a tensor is missing; the checkpoint {path.name} cannot be read")
        for number, at in places.items():
            if at["parts"] > 1:
                order = rows_of_ranks(len(wholes[number]), at["parts"], at["ranks"])
                wholes[number] = wholes[number][order.argsort()]
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        EOFError,
        pickle.UnpicklingError,
    ) as e:
        raise RunError(f"{folder}: not the pieces of {path.name} ({(str(e).splitlines() or [''])[0]})") from None

    def fill(tree: Any) -> Any:
        if isinstance(tree, dict):
            return wholes[tree[PLACE]] if PLACE in tree else {key: fill(value) for key, value in tree.items()}
        return [fill(value) for value in tree] if isinstance(tree, list) else tree

    return {key: fill(value) for key, value in checkpoint.items() if key != FOLDER}


def consolidate(path: Path) -> None:
    """Make a checkpoint in pieces one file that holds all; of one that is so already, nothing."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if FOLDER in checkpoint:
        buffer = io.BytesIO()
        torch.save(joined(checkpoint, path), buffer)
        write_atomic(path, buffer.getbuffer())
    remove_pieces(path)
