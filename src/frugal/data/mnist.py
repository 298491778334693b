"""MNIST (LeCun, Cortes, Burges): the official four files, 60,000 training and 10,000 test images of 28x28."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from frugal.data.fetch import Fetched
from frugal.data.source import ArraySource, Split
from frugal.errors import DataError

IDX_UINT8 = 0x08  # the third byte of an idx file: its element type


class MNIST(Fetched, ArraySource):
    """Images (N, 1, 28, 28) of 0 to 255, in the data set's own two splits; files lie in `root`/mnist.

    `mirrors` are base addresses that are tried in turn for files that are missing; None: two public ones.
    """

    task: ClassVar[str] = "classification"
    classes = 10
    folder: ClassVar[str] = "mnist"
    md5: ClassVar[Mapping[str, str]] = {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    }
    public_mirrors: ClassVar[tuple[str, ...]] = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )

    def load(self) -> dict[str, Split]:
        return {"train": self._split("train"), "test": self._split("t10k")}

    def _split(self, prefix: str) -> Split:
        images = self._array(f"{prefix}-images-idx3-ubyte.gz")
        labels = self._array(f"{prefix}-labels-idx1-ubyte.gz")
        return Split(images[:, None], labels.astype(np.int64))

    def _array(self, name: str) -> np.ndarray:
        path = self.path(name)
        try:
            return read_idx(self.read(name))
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise DataError(f"{path}: not an idx file of bytes ({error})") from None


def read_idx(compressed: bytes) -> np.ndarray:
    """The uint8 array in a gzipped idx file: two zeros, type, rank, big-endian sizes, then the elements."""
    with gzip.GzipFile(fileobj=io.BytesIO(compressed)) as file:
        magic = file.read(4)
        if magic[:3] != bytes((0, 0, IDX_UINT8)):
            raise ValueError(f"it begins with {magic.hex()}")
        shape = np.frombuffer(file.read(4 * magic[3]), dtype=">u4").astype(np.int64)
        array = np.empty(shape.prod(), dtype=np.uint8)  # ours to write into, which torch asks for
        filled = 0
        while filled < len(array) and (count := file.readinto(array[filled : filled + (1 << 20)].data)):
            filled += count
        if filled < len(array) or file.read(1):
            raise ValueError(f"its size is not {shape.tolist()}")
    return array.reshape(shape)
