"""GPT-2's weights, from a local safetensors file as Hugging Face writes it, for `model=gpt2`."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frugal.errors import RunError

_TOP = {"wte": "embedding", "wpe": "position", "ln_f": "norm"}
_IN_BLOCK = {
    "ln_1": "norm1",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
_BLOCK = re.compile(r"h\.(\d+)\.(.+)\.(weight|bias)")
_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # constants that older files hold


def is_gpt2(path: str | Path) -> bool:
    """Whether `path` is a safetensors file with GPT-2's names, with or without `transformer.` before them."""
    if Path(path).suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            names = {_plain(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return False
    return {"wte.weight", "wpe.weight", "h.0.attn.c_attn.weight"} <= names


def convert(path: str | Path, block_size: int | None = None) -> dict[str, Tensor]:
    """The file's weights as the state, in fp32, of a `GPT` with learned positions, LayerNorm, biases, `gelu_tanh` and
    a tied head. GPT-2's linear layers are stored as (in, out), torch's as (out, in).

    Args:
        block_size: keep the positions of so many tokens only, for shorter blocks than the file's.

    Raises RunError for a file with other weights besides, or with a head that is not the embedding.
    """
    state: dict[str, Tensor] = {}
    head: Tensor | None = None
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            plain, tensor = _plain(name), file.get_tensor(name)
            if _MASKS.fullmatch(plain):
                continue
            tensor = tensor.float()
            if plain == "lm_head.weight":
                head = tensor
                continue
            own = _own_name(plain)
            if own is None:
                raise RunError(f"{path}: holds more than a GPT-2 ({name})")
            is_linear = ".c_" in plain and plain.endswith(".weight")
            state[own] = tensor.t().contiguous() if is_linear else tensor
    if head is not None and not torch.equal(head, state["embedding.weight"]):
        raise RunError(f"{path}: its lm_head.weight is not its embedding; GPT-2's head is tied")
    if block_size is not None:
        state["position.weight"] = state["position.weight"][:block_size].clone()
    return state


def _plain(name: str) -> str:
    return name.removeprefix("transformer.")


def _own_name(plain: str) -> str | None:
    block = _BLOCK.fullmatch(plain)
    if block is not None:
        number, layer, kind = block.groups()
        return f"blocks.{number}.{_IN_BLOCK[layer]}.{kind}" if layer in _IN_BLOCK else None
    layer, _, kind = plain.rpartition(".")
    return f"{_TOP[layer]}.{kind}" if layer in _TOP else None
