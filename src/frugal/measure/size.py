"""Size and sparsity, counted from the weights and the file that was written: never from a target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils import parametrize

from frugal import record

# safetensors' names, for what fp32 does not replace: integers, such as BatchNorm's counters.
_SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def size_figures(network: nn.Module, path: str | Path | None, dense: nn.Module | None = None) -> record.Size:
    """The record's size section.

    Args:
        network: what was trained; its weights are counted as they act, masks and parametrizations applied.
        path: the artefact's file (a folder: all files in it), or None where none was written.
        dense: the plain form whose fp32 file is the measure of compression; by default `network` itself. Give the
            network as it was before conversion where `network` no longer holds plain weights.
    """
    weights = plain_weights(network)
    figures = record.Size(
        parameters=sum(weight.numel() for weight in weights.values()),
        nonzero_parameters=sum(int(torch.count_nonzero(weight)) for weight in weights.values()),
        dense_fp32_bytes=dense_fp32_bytes(plain_state(dense if dense is not None else network), metadata_of(path)),
    )
    if path is not None:
        path = Path(path)
        files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
        figures.file_bytes = sum(file.stat().st_size for file in files)
        if figures.file_bytes and figures.dense_fp32_bytes:
            figures.compression_ratio = figures.dense_fp32_bytes / figures.file_bytes
    return figures


def sparsity_figures(network: nn.Module) -> record.Sparsity:
    """Fractions of zeros: over the prunable weights (two dimensions and more), and over all parameters."""
    weights = plain_weights(network).values()
    return record.Sparsity(
        prunable=_zeros([weight for weight in weights if weight.ndim >= 2]), overall=_zeros(list(weights))
    )


def plain_weights(network: nn.Module) -> dict[str, Tensor]:
    """The parameters as they act in the forward pass, by their plain names: a masked or parametrized weight once, with
    its mask or parametrization applied; a tied weight once."""
    if hasattr(network, "plain_weights"):  # run by something else than torch: it says itself
        return network.plain_weights()  # type: ignore[operator]
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, module in network.named_modules():
        if isinstance(module, parametrize.ParametrizationList) or ".parametrizations" in f".{prefix}":
            continue
        dot = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            plain = name.removesuffix("_orig")
            mask = getattr(module, f"{plain}_mask", None)
            if plain != name and isinstance(mask, Tensor):  # torch.nn.utils.prune
                weights[dot + plain] = parameter.detach() * mask
            else:
                weights[dot + name] = parameter.detach()
        if parametrize.is_parametrized(module):
            for name in module.parametrizations:
                weights[dot + name] = getattr(module, name).detach()
    return weights


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """What a plain file of `network` would hold: `plain_weights` and the buffers that belong to its state."""
    state = plain_weights(network)
    saved = set(network.state_dict())
    for name, buffer in network.named_buffers():
        owner, _, last = name.rpartition(".")
        base = f"{owner}." if owner else ""
        is_mask = last.endswith("_mask") and base + last.removesuffix("_mask") in state
        if name in saved and not is_mask and ".parametrizations" not in f".{name}":
            state[name] = buffer
    return state


def metadata_of(path: str | Path | None) -> dict[str, str]:
    """What a safetensors file says of itself: its plain dense form would say it too."""
    if path is None or Path(path).suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def dense_fp32_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Bytes of the safetensors file of `state` with every floating-point tensor as fp32, without writing it:
    8 bytes of header length, the JSON header padded to 8, the data."""
    entries = []
    for name, tensor in state.items():
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        entries.append((-dtype.itemsize, name, dtype, list(tensor.shape), tensor.numel() * dtype.itemsize))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for _, name, dtype, shape, size in sorted(entries, key=lambda entry: entry[:2]):  # larger items first, then names
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[dtype],
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + (length + 7) // 8 * 8 + offset


def _zeros(weights: list[Tensor]) -> float | None:
    total = sum(weight.numel() for weight in weights)
    if not total:
        return None
    return 1.0 - sum(int(torch.count_nonzero(weight)) for weight in weights) / total
