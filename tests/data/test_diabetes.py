"""The embedded diabetes data: scikit-learn's own values, cut by a seed, read without importing it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from frugal.data import embedded
from frugal.data.diabetes import Diabetes
from frugal.errors import DataError, SettingsError


def test_together_the_splits_are_scikit_learns_samples_in_their_own_units():
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    splits = Diabetes().load()
    assert (len(splits["train"]), len(splits["test"])) == (354, 88)  # 442 less a fifth
    assert splits["train"].x.dtype == splits["train"].y.dtype == np.float32
    ours = np.concatenate([np.column_stack((s.x, s.y)) for s in splits.values()])
    theirs = np.column_stack((found.data, found.target)).astype(np.float32)
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    assert Diabetes.feature_names == found.feature_names and not Diabetes.own_splits


def test_seed_and_fraction_choose_the_test_split_and_are_its_identity():
    first, again, other = Diabetes(), Diabetes(0.2, 0), Diabetes(split_seed=1)
    np.testing.assert_array_equal(first.load()["test"].x, again.load()["test"].x)
    assert (first.load()["test"].y != other.load()["test"].y).any()
    assert len(Diabetes(test_fraction=0.5).load()["test"]) == 221
    assert len({first.sha256(), other.sha256(), Diabetes(0.5).sha256()}) == 3 and first.sha256() == again.sha256()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_a_fraction_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(SettingsError, match=r"data\.source\.test_fraction"):
        Diabetes(test_fraction=fraction)


def test_without_scikit_learn_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    for step in (Diabetes().prepare, Diabetes().load, Diabetes().sha256):
        with pytest.raises(DataError, match=r"data=diabetes .* pip install scikit-learn"):
            step()


def test_damaged_files_are_refused_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "damaged.gz").write_bytes(b"\x1f\x8b\x08 not so")
    monkeypatch.setattr(Diabetes, "_path", staticmethod(lambda name: tmp_path / "damaged.gz"))
    with pytest.raises(DataError, match="reinstall scikit-learn"):
        Diabetes().load()


def test_neither_torch_nor_scikit_learn_is_imported():
    code = (
        "import sys; from frugal.data.diabetes import Diabetes; from frugal.data.california_housing import "
        "CaliforniaHousing; from frugal.data.cifar10 import CIFAR10\n"
        "Diabetes().load(); CaliforniaHousing('nowhere').sha256(); CIFAR10('nowhere').sha256()\n"
        "print([m for m in ('torch', 'lightning', 'sklearn', 'pooch', 'requests', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
