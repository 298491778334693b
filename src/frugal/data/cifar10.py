"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images in colour, 32x32, of ten classes.

The binary version of its archive: the usual one for Python is pickled, and a pickle runs what it likes when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from frugal.data.archive import read_members
from frugal.data.fetch import Fetched
from frugal.data.source import ArraySource, Split
from frugal.errors import DataError

ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"  # in the archive
SHAPE = (3, 32, 32)
ROW = 1 + 3 * 32 * 32  # bytes: the class, then red, green and blue, row by row


class CIFAR10(Fetched, ArraySource):
    """Images (N, 3, 32, 32) of 0 to 255, in the data set's own two splits; `root`/cifar10 holds the archive, packed.

    `mirrors` are base addresses that are tried in turn where it is missing; None: its author's.
    """

    task: ClassVar[str] = "classification"
    classes = 10
    # batches.meta.txt in the archive
    class_names: list[str] | None = [
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ]  # fmt: skip
    folder: ClassVar[str] = "cifar10"
    checksums: ClassVar[Mapping[str, str]] = {ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530"}
    public_mirrors: ClassVar[tuple[str, ...]] = ("https://www.cs.toronto.edu/~kriz/",)
    batch: ClassVar[int] = 10_000  # images in each of its six files

    def load(self) -> dict[str, Split]:
        members = {
            "train": [f"{FOLDER}/data_batch_{i}.bin" for i in range(1, 6)],
            "test": [f"{FOLDER}/test_batch.bin"],
        }
        size = self.batch * ROW
        archive = self.read(ARCHIVE)
        try:
            files = read_members(archive, {name: size for names in members.values() for name in names})
            short = [name for name, content in files.items() if len(content) != size]
            if short:
                raise ValueError(f"{short[0]} in it has {len(files[short[0]]):,} bytes, not {size:,}")
            del archive  # 170 MB that the arrays need not lie beside
            return {split: _split([files.pop(name) for name in names]) for split, names in members.items()}
        except ValueError as error:
            raise DataError(f"{self.path(ARCHIVE)}: not the binary version of CIFAR-10 ({error})") from None


def _split(files: list[bytes]) -> Split:
    rows = [np.frombuffer(content, dtype=np.uint8).reshape(-1, ROW) for content in files]
    labels = np.concatenate([part[:, 0] for part in rows]).astype(np.int64)
    if labels.max() > 9:
        raise ValueError(f"an image's class is {labels.max()}")
    return Split(np.concatenate([part[:, 1:] for part in rows]).reshape(-1, *SHAPE), labels)
