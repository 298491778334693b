"""scikit-learn's 1,797 handwritten digits (UCI Optical Recognition of Handwritten Digits): no network needed."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from frugal.data.embedded import embedded
from frugal.data.source import ArraySource, Split
from frugal.errors import DataError

SAMPLES, PIXELS, BRIGHTEST = 1797, 64, 16


class Digits(ArraySource):
    """Images (N, 1, size, size) of 0 to 255. Every fifth sample of a class, in file order, is for testing.

    `size` 28 is what MNIST's networks take: each of the 8x8 pixels becomes 3x3, with a border of 2. 8 is as recorded.
    """

    task: ClassVar[str] = "classification"
    classes = 10

    def __init__(self, size: Literal[28, 8] = 28) -> None:
        if size not in (28, 8):
            raise DataError(f"data.source.size={size!r}: digits come in size 28 or 8")
        self.size = size

    def sha256(self) -> str:
        identity = hashlib.sha256(self._read())
        identity.update(f"digits size={self.size} test=every-fifth-of-a-class".encode())
        return identity.hexdigest()

    def prepare(self) -> None:
        self._path()

    def load(self) -> dict[str, Split]:
        try:
            text = gzip.decompress(self._read()).decode()
            table = np.array(text.replace("\n", ",").rstrip(",").split(","), dtype=np.float32)
            table = table.reshape(SAMPLES, PIXELS + 1).astype(np.uint8)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise DataError(f"{self._path()}: not scikit-learn's digits ({error}); reinstall scikit-learn") from None
        x, y = self._scale(table[:, :PIXELS]), table[:, PIXELS].astype(np.int64)
        test = np.zeros(SAMPLES, dtype=bool)
        for label in range(self.classes):
            test[np.flatnonzero(y == label)[4::5]] = True
        return {"train": Split(x[~test], y[~test]), "test": Split(x[test], y[test])}

    def _scale(self, pixels: np.ndarray) -> np.ndarray:
        images = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / BRIGHTEST)).astype(np.uint8)
        if self.size == 8:
            return images
        larger = np.kron(images, np.ones((1, 1, 3, 3), dtype=np.uint8))
        return np.pad(larger, ((0, 0), (0, 0), (2, 2), (2, 2)))

    def _read(self) -> bytes:
        return self._path().read_bytes()

    @staticmethod
    def _path() -> Path:
        return embedded("digits.csv.gz", "digits")
