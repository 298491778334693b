"""Broken samples and copies in arrays, against plain loops and by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest

from frugal.data import array_cleaning
from frugal.data.array_cleaning import broken, copies, first_alike, place

NAN, INF = float("nan"), float("inf")


def test_broken_samples_by_hand():
    x = np.array([[1, 2], [NAN, 2], [1, INF], [1, 2], [-INF, NAN]], dtype=np.float32)
    y = np.array([1, 2, 3, NAN, 5], dtype=np.float32)
    assert broken(x, y).tolist() == [False, True, True, True, True]
    assert broken(x[:1], y[:1]).tolist() == [False]
    assert broken(x.reshape(5, 1, 1, 2), np.arange(5)).tolist() == [False, True, True, False, True]
    assert broken(np.zeros((3, 1, 2, 2), np.uint8), np.arange(3)).tolist() == [False] * 3


def test_more_samples_than_are_looked_at_at_once(monkeypatch):
    monkeypatch.setattr(array_cleaning, "CHUNK", 4)
    x = np.arange(22, dtype=np.float32).reshape(11, 2) % 10  # rows 5 apart are alike
    assert first_alike(x).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]
    x[[3, 8, 10], 1] = NAN
    assert np.flatnonzero(broken(x, np.zeros(11, np.float32))).tolist() == [3, 8, 10]


def test_where_the_first_broken_value_stands():
    x = np.array([[1, 2, 3], [1, INF, NAN], [1, 2, 3]], dtype=np.float32)
    y = np.array([1, 2, NAN], dtype=np.float32)
    assert place(x, y, 1, ["age", "bmi", "bp"]) == "column bmi is inf"
    assert place(x, y, 1, None) == "column 1 is inf"
    assert place(x, y, 2, None) == "target is nan"
    images = np.zeros((3, 2, 4, 5), dtype=np.float32)
    images[1, 1, 3, 2] = NAN
    assert place(images, y, 1, None) == "value [1, 3, 2] is nan"


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_the_first_that_is_alike_is_a_plain_loops(dtype):
    rows = np.random.Generator(np.random.PCG64(0)).integers(0, 3, (200, 2, 2)).astype(dtype)
    expected = [next(j for j in range(200) if (rows[j] == rows[i]).all()) for i in range(200)]
    assert first_alike(rows).tolist() == expected and len(set(expected)) < 100
    assert first_alike(rows.transpose(0, 2, 1)).tolist() == expected  # not contiguous


def test_zero_is_zero_whatever_its_sign_and_nan_is_like_itself():
    assert first_alike(np.array([[0.0, 1], [-0.0, 1], [NAN, 1], [NAN, 1], [1, 0]], np.float32)).tolist() == [
        0,
        0,
        2,
        2,
        4,
    ]


def test_nothing_at_all():
    assert first_alike(np.zeros((0, 3))).tolist() == [] and broken(np.zeros((0, 3)), np.zeros(0)).tolist() == []
    assert copies(np.zeros((0, 3)), np.zeros(0)).tolist() == []


def test_equal_hashes_are_compared(monkeypatch):
    monkeypatch.setattr(array_cleaning, "_hash", lambda row: b"always the same")
    assert first_alike(np.array([[1], [2], [1], [3], [2], [2]])).tolist() == [0, 1, 0, 3, 1, 1]


def test_copies_are_later_and_have_the_same_target():
    x = np.array([[1, 1], [2, 2], [1, 1], [1, 1], [2, 2], [1, 1]], dtype=np.uint8)
    y = np.array([0, 1, 0, 1, 1, 1])
    # the fourth has the first's x and another class; the last is like the fourth
    assert copies(x, y).tolist() == [False, False, True, False, True, True]
    assert copies(x, y.astype(np.float32) / 3).tolist() == [False, False, True, False, True, True]


def test_mnists_size_takes_well_under_a_second():
    draw = np.random.Generator(np.random.PCG64(0))
    x = draw.integers(0, 256, (60_000, 784), dtype=np.uint8)
    x[59_999] = x[17]
    y = np.zeros(60_000, dtype=np.int64)
    begin = time.process_time()
    assert np.flatnonzero(copies(x, y)).tolist() == [59_999]
    assert time.process_time() - begin < 1
