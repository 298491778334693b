"""The file `model.frugal`: what it begins with, and reading it whatever wrote it.

    bytes 0-2   FRG
    byte  3     version (upper 4 bits), coder (lower 4)
    bytes 4-7   CRC-32 of all other bytes
    byte  8     bit 0: names, shapes and dtypes follow the description; others: number of the dictionary
    then        the description (raw deflate with that dictionary), [the layout likewise], the coder's body

A network that can be built from its description says itself what its tensors are called and how large they are, in
the order of its state; then the file holds none of that.
"""

from __future__ import annotations

import importlib
import json
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frugal.coding import dictionary
from frugal.coding.encoding import Encoding, check
from frugal.coding.tensors import Body, Layout, walk
from frugal.errors import RunError

MAGIC = b"FRG"
VERSION = 1
CODERS = {
    "zstd": (1, "frugal.coding.zstd", "ZstdBody"),
    "huffman": (2, "frugal.coding.huffman", "HuffmanBody"),
    "entropy": (3, "frugal.coding.entropy", "EntropyBody"),
}
LONGEST_TEXT = 2**26
# Bytes of tensors that any file may hold, and how many more for each of its own: nobody's weights are that regular.
LEAST_ROOM, ROOM = 2**27, 2**13
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
    )
}  # fmt: skip


def layout_of(network: nn.Module) -> Layout:
    """What a network, on `meta` as well, says of its state."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in network.state_dict().items()}


def write(
    coder: str,
    state: Mapping[str, Tensor],
    encodings: Mapping[str, Encoding],
    description: str,
    layout: Layout | None = None,
    **arguments: Any,
) -> tuple[bytes, dict[str, int]]:
    """The file, and how many of its bytes each part takes. Raises RunError for what cannot be written."""
    own: Layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    for name, (_, dtype) in own.items():
        if dtype not in DTYPES.values():
            raise RunError(f"coding={coder}: {name} is {dtype}, which is not written; choose coding=none")
    for name, encoding in encodings.items():
        check(name, encoding, state.get(name))
    named = layout is None or list(layout.items()) != list(own.items())
    text = description.encode()
    middle = dictionary.deflate(text)
    if named:
        middle += dictionary.deflate(_to_text(own).encode())
    body = _body(coder, None, arguments)
    walk(body, own, state, encodings)
    tensors = body.finish()
    content = bytes([dictionary.LATEST << 1 | named]) + middle + tensors
    start = MAGIC + bytes([VERSION << 4 | CODERS[coder][0]])
    file = start + zlib.crc32(start + content).to_bytes(4, "big") + content
    if len(text) > LONGEST_TEXT or _bytes(own) > _room(file):
        raise RunError(f"coding={coder}: this network is beyond what a reader would take; choose coding=none")
    parts = {"header": 9, "description": len(middle), **body.parts}
    parts["rest"] = len(file) - sum(parts.values())
    return file, parts


def read(
    content: bytes, layout: Callable[[str], Layout | None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Encoding], str]:
    """State, encodings and description of a file.

    Args:
        content: the whole file.
        layout: gives what the described network says of its state; called where the file does not.

    Raises:
        RunError: for whatever was not written here, or was changed since.
    """
    if content[:3] != MAGIC or len(content) < 9:
        raise RunError("not a coded artefact (it does not begin as one)")
    version, number = content[3] >> 4, content[3] & 15
    coder = next((name for name, (code, _, _) in CODERS.items() if code == number), None)
    if version != VERSION or coder is None:
        raise RunError(f"written by another version of Frugal (format {version}, coder {number})")
    if zlib.crc32(content[:4] + content[8:]) != int.from_bytes(content[4:8], "big"):
        raise RunError("damaged (its checksum does not agree)")
    try:
        text, rest = dictionary.inflate(content[9:], content[8] >> 1, LONGEST_TEXT)
        description = text.decode()
        if content[8] & 1:
            names, rest = dictionary.inflate(rest, content[8] >> 1, LONGEST_TEXT)
            known: Layout | None = _from_text(names.decode())
        else:
            known = layout(description) if layout is not None else None
        if known is None:
            raise RunError("its network cannot be built, and the file does not say what its tensors are")
        if _bytes(known) > _room(content):
            raise RunError(f"too small for its network ({len(content)} bytes for {_bytes(known)})")
        body = _body(coder, rest, {})
        state, encodings = walk(body, known, {}, {})
        body.finish()
    except RunError:
        raise
    except Exception as error:  # a crafted file may be wrong in any way
        said = (str(error).splitlines() or [""])[0][:200]
        raise RunError(f"damaged ({type(error).__name__}: {said})") from None
    return state, encodings, description


def _body(coder: str, content: bytes | None, arguments: dict[str, Any]) -> Body:
    _, module, name = CODERS[coder]
    return getattr(importlib.import_module(module), name)(content, **arguments)


def _bytes(layout: Layout) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.values())


def _room(file: bytes) -> int:
    return LEAST_ROOM + ROOM * len(file)


def _to_text(layout: Layout) -> str:
    return json.dumps(
        [[name, *shape, str(dtype).removeprefix("torch.")] for name, (shape, dtype) in layout.items()],
        separators=(",", ":"),
    )


def _from_text(text: str) -> Layout:
    layout: Layout = {}
    for name, *shape, dtype in json.loads(text):
        if not isinstance(name, str) or name in layout:
            raise ValueError("two tensors of one name")
        if len(shape) > 64 or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
            raise ValueError(f"{name} has no shape")
        layout[name] = tuple(shape), DTYPES[dtype]
    return layout
