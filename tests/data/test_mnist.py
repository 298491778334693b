"""MNIST's files: read exactly, never accepted altered, never overwritten."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from frugal.data.mnist import MNIST, read_idx
from frugal.errors import DataError

TRAIN = "train-images-idx3-ubyte.gz"


def test_the_four_files_become_the_two_splits(mini, tmp_path):
    mini.write(tmp_path)
    source = mini.source(str(tmp_path), mirrors=[])
    source.prepare()
    splits = source.load()
    assert set(splits) == {"train", "test"}
    for name, prefix in (("train", "train"), ("test", "t10k")):
        np.testing.assert_array_equal(splits[name].x[:, 0], mini.arrays[f"{prefix}-images-idx3-ubyte.gz"])
        np.testing.assert_array_equal(splits[name].y, mini.arrays[f"{prefix}-labels-idx1-ubyte.gz"])
        assert splits[name].x.dtype == np.uint8 and splits[name].x.flags.writeable
        assert splits[name].y.dtype == np.int64


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
@pytest.mark.parametrize("step", ["prepare", "load"])
def test_a_damaged_file_is_refused_and_left_alone(mini, tmp_path, damage, step):
    folder = mini.write(tmp_path)
    whole = mini.files[TRAIN]
    bad = {"truncated": whole[:-7], "altered": whole[:99] + bytes([whole[99] ^ 1]) + whole[100:], "empty": b""}[damage]
    (folder / TRAIN).write_bytes(bad)
    with pytest.raises(DataError) as caught:
        getattr(mini.source(str(tmp_path), mirrors=["http://127.0.0.1:9/"]), step)()
    line = str(caught.value)
    assert str(folder / TRAIN) in line and mini.md5[TRAIN] in line and "delete it" in line and "paths.data_dir" in line
    assert "\n" not in line
    assert (folder / TRAIN).read_bytes() == bad


def test_a_missing_file_without_network_names_folder_and_ways_out(mini, tmp_path):
    folder = mini.write(tmp_path)
    (folder / TRAIN).unlink()
    source = mini.source(str(tmp_path), mirrors=["http://127.0.0.1:9/"])
    for step in (source.prepare, source.load):
        with pytest.raises(DataError) as caught:
            step()
        line = str(caught.value)
        assert str(folder / TRAIN) in line and "FRUGAL_DATA_DIR" in line and "data=digits" in line
        assert "\n" not in line
    assert not (folder / TRAIN).exists()


def test_identity_needs_no_file_and_follows_the_checksums(mini):
    assert MNIST("nowhere").sha256() == MNIST("elsewhere", mirrors=["http://mirror/"]).sha256()
    assert MNIST("nowhere").sha256() != mini.source("nowhere").sha256()


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x01\0\0\0\x05abc", b"\0\0\x0d\x01\0\0\0\x01abcd"])
def test_what_is_no_idx_file_of_bytes_is_refused(content):
    import gzip

    with pytest.raises(ValueError):
        read_idx(gzip.compress(content))


@pytest.mark.data
@pytest.mark.skipif(
    not Path(os.environ.get("FRUGAL_DATA_DIR", "nowhere"), "mnist", TRAIN).exists(),
    reason="FRUGAL_DATA_DIR holds no mnist/",
)
def test_the_real_files():
    source = MNIST(os.environ["FRUGAL_DATA_DIR"], mirrors=[])
    source.prepare()
    splits = source.load()
    assert splits["train"].x.shape == (60_000, 1, 28, 28) and splits["test"].x.shape == (10_000, 1, 28, 28)
    assert splits["train"].y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert splits["test"].y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(splits["test"].y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(splits["train"].x.mean() / 255 - 0.1307) < 1e-4  # the figure that everybody quotes
    assert abs(splits["train"].x.std() / 255 - 0.3081) < 1e-4
