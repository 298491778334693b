"""Cutting a validation or test split from the training split: seeded and, for classes, stratified."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frugal.data.array_cleaning import first_alike
from frugal.data.sampler import permutation
from frugal.data.source import Split
from frugal.errors import SettingsError


def holdout(y: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which samples are held out: a mask (N,) of round(N * fraction) True.

    Integer targets are classes: each gives its share, exact to one sample (largest remainder), and keeps at least
    one for training. Float targets are drawn without regard to their value.
    """
    if not 0 <= fraction < 1:
        raise SettingsError(f"data.val_fraction={fraction} is not in [0, 1)")
    mask = np.zeros(len(y), dtype=bool)
    order = permutation(len(y), seed, 0)
    if not np.issubdtype(y.dtype, np.integer):
        mask[order[: round(len(y) * fraction)]] = True
        return mask
    labels, sizes = np.unique(y, return_counts=True)
    shares = sizes * fraction
    counts = np.floor(shares).astype(np.int64)
    counts[np.argsort(counts - shares, kind="stable")[: round(len(y) * fraction) - counts.sum()]] += 1
    for label, count in zip(labels, np.minimum(counts, sizes - 1), strict=True):
        mask[order[y[order] == label][:count]] = True
    return mask


def holdout_copies(samples: Sequence[str] | np.ndarray, y: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """`holdout` with all copies of a text, or of a row of an array (N, ...), on the same side: or training would see
    what is tested on. The fraction is that of the samples that differ."""
    if isinstance(samples, np.ndarray):
        alike = first_alike(samples)
    else:
        numbers: dict[str, int] = {}
        alike = np.array([numbers.setdefault(text, len(numbers)) for text in samples], dtype=np.int64)
    _, first, number = np.unique(alike, return_index=True, return_inverse=True)
    return holdout(y[first], fraction, seed)[number]


def cut_test(whole: Split, fraction: float, seed: int) -> dict[str, Split]:
    """The splits "train" and "test" of a data set that has none of its own; copies of a sample lie in the same."""
    held = holdout_copies(whole.x, whole.y, fraction, seed)
    return {"train": Split(whole.x[~held], whole.y[~held]), "test": Split(whole.x[held], whole.y[held])}
