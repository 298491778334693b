"""Binary arithmetic coding with adaptive, mixed probabilities, in whole numbers only: every machine decodes the same.

The coder is the carry-less one of Mahoney's lpaq, of 32 bits; the model is his logistic mixing (Mahoney 2005, "Adaptive
weighing of context models for lossless data compression"). An encoder and a decoder have the same `bit`, so that a
model is written once: it hands in the bit to write, which a decoder ignores, and goes on with the bit that comes out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

FINE = 22  # bits of an adaptive probability
REACH = 2047  # of the logistic domain, in 1/256: probabilities from 1/2980 on
START = 65536  # a mixing weight of 1
# The speed of mixing weights: from SLOW + FAST down to SLOW, half way after HALF bits.
SLOW, FAST, HALF = 16, 440, 400
MEMORY = 1023  # bits after which an adaptive probability forgets as fast as it learns
# The share of a new bit in the probability after n others; the plainest context begins with nothing known, the others
# with the plainest's opinion, as if it were two bits.
RATES = [65536 * 2 // (2 * n + 3) for n in range(MEMORY + 3)]


def _logistic() -> list[int]:
    """65536 / (1 + exp(-x / 256)) for x from -2047 to 2047, rounded down, computed without floats."""
    one = 1 << 96
    step, term, k = 0, one, 0
    while term:  # exp(1 / 256) by its series
        step, k = step + term, k + 1
        term //= 256 * k
    upper, power = [], one
    for _ in range(REACH + 1):
        upper.append(65536 * power // (one + power))
        power = power * step >> 96
    return [65536 - p for p in reversed(upper[1:])] + upper


SQUASH = _logistic()  # by x + REACH: a probability in 65536ths


def _logits() -> list[int]:
    """The inverse, by the upper 12 bits of a probability: the nearest."""
    found = []
    for chance in range(8, 65536, 16):
        at = min(max(1, bisect_left(SQUASH, chance)), 2 * REACH)
        found.append(at - REACH - (chance - SQUASH[at - 1] <= SQUASH[at] - chance))
    return found


STRETCH = _logits()


class Coder(Protocol):
    """What an `Encoder` and a `Decoder` have in common."""

    def bit(self, probability: int, bit: int) -> int:
        """Code one bit that is 1 with `probability` / 65536, from 1 to 65535; the bit coded."""
        ...


class Encoder:
    def __init__(self) -> None:
        self.out = bytearray()
        self._low, self._high = 0, 0xFFFFFFFF

    def bit(self, probability: int, bit: int) -> int:
        low, high = self._low, self._high
        middle = low + ((high - low) * probability >> 16)
        if bit:
            high = middle
        else:
            low = middle + 1
        while (low ^ high) < 0x1000000:
            self.out.append(high >> 24)
            low, high = low << 8 & 0xFFFFFFFF, (high << 8 & 0xFFFFFFFF) | 255
        self._low, self._high = low, high
        return bit

    def finish(self) -> bytes:
        """What was coded, in the fewest bytes: a decoder reads zeros after the end."""
        for size in range(5):
            shift = 32 - 8 * size
            value = -(-self._low >> shift) << shift  # rounded up
            if value <= self._high:
                self.out += (value >> shift).to_bytes(size, "big")
                break
        return bytes(self.out).rstrip(b"\0")


class Decoder:
    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 4
        self._low, self._high = 0, 0xFFFFFFFF
        self._value = int.from_bytes(content[:4].ljust(4, b"\0"), "big")

    def bit(self, probability: int, bit: int) -> int:
        low, high = self._low, self._high
        middle = low + ((high - low) * probability >> 16)
        bit = int(self._value <= middle)
        if bit:
            high = middle
        else:
            low = middle + 1
        while (low ^ high) < 0x1000000:
            low, high = low << 8 & 0xFFFFFFFF, (high << 8 & 0xFFFFFFFF) | 255
            byte = self._content[self._at] if self._at < len(self._content) else 0
            self._value, self._at = (self._value << 8 & 0xFFFFFFFF) | byte, self._at + 1
        self._low, self._high = low, high
        return bit


class Mixed:
    """A model of bits that are seen in several contexts at once.

    In each context an adaptive probability; their logits are added with weights that learn. The first context is the
    plainest: where another is met for the first time, it begins with the first one's probability.

    Args:
        sizes: how many values each context has.
        sets: of mixing weights, of which one is chosen for each bit.
    """

    def __init__(self, sizes: Sequence[int], sets: int = 1) -> None:
        self._chances = [[1 << FINE - 1] * size for size in sizes]
        self._seen = [[0] * size for size in sizes]
        others = len(sizes) - 1  # each knows what the plainest does, which is counted once too often
        first = [-START * 3 // 10] + [START * 12 // 10 // others] * others if others else [START]
        self._weights = [list(first) for _ in range(sets)]
        self._steps = 0

    def code(self, coder: Coder, bit: int, contexts: Sequence[int], mix: int = 0) -> int:
        chances, seen, weights = self._chances, self._seen, self._weights[mix]
        plain = chances[0][contexts[0]]
        logits, total = [], 0
        for table, counts, context, weight in zip(chances, seen, contexts, weights, strict=True):
            if not counts[context]:
                table[context] = plain
            logit = STRETCH[table[context] >> FINE - 12]
            logits.append(logit)
            total += weight * logit
        total >>= 16
        chance = SQUASH[(REACH if total > REACH else -REACH if total < -REACH else total) + REACH]
        bit = coder.bit(chance, bit)

        self._steps = steps = self._steps + 1
        error = ((bit << 16) - chance) * (SLOW + FAST * HALF // (steps + HALF))
        goal, trust = (1 << FINE) - 1 if bit else 0, 0
        for k, (table, counts, context, logit) in enumerate(zip(chances, seen, contexts, logits, strict=True)):
            weights[k] += logit * error >> 22
            n = counts[context]
            table[context] += (goal - table[context]) * RATES[n + trust] >> 16
            if n < MEMORY:
                counts[context] = n + 1
            trust = 2
        return bit


class Numbers:
    """Whole numbers from 0 on, in contexts: the length in bits as adaptive steps, then the bits below the first."""

    def __init__(self, contexts: int = 1) -> None:
        self._lengths = Mixed([33, 33 * contexts])
        self._bits = Mixed([9 * 256])

    def code(self, coder: Coder, number: int, context: int = 0) -> int:
        wanted = (number + 1).bit_length() - 1
        length = 0
        while length < 32 and self._lengths.code(coder, int(length < wanted), (length, 33 * context + length)):
            length += 1
        found = 1
        for shift in range(length - 1, -1, -1):
            bit = (number + 1) >> shift & 1
            if found < 256 and length < 9:
                bit = self._bits.code(coder, bit, (256 * length + found,))
            else:
                bit = coder.bit(32768, bit)
            found = 2 * found + bit
        return found - 1
