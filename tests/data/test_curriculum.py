"""Sequence-length warm-up: lengths in turn, and the same tokens in each step."""

from __future__ import annotations

import pytest
import torch

from frugal.data.curriculum import LengthWarmup
from frugal.errors import SettingsError


def test_the_length_doubles_in_equal_spans_of_the_first_part_of_the_run():
    warmup = LengthWarmup(start=8, fraction=0.5)
    assert warmup.lengths(64) == [8, 16, 32, 64]
    found = [warmup.length(done, 60, 64) for done in range(60)]
    assert found == [8] * 10 + [16] * 10 + [32] * 10 + [64] * 30


def test_only_divisors_of_the_block_are_taken():
    assert LengthWarmup(start=8).lengths(96) == [8, 16, 32, 96]
    assert LengthWarmup(start=3).lengths(12) == [3, 6, 12]


def test_a_block_no_longer_than_the_start_stays_whole():
    warmup = LengthWarmup(start=64)
    assert warmup.lengths(64) == [64] and warmup.lengths(12) == [12]
    assert warmup.length(0, 10, 64) == 64


def test_a_batch_is_cut_and_keeps_its_tokens_and_their_targets():
    x = torch.arange(32).view(2, 16)
    short, targets = LengthWarmup(start=4)((x, x + 1), done=0, total=100)
    assert short.tolist() == torch.arange(32).view(8, 4).tolist() and torch.equal(targets, short + 1)
    whole, _ = LengthWarmup(start=4)((x, x + 1), done=50, total=100)
    assert torch.equal(whole, x)


def test_what_cannot_be_is_refused():
    with pytest.raises(SettingsError, match=r"curriculum\.start=5 does not divide data\.block_size=64"):
        LengthWarmup(start=5).lengths(64)
    with pytest.raises(SettingsError, match=r"curriculum\.start=0"):
        LengthWarmup(start=0)
    for fraction in (0, 1.5):
        with pytest.raises(SettingsError, match=r"curriculum\.fraction"):
            LengthWarmup(fraction=fraction)
