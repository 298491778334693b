"""Validation is cut stratified, by seed, and exact to a sample."""

from __future__ import annotations

import numpy as np
import pytest

from frugal.data.split import holdout
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
