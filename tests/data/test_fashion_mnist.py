"""Fashion-MNIST: MNIST's form under another folder, with other sums and names of its own."""

from __future__ import annotations

import numpy as np
import pytest
from data_standins import Mini

from frugal.data.fashion_mnist import FashionMNIST
from frugal.data.mnist import MNIST
from frugal.errors import DataError


def test_its_files_lie_in_a_folder_of_their_own(tmp_path):
    mini = Mini(FashionMNIST)
    assert mini.write(tmp_path).name == "fashion-mnist"
    source = mini.source(str(tmp_path), mirrors=[])
    source.prepare()
    splits = source.load()
    np.testing.assert_array_equal(splits["train"].x[:, 0], mini.arrays["train-images-idx3-ubyte.gz"])
    np.testing.assert_array_equal(splits["test"].y, np.arange(10))
    assert splits["train"].x.shape == (30, 1, 28, 28)


def test_mnists_files_are_not_taken_for_it(mini, tmp_path):
    (tmp_path / "mnist").mkdir()
    mini.write(tmp_path).rename(tmp_path / "fashion-mnist")
    with pytest.raises(DataError, match="expected md5 8d4fb7e6c68d591d4c3dfef9ec88bf0d"):
        FashionMNIST(str(tmp_path)).prepare()
    assert FashionMNIST("x").sha256() != MNIST("x").sha256()


def test_ten_classes_by_name():
    names = FashionMNIST("x").class_names
    assert names is not None and len(set(names)) == FashionMNIST.classes == 10
    assert (names[0], names[5], names[9]) == ("T-shirt/top", "Sandal", "Ankle boot")
