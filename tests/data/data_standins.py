"""Small stand-ins: a source whose samples carry their own number, and MNIST's four files in miniature."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np

from frugal.data.mnist import MNIST
from frugal.data.source import Source, Split


class Numbered(Source):
    """Training sample i is a 4x4 image whose first two pixels are i // 256 and i % 256; its target is i % classes."""

    task = "classification"
    classes = 3

    def __init__(self, train: int = 100, test: int = 25, val: int = 0) -> None:
        self.sizes = {"train": train, "test": test, **({"val": val} if val else {})}

    def sha256(self) -> str:
        return hashlib.sha256(repr(self.sizes).encode()).hexdigest()

    def prepare(self) -> None:
        pass

    def load(self) -> dict[str, Split]:
        splits = {}
        for name, size in self.sizes.items():
            x = np.random.Generator(np.random.PCG64(size)).integers(0, 256, (size, 1, 4, 4), dtype=np.uint8)
            x[:, 0, 0, 0], x[:, 0, 0, 1] = np.divmod(np.arange(size), 256)
            splits[name] = Split(x, np.arange(size) % self.classes)
        return splits


def numbers(x) -> list[int]:
    """Which samples a batch of `Numbered` holds."""
    return (x[:, 0, 0, 0].int() * 256 + x[:, 0, 0, 1].int()).tolist()


def idx(array: np.ndarray) -> bytes:
    """A gzipped idx file of bytes."""
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


class Mini:
    """Four files like MNIST's with 30 and 10 images, their content, and a source that expects just these."""

    def __init__(self) -> None:
        draw = np.random.Generator(np.random.PCG64(0))
        self.arrays = {
            "train-images-idx3-ubyte.gz": draw.integers(0, 256, (30, 28, 28), dtype=np.uint8),
            "train-labels-idx1-ubyte.gz": np.arange(30) % 10,
            "t10k-images-idx3-ubyte.gz": draw.integers(0, 256, (10, 28, 28), dtype=np.uint8),
            "t10k-labels-idx1-ubyte.gz": np.arange(10),
        }
        self.files = {name: idx(array) for name, array in self.arrays.items()}
        checksums = {name: hashlib.md5(content).hexdigest() for name, content in self.files.items()}

        class MiniMNIST(MNIST):
            md5 = checksums

        self.source, self.md5 = MiniMNIST, checksums

    def write(self, root: Path) -> Path:
        folder = root / "mnist"
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder
