"""Whole numbers in a safetensors file: what `coding=none` writes in place of a quantized weight.

Under the weight's name its codes in the smallest integer type, or two to a byte where they have four bits (uint8, which
nothing else here is); `NAME.scale` and `NAME.table` beside it, and an empty `NAME.waves` where they are numbers of
waves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from frugal.coding.encoding import Encoding
from frugal.coding.tensors import Layout

SMALLEST = ((2**7, torch.int8), (2**15, torch.int16), (2**31, torch.int32))
BESIDE = ("scale", "table", "waves")


def pack(encodings: Mapping[str, Encoding]) -> dict[str, Tensor]:
    """The tensors that stand for weights, by name."""
    found: dict[str, Tensor] = {}
    for name, encoding in encodings.items():
        codes = encoding.codes
        low, high = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
        if low >= -8 and high < 8:
            flat = pad(codes.flatten() + 8, (0, codes.numel() % 2)).to(torch.uint8)
            found[name] = flat[0::2] * 16 + flat[1::2]
        else:
            found[name] = codes.to(next(dtype for bound, dtype in SMALLEST if -bound <= low and high < bound))
        waves = torch.empty(0, dtype=torch.uint8) if encoding.waves else None
        for key, beside in (("scale", encoding.scale), ("table", encoding.table), ("waves", waves)):
            if beside is not None:
                found[f"{name}.{key}"] = beside.contiguous()
    return found


def is_packed(state: Mapping[str, Tensor]) -> bool:
    return any(name.endswith(tuple(f".{key}" for key in BESIDE)) for name in state)


def unpack(state: Mapping[str, Tensor], layout: Layout | None) -> tuple[dict[str, Tensor], dict[str, Encoding]]:
    """A state with its weights as floats, and the codes they came from. `layout` says the shapes of the weights whose
    codes lie two to a byte. Raises ValueError for what `pack` did not write."""
    encodings: dict[str, Encoding] = {}
    for name, codes in state.items():
        if not any(f"{name}.{key}" in state for key in BESIDE):
            continue
        if codes.dtype == torch.uint8:
            shape = (layout or {}).get(name, ((0,), None))[0]
            flat = torch.stack((codes // 16, codes % 16), dim=1).flatten().to(torch.int32) - 8
            if codes.ndim != 1 or not 0 <= len(flat) - math.prod(shape) <= 1:
                raise ValueError(f"{name} has {len(flat)} codes for {math.prod(shape)} weights")
            codes = flat[: math.prod(shape)].reshape(shape)
        scale, table = state.get(f"{name}.scale"), state.get(f"{name}.table")
        encodings[name] = Encoding(codes.to(torch.int32), scale, table, f"{name}.waves" in state)
        fault = encodings[name].fault()
        if fault is not None:
            raise ValueError(f"{name}: {fault}")
    aside = {f"{name}.{key}" for name in encodings for key in BESIDE}
    plain = {name: tensor for name, tensor in state.items() if name not in aside}
    return plain | {name: encoding.decode() for name, encoding in encodings.items()}, encodings
