"""CIFAR-10's archive in miniature: six files of bytes, in whatever order they are packed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from frugal.data.cifar10 import ARCHIVE, CIFAR10
from frugal.errors import DataError
from public_files import cifar_batches, tar_gz

IMAGES = 12
FOLDER = "cifar-10-batches-bin"


def written(root, members):
    content = tar_gz(members)
    (root / "cifar10").mkdir()
    (root / "cifar10" / ARCHIVE).write_bytes(content)
    fields = {"checksums": {ARCHIVE: hashlib.md5(content).hexdigest()}, "batch": IMAGES}
    return type("MiniCIFAR", (CIFAR10,), fields)(str(root), mirrors=[])


def test_the_six_files_become_the_two_splits(tmp_path):
    source = written(tmp_path, cifar_batches(IMAGES))
    source.prepare()
    splits = source.load()
    assert list((tmp_path / "cifar10").iterdir()) == [tmp_path / "cifar10" / ARCHIVE]
    train, test = splits["train"], splits["test"]
    assert train.x.shape == (60, 3, 32, 32) and test.x.shape == (12, 3, 32, 32)
    assert train.x.dtype == np.uint8 and train.y.dtype == np.int64 and train.x.flags.writeable
    # data_batch_1 was packed fifth: number 4
    assert train.y[:12].tolist() == [4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5] and train.y[-12:].tolist()[:3] == [0, 1, 2]
    assert test.y[:3].tolist() == [5, 6, 7]
    assert train.x[3, :, 9, 30].tolist() == [3, 4, 255] and train.x[3, :, 9, 31].tolist() == [0, 0, 0]
    assert test.x[11, :, 31, 0].tolist() == [11, 5, 255]


@pytest.mark.parametrize("damage", ["a file less", "a byte less", "a byte more", "class 10"])
def test_another_archive_is_refused(tmp_path, damage):
    members = cifar_batches(IMAGES)
    name = f"{FOLDER}/data_batch_3.bin"
    content = members.pop(name)
    if damage != "a file less":
        members[name] = {"a byte less": content[:-1], "a byte more": content + b"x", "class 10": b"\n" + content[1:]}[
            damage
        ]
    with pytest.raises(DataError, match=ARCHIVE) as caught:
        written(tmp_path, members).load()
    reason = {"a file less": "no " + name, "a byte less": "36,875", "a byte more": "36,877", "class 10": "class is 10"}
    assert reason[damage] in str(caught.value) and "\n" not in str(caught.value)


def test_ten_classes_by_name():
    names = CIFAR10("x").class_names
    assert (
        names is not None and len(set(names)) == 10 and (names[0], names[3], names[9]) == ("airplane", "cat", "truck")
    )
