"""MNIST (LeCun, Cortes, Burges): the official four files, 60,000 training and 10,000 test images of 28x28."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from frugal.data.idx import IdxImages


class MNIST(IdxImages):
    """Images (N, 1, 28, 28) of 0 to 255, in the data set's own two splits; files lie in `root`/mnist.

    `mirrors` are base addresses that are tried in turn for files that are missing; None: two public ones.
    """

    folder: ClassVar[str] = "mnist"
    checksums: ClassVar[Mapping[str, str]] = {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    }
    public_mirrors: ClassVar[tuple[str, ...]] = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
