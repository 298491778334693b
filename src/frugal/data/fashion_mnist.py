"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): 60,000 and 10,000 images of clothes, in MNIST's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from frugal.data.idx import IdxImages


class FashionMNIST(IdxImages):
    """Images (N, 1, 28, 28) of 0 to 255, in the data set's own two splits; files lie in `root`/fashion-mnist.

    `mirrors` are base addresses that are tried in turn for files that are missing; None: its authors' two.
    """

    class_names: list[str] | None = [
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ]  # fmt: skip
    folder: ClassVar[str] = "fashion-mnist"
    checksums: ClassVar[Mapping[str, str]] = {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    }
    public_mirrors: ClassVar[tuple[str, ...]] = (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    )
