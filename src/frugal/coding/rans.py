"""Many symbols with one table of frequencies: range asymmetric numeral systems, many coders side by side in numpy.

Duda 2013, "Asymmetric numeral systems"; states of 32 bits, words of 16, interleaved as in Giesen 2014, "Interleaved
entropy coders". Whole numbers only.
"""

from __future__ import annotations

import numpy as np

from frugal.coding.tensors import Array

PRECISION = 14
TOTAL = 1 << PRECISION  # of the frequencies
MOST = 4096  # symbols
LANES = 1024


def frequencies(occurs: Array) -> Array:
    """Counts scaled to add up to `TOTAL`; what occurs at all has at least 1."""
    occurs = occurs.astype(np.int64)
    table = np.where(occurs > 0, np.maximum(1, occurs * TOTAL // max(1, int(occurs.sum()))), 0)
    while (missing := TOTAL - int(table.sum())) != 0:
        largest = int(table.argmax())
        table[largest] += missing if missing > 0 else -min(-missing, int(table[largest]) // 2)
    return table


def encode(symbols: Array, table: Array) -> bytes:
    """Symbols from 0 on, as the states in which a decoder begins and the words that it reads."""
    lanes, starts = _lanes(len(symbols)), np.cumsum(table) - table
    states = np.full(lanes, 1 << 16, np.int64)
    words: list[Array] = []
    for at in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        here = symbols[at : at + lanes]
        frequency, start, state = table[here], starts[here], states[: len(here)]
        full = state >= frequency << 32 - PRECISION
        words.append(state[full] & 0xFFFF)
        state = np.where(full, state >> 16, state)
        states[: len(here)] = (state // frequency << PRECISION) + state % frequency + start
    return states.astype("<u4").tobytes() + np.concatenate(words[::-1]).astype("<u2").tobytes()


def decode(content: bytes, table: Array, count: int) -> Array:
    """Raises ValueError where `content` does not hold exactly `count` symbols."""
    lanes, starts = _lanes(count), np.cumsum(table) - table
    if len(content) < 4 * lanes or len(content) % 2:
        raise ValueError("the file ends too soon")
    states = np.frombuffer(content[: 4 * lanes], "<u4").astype(np.int64)
    words = np.frombuffer(content[4 * lanes :], "<u2").astype(np.int64)
    symbol_of = np.repeat(np.arange(len(table)), table)
    found, used = np.empty(count, np.int64), 0
    for at in range(0, count, lanes):
        state = states[: count - at]
        slot = state & TOTAL - 1
        here = symbol_of[slot]
        found[at : at + lanes] = here
        state = table[here] * (state >> PRECISION) + slot - starts[here]
        empty = np.flatnonzero(state < 1 << 16)
        if used + len(empty) > len(words):
            raise ValueError("the file ends too soon")
        state[empty] = state[empty] << 16 | words[used : used + len(empty)]
        used += len(empty)
        states[: len(state)] = state
    if used != len(words) or (states != 1 << 16).any():
        raise ValueError("codes that do not end where they began")
    return found


def _lanes(count: int) -> int:
    return max(1, min(LANES, count // 4096))
