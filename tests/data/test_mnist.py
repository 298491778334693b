"""MNIST's files: read exactly, never accepted altered, never overwritten."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frugal.data.datamodule import ArrayDataModule
from frugal.data.mnist import MNIST
from frugal.data.preprocess import Preprocess
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
    assert (
        str(folder / TRAIN) in line
        and mini.checksums[TRAIN] in line
        and "delete it" in line
        and "paths.data_dir" in line
    )
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


@pytest.mark.data
def test_the_real_files_from_the_folder_to_the_networks_input(data_dir):
    if not (data_dir / "mnist" / TRAIN).exists():
        pytest.skip("FRUGAL_DATA_DIR holds no mnist/")
    source = MNIST(str(data_dir), mirrors=[])
    source.prepare()
    splits = source.load()
    assert splits["train"].x.shape == (60_000, 1, 28, 28) and splits["test"].x.shape == (10_000, 1, 28, 28)
    assert splits["train"].y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert splits["test"].y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(splits["test"].y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert splits["train"].x[0, 0, 14].tolist()[13:21] == [
        81,
        240,
        253,
        253,
        119,
        25,
        0,
        0,
    ]  # the middle of the first 5

    preprocess = Preprocess(duplicates=True)
    source.load = lambda: splits  # unpacked once is enough
    data = ArrayDataModule(source, preprocess, batch_size=100, eval_batch_size=5000)
    data.setup()
    assert preprocess.counts == {"train": {"duplicates": 0}}
    assert data.figures()["samples"] == {"train": 54_000, "val": 6_000, "test": 10_000}
    assert data.dims() == {"input_shape": (1, 28, 28), "classes": 10}
    shares = np.bincount(splits["train"].y) / 10  # stratified, exact to one sample
    assert np.abs(np.bincount(data.splits["val"][1]) - shares).max() < 1
    assert preprocess.mean[0] / 255 == pytest.approx(0.1307, abs=1e-3)  # the figures that everybody quotes
    assert preprocess.std[0] / 255 == pytest.approx(0.3081, abs=1e-3)

    seen = []
    for x, y in data.test_dataloader():
        x, _ = data.on_after_batch_transfer((x, y), 0)
        seen.append((x.double().sum(), x.double().square().sum(), y))
    # the test images' own mean 0.1325 and deviation 0.3105, in units of the training images'
    mean = float(sum(total for total, _, _ in seen)) / 7_840_000
    square = float(sum(total for _, total, _ in seen)) / 7_840_000
    assert mean == pytest.approx((0.1325 - 0.1307) / 0.3081, abs=2e-3)
    assert (square - mean**2) ** 0.5 == pytest.approx(0.3105 / 0.3081, abs=2e-3)
    assert np.concatenate([y for _, _, y in seen]).tolist() == splits["test"].y.tolist()
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (100, 1, 28, 28) and x.dtype == torch.uint8 and len(y.unique()) == 10
