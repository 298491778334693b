"""Data sets of images in the four files of MNIST's form: gzipped idx, images and labels to train on and to test on."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from typing import ClassVar

import numpy as np

from frugal.data.fetch import Fetched
from frugal.data.source import ArraySource, Split
from frugal.errors import DataError

UINT8 = 0x08  # the third byte of an idx file: its element type
LARGEST = 1 << 28  # elements; a file whose head says more is not what it should be, and no memory is taken for it


class IdxImages(Fetched, ArraySource):
    """Images (N, 1, 28, 28) of 0 to 255 with one of ten classes, in the data set's own two splits."""

    task: ClassVar[str] = "classification"
    classes = 10

    def load(self) -> dict[str, Split]:
        return {"train": self._split("train"), "test": self._split("t10k")}

    def _split(self, prefix: str) -> Split:
        images = self._array(f"{prefix}-images-idx3-ubyte.gz")
        labels = self._array(f"{prefix}-labels-idx1-ubyte.gz")
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise DataError(
                f"{self.path(prefix + '-images-idx3-ubyte.gz')}: holds {list(images.shape)} beside "
                f"{list(labels.shape)} labels; images of 28x28 with one label each are expected"
            )
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
        if magic[:3] != bytes((0, 0, UINT8)) or len(magic) < 4:
            raise ValueError(f"it begins with {magic.hex()}")
        shape = np.frombuffer(file.read(4 * magic[3]), dtype=">u4").tolist()
        if len(shape) < magic[3] or math.prod(shape) > LARGEST:
            raise ValueError(f"its head says {shape}")
        array = np.empty(math.prod(shape), dtype=np.uint8)  # ours to write into, which torch asks for
        filled = 0
        while filled < len(array) and (count := file.readinto(array[filled : filled + (1 << 20)].data)):
            filled += count
        if filled < len(array) or file.read(1):
            raise ValueError(f"its size is not {shape}")
    return array.reshape(shape)
