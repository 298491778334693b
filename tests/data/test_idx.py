"""The idx format by hand, and files that only look like it."""

from __future__ import annotations

import gzip
import hashlib

import numpy as np
import pytest

from frugal.data.idx import read_idx
from frugal.data.mnist import MNIST
from frugal.errors import DataError
from public_files import idx


def test_a_file_by_hand():
    content = bytes.fromhex("00000802 00000002 00000003") + bytes([1, 2, 3, 253, 254, 255])
    array = read_idx(gzip.compress(content))
    assert array.tolist() == [[1, 2, 3], [253, 254, 255]] and array.dtype == np.uint8 and array.flags.writeable


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x08\x02\0\0\0\x05",  # sizes missing
        b"\0\0\x08\x01\0\0\0\x05abc",  # cut short
        b"\0\0\x08\x01\0\0\0\x02abc",  # too long
        b"\0\0\x0d\x01\0\0\0\x01abcd",  # floats
        b"\0\0\x08\x03" + b"\xff" * 12,  # a head that asks for more memory than there is
        b"\0\0\x08\x08" + b"\x80\0\0\0" * 8,  # one whose product is 0 in 64 bits
    ],
)
def test_what_is_no_idx_file_of_bytes_is_refused(content):
    with pytest.raises(ValueError):
        read_idx(gzip.compress(content))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("t10k-labels-idx1-ubyte.gz", np.zeros(9)),
        ("t10k-images-idx3-ubyte.gz", np.zeros((10, 27, 28))),
        ("t10k-images-idx3-ubyte.gz", np.zeros((10, 784))),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(mini, tmp_path, name, array):
    files = mini.files | {name: idx(array)}
    sums = {key: hashlib.md5(content).hexdigest() for key, content in files.items()}
    other = type("Other", (MNIST,), {"checksums": sums})
    (tmp_path / "mnist").mkdir()
    for key, content in files.items():
        (tmp_path / "mnist" / key).write_bytes(content)
    with pytest.raises(DataError, match="one label each"):
        other(str(tmp_path)).load()
