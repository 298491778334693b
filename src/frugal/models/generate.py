"""Text from a language model, token by token: the key-value cache, sampling, and the paths whose latency counts.

Letters at the end of a tensor's name are its dimensions: B batch, T tokens of this call, S all tokens so far,
H heads, K size of a head, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from frugal.errors import SettingsError


class Cache:
    """Keys and values of the tokens that a network has read, so that the next token costs one position only.

    Memory for `size` tokens is taken at the first use and never again. `length` tokens are valid; a lower `length`
    takes the network back to that token.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.length = 0
        self._tokens: Tensor | None = None
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def tokens(self, tokens_BT: Tensor) -> Tensor:
        """All tokens (B, S) with these as the last ones. Raises ValueError where they do not fit."""
        begin, end = self.length, self.length + tokens_BT.shape[1]
        if end > self.size:
            raise ValueError(f"a cache for {self.size} tokens cannot hold {end}")
        if self._tokens is None:
            self._tokens = tokens_BT.new_empty(len(tokens_BT), self.size)
        self._tokens[:, begin:end] = tokens_BT
        return self._tokens[:, :end]

    def keys_and_values(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values (B, H, S, K) of this layer with these as the last ones."""
        begin, end = self.length, self.length + k_BHTK.shape[2]
        if layer not in self._layers:
            B, H, _, K = k_BHTK.shape
            self._layers[layer] = k_BHTK.new_empty(B, H, self.size, K), v_BHTK.new_empty(B, H, self.size, K)
        keys, values = self._layers[layer]
        keys[:, :, begin:end], values[:, :, begin:end] = k_BHTK, v_BHTK
        return keys[:, :, :end], values[:, :, :end]


def generate(
    network: nn.Module,
    prompt_BT: Tensor,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    cache: bool = True,
    stop: int | None = None,
    block_size: int | None = None,
) -> Iterator[Tensor]:
    """The tokens (B,) after the prompt, one step at a time, at most `tokens` of them.

    The same seed gives the same text, on every device and with or without the cache (but for rounding): draws come from
    a generator of their own on the CPU. Past the network's `block_size` the context is a window over the last tokens
    that moves on by a quarter of a block at a time, so that the cache is refilled only then. The network is put into
    `eval` meanwhile.

    Args:
        network: tokens (B, T) -> logits (B, T, V); with a `step` as `GPT`'s where it can use a cache.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the likeliest tokens that have this probability together (Holtzman et al. 2020).
        cache: False computes the whole window again at each step.
        stop: ends a row, as its last token; rows that ended go on with it until all have.
        block_size: of the window, for a network that has no `block_size`; None there reads all the text at each step.

    Raises SettingsError for a prompt without tokens or a setting out of its range.
    """
    if prompt_BT.ndim != 2 or prompt_BT.shape[1] < 1:
        raise SettingsError("the prompt holds no token; give it at least one character")
    if not 0 <= temperature < math.inf:
        raise SettingsError(f"temperature={temperature}: needs to be 0 (the likeliest token) or above, and finite")
    if top_k is not None and top_k < 1:
        raise SettingsError(f"top_k={top_k}: the least value is 1; null draws from all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise SettingsError(f"top_p={top_p}: needs to be above 0 and at most 1")
    if tokens < 0:
        raise SettingsError(f"tokens={tokens}: needs to be 0 or above")
    if not 0 <= seed < 1 << 63:
        raise SettingsError(f"seed={seed}: needs to be 0 or above and below 2^63")
    draw = torch.Generator().manual_seed(seed)
    block_size = getattr(network, "block_size", block_size)
    return _generate(
        network,
        prompt_BT,
        tokens,
        lambda logits: choose(logits, temperature, top_k, top_p, draw),
        block_size,
        getattr(network, "step", None) if cache else None,
        stop,
    )


@torch.inference_mode()  # on a generator: only while it runs, not in its caller
def _generate(
    network: nn.Module,
    text_BS: Tensor,
    tokens: int,
    pick: Callable[[Tensor], Tensor],
    block_size: int | None,
    step: Callable[[Tensor, Cache], Tensor] | None,
    stop: int | None,
) -> Iterator[Tensor]:
    held, held_from = None, 0
    end = text_BS.shape[1] + tokens
    was_training = network.training
    network.eval()
    try:
        ended_B = torch.zeros(len(text_BS), dtype=torch.bool, device=text_BS.device)
        for _ in range(tokens):
            begin = window_start(text_BS.shape[1], block_size)
            if step is None:
                logits_BV = network(text_BS[:, begin:])[:, -1]
            else:
                if held is None or held_from != begin:
                    size = end - begin
                    held, held_from = Cache(size if block_size is None else min(size, block_size)), begin
                logits_BV = step(text_BS[:, begin + held.length :], held)
            next_B = pick(logits_BV)
            if stop is not None:
                next_B = next_B.masked_fill(ended_B, stop)
                ended_B |= next_B == stop
            text_BS = torch.cat([text_BS, next_B[:, None]], dim=1)
            yield next_B
            if stop is not None and bool(ended_B.all()):
                return
    finally:
        network.train(was_training)


def window_start(length: int, block_size: int | None) -> int:
    """Where the context of a text of `length` tokens begins: 0, then further by a quarter of a block at a time."""
    if block_size is None or length <= block_size:
        return 0
    stride = max(1, block_size // 4)
    return -(-(length - block_size) // stride) * stride


def choose(
    logits_BV: Tensor, temperature: float, top_k: int | None, top_p: float | None, draw: torch.Generator
) -> Tensor:
    """A token (B,) for each row, drawn on the CPU; `top_p` is of what `top_k` has left."""
    if temperature == 0:
        return logits_BV.argmax(dim=1)
    logits_BV = logits_BV.detach().double().cpu()
    # The likeliest is at 0 before the division, so that no temperature overflows it.
    logits_BV = ((logits_BV - logits_BV.amax(dim=1, keepdim=True)) / temperature).float()
    if top_k is not None and top_k < logits_BV.shape[1]:
        least_B1 = logits_BV.topk(top_k, dim=1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    p_BV = logits_BV.softmax(dim=1)
    if top_p is not None:
        sorted_BV, order_BV = p_BV.sort(dim=1, descending=True, stable=True)
        before_BV = sorted_BV.cumsum(dim=1) - sorted_BV  # probability of all likelier tokens; 0 for the first
        p_BV = torch.zeros_like(p_BV).scatter(1, order_BV, sorted_BV.masked_fill(before_BV >= top_p, 0.0))
    return torch.multinomial(p_BV, 1, generator=draw)[:, 0]


def timed_paths(network: nn.Module) -> dict[str, Callable[[Tensor], Any]]:
    """What generating spends its time on, by name, each as a callable from tokens (B, T); empty without a cache.

    `prefill` reads T tokens and fills the cache; `decode, cached` adds the last token to T-1 that the cache holds
    (filled in the first call with a batch: warm up); `decode, uncached` computes all T positions for the same token.
    """
    step = getattr(network, "step", None)
    if step is None:
        return {}
    held: tuple[Tensor, Cache] | None = None

    def prefill(tokens_BT: Tensor) -> Tensor:
        return step(tokens_BT, Cache(tokens_BT.shape[1]))

    def decode_cached(tokens_BT: Tensor) -> Tensor:
        nonlocal held
        before = tokens_BT.shape[1] - 1
        if held is None or held[0] is not tokens_BT:
            held = (tokens_BT, Cache(before + 1))
            if before:
                step(tokens_BT[:, :-1], held[1])
        held[1].length = before
        return step(tokens_BT[:, -1:], held[1])

    def decode_uncached(tokens_BT: Tensor) -> Tensor:
        return network(tokens_BT)[:, -1]

    return {"prefill": prefill, "decode, cached": decode_cached, "decode, uncached": decode_uncached}
