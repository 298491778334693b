"""The embedded digits: their split, their scaling, and that they cost neither torch nor scikit-learn."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from frugal.data import embedded
from frugal.data.digits import Digits
from frugal.errors import DataError


@pytest.fixture(scope="module")
def original() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target


def test_every_fifth_of_each_class_is_for_testing_and_nothing_is_lost(original):
    images, target = original
    splits = Digits(size=8).load()
    seen = dict.fromkeys(range(10), 0)
    expected = {"train": [], "test": []}
    for i, label in enumerate(target):
        seen[label] += 1
        expected["test" if seen[label] % 5 == 0 else "train"].append(i)
    for name, rows in expected.items():
        assert splits[name].y.dtype == np.int64
        np.testing.assert_array_equal(splits[name].y, target[rows])
        np.testing.assert_array_equal(splits[name].x[:, 0], np.rint(images[rows] * 255 / 16))
    assert (len(splits["train"]), len(splits["test"])) == (1442, 355)


def test_scaled_to_28_each_pixel_is_three_by_three_within_a_border_of_two():
    small, large = Digits(size=8).load()["test"].x, Digits().load()["test"].x
    assert large.shape == (355, 1, 28, 28) and large.dtype == np.uint8
    assert large.max() == 255
    for dy in range(3):
        for dx in range(3):
            np.testing.assert_array_equal(large[:, :, 2 + dy : 26 : 3, 2 + dx : 26 : 3], small)
    assert int(large.sum(dtype=np.int64)) == 9 * int(small.sum(dtype=np.int64))  # so the border is zero


def test_identity_is_that_of_file_and_size():
    assert Digits().sha256() == Digits(28).sha256() != Digits(8).sha256()
    assert len(Digits().sha256()) == 64


def test_neither_torch_nor_scikit_learn_is_imported():
    code = (
        "import sys; from frugal.data.digits import Digits; from frugal.data.mnist import MNIST\n"
        "Digits().load(); Digits().sha256(); MNIST('nowhere').sha256()\n"
        "print([m for m in ('torch', 'lightning', 'sklearn', 'pooch', 'requests', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_scikit_learn_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-learn") as caught:
        Digits().prepare()
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_table_is_named(monkeypatch, tmp_path):
    bad = tmp_path / "digits.csv.gz"
    bad.write_bytes(b"not gzip")
    monkeypatch.setattr(Digits, "_path", staticmethod(lambda: bad))
    with pytest.raises(DataError, match=str(bad)):
        Digits().load()


def test_another_size_is_refused():
    with pytest.raises(DataError, match=r"data\.source\.size=16"):
        Digits(16)
