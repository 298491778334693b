"""The arithmetic coder by hand, its tables, and adaptive probabilities beside the formulas they stand for."""

from __future__ import annotations

import hashlib
import math
import random

import pytest

from frugal.coding.arithmetic import SQUASH, STRETCH, Decoder, Encoder, Mixed, Numbers


def test_fair_bits_are_the_bits() -> None:
    """At 1/2 each bit halves the interval, a 1 its lower half: the file is the bits inverted, without zeros after."""
    encoder = Encoder()
    for bit in (0, 1, 0, 1, 1, 1, 1, 1, 0):
        encoder.bit(32768, bit)
    content = encoder.finish()
    assert content == bytes([0b10100000, 0b10000000])
    decoder = Decoder(content)
    assert [decoder.bit(32768, 0) for _ in range(9)] == [0, 1, 0, 1, 1, 1, 1, 1, 0]
    assert Encoder().finish() == b""


def test_a_bit_of_a_quarter() -> None:
    encoder = Encoder()
    encoder.bit(16384, 0)  # the upper three quarters: from 0x40000000 on
    assert encoder.finish() == b"\x40"


def test_any_bits_come_back() -> None:
    draw = random.Random(0)
    coded = [(draw.choice([1, 100, 32768, 65000, 65535]), draw.random() < 0.5) for _ in range(5000)]
    encoder = Encoder()
    for chance, bit in coded:
        encoder.bit(chance, int(bit))
    content = encoder.finish()
    decoder = Decoder(content)
    assert [decoder.bit(chance, 0) for chance, _ in coded] == [int(bit) for _, bit in coded]
    ideal = -sum(math.log2(chance / 65536 if bit else 1 - chance / 65536) for chance, bit in coded) / 8
    assert len(content) == pytest.approx(ideal, rel=1e-3)


def test_tables() -> None:
    assert len(SQUASH) == 4095 and SQUASH[2047] == 32768
    for x in range(-2047, 2048):
        assert SQUASH[x + 2047] == pytest.approx(65536 / (1 + math.exp(-x / 256)), abs=1)
    for k in range(40, 4056, 97):
        p = (16 * k + 8) / 65536
        assert STRETCH[k] == pytest.approx(256 * math.log(p / (1 - p)), abs=2)
    # the same on every machine, or files do not decode
    digest = hashlib.sha256(repr((SQUASH, STRETCH)).encode()).hexdigest()
    assert digest == "7d964b403d5b44cee41d8f38114720d948f8b996d220129a36f29b2df832681c"


class Chances(Encoder):
    """Keeps the probabilities it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[int] = []

    def bit(self, probability: int, bit: int) -> int:
        self.given.append(probability)
        return super().bit(probability, bit)


def test_one_context_adapts_as_it_says() -> None:
    """A share of 1 / (n + 1.5) of each bit: after a 1, 5/6; after a 1 and a 0, 1/2."""
    coder, model = Chances(), Mixed([1])
    for bit in (1, 0, 1):
        model.code(coder, bit, (0,))
    assert coder.given[0] == 32768
    assert coder.given[1] / 65536 == pytest.approx(5 / 6, abs=0.002)
    # the mixing weight has learnt from the second bit, and a logit of 0 does not ask it
    assert coder.given[2] / 65536 == pytest.approx(1 / 2, abs=0.002)


def test_a_new_context_begins_with_the_plainest() -> None:
    coder, model = Chances(), Mixed([1, 2])
    for _ in range(50):
        model.code(coder, 1, (0, 0))
    model.code(coder, 1, (0, 1))
    assert coder.given[-1] > 60000


def test_mixing_finds_the_context_that_knows() -> None:
    """Bits that are what one of three contexts says, 9 times of 10: soon near its 0.47 bits each."""
    draw = random.Random(1)
    encoder, model = Encoder(), Mixed([1, 2, 2])
    count = 8000
    for _ in range(count):
        noise, sign = draw.randrange(2), draw.randrange(2)
        model.code(encoder, sign if draw.random() < 0.9 else 1 - sign, (0, noise, sign))
    ideal = count * 0.469 / 8
    assert ideal * 0.96 < len(encoder.finish()) < ideal * 1.04


def test_numbers() -> None:
    numbers = [0, 1, 2, 3, 7, 8, 255, 256, 510, 511, 512, 70000, 2**32 - 2, 0, 0, 5]
    encoder, model = Encoder(), Numbers(2)
    for k, number in enumerate(numbers):
        model.code(encoder, number, k % 2)
    decoder, model = Decoder(encoder.finish()), Numbers(2)
    assert [model.code(decoder, 0, k % 2) for k in range(len(numbers))] == numbers
