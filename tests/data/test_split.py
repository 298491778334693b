"""What is held out is cut stratified, by seed, exact to a sample, and never apart from its copies."""

from __future__ import annotations

import numpy as np
import pytest

from frugal.data.source import Split
from frugal.data.split import cut_test, holdout, holdout_copies
from frugal.errors import SettingsError


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1 / 3])
def test_each_class_gives_its_share_and_the_sum_is_exact(fraction):
    y = np.repeat(np.arange(5), [100, 37, 11, 64, 9])[::-1].copy()
    mask = holdout(y, fraction, seed=0)
    assert mask.dtype == bool and mask.sum() == round(len(y) * fraction)
    for label in range(5):
        share = (y == label).sum() * fraction
        assert abs(mask[y == label].sum() - share) < 1


def test_the_seed_chooses_the_samples_but_not_the_shares():
    y = np.arange(200) % 4
    first, again, other = holdout(y, 0.2, 0), holdout(y, 0.2, 0), holdout(y, 0.2, 1)
    assert (first == again).all() and (first != other).any()
    assert np.bincount(y[first]).tolist() == np.bincount(y[other]).tolist() == [10] * 4


def test_every_class_keeps_a_sample_for_training():
    y = np.array([0] * 50 + [1])
    assert not holdout(y, 0.99, 0)[50]


def test_float_targets_are_drawn_without_classes():
    mask = holdout(np.linspace(0, 1, 50, dtype=np.float32), 0.3, 0)
    assert mask.sum() == 15


def test_nothing_and_nonsense():
    assert holdout(np.arange(9) % 3, 0, 0).sum() == 0
    for fraction in (1.0, -0.1, 3):
        with pytest.raises(SettingsError, match=r"data\.val_fraction"):
            holdout(np.arange(9), fraction, 0)


def test_copies_of_a_row_or_a_text_stay_together():
    draw = np.random.Generator(np.random.PCG64(0))
    number = draw.integers(0, 40, 100)  # which of 40 rows each sample is
    rows = draw.normal(size=(40, 2, 3)).astype(np.float32)[number]
    y = number % 4
    by_row = holdout_copies(rows, y, 0.25, 3)
    assert {len(set(by_row[number == n])) for n in set(number)} == {1}
    assert len(set(number[by_row])) == round(len(set(number)) * 0.25)
    np.testing.assert_array_equal(by_row, holdout_copies([f"text {n}" for n in number], y, 0.25, 3))


def test_without_copies_it_is_the_plain_holdout():
    y = np.arange(60) % 3
    np.testing.assert_array_equal(holdout_copies(np.arange(60.0)[:, None], y, 0.2, 1), holdout(y, 0.2, 1))


def test_a_test_split_is_cut_row_by_row():
    x = np.arange(50, dtype=np.float32)[:, None]
    splits = cut_test(Split(x, x[:, 0] * 2), 0.2, seed=0)
    assert (len(splits["train"]), len(splits["test"])) == (40, 10)
    assert sorted(np.concatenate([s.x[:, 0] for s in splits.values()])) == list(range(50))
    for split in splits.values():
        np.testing.assert_array_equal(split.y, split.x[:, 0] * 2)
