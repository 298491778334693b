"""scikit-learn's diabetes data (Efron et al. 2004): ten measurements of 442 patients and how far the disease went.

The target is a measure of the disease's progression one year later, 25 to 346. No network needed.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np

from frugal.data.embedded import embedded
from frugal.data.source import ArraySource, Split
from frugal.data.split import cut_test
from frugal.errors import DataError, SettingsError

FEATURES, TARGET = "diabetes_data_raw.csv.gz", "diabetes_target.csv.gz"


class Diabetes(ArraySource):
    """Features (N, 10) in their own units: years, 1 or 2, kg/m2, mmHg, six blood serum measurements.

    Of the samples in the file the share `test_fraction` is for testing, drawn with `split_seed`.
    """

    task: ClassVar[str] = "regression"
    own_splits = False
    feature_names: list[str] | None = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]

    def __init__(self, test_fraction: float = 0.2, split_seed: int = 0) -> None:
        if not 0 < test_fraction < 1:
            raise SettingsError(f"data.source.test_fraction={test_fraction}: it is above 0 and below 1")
        self.test_fraction, self.split_seed = test_fraction, split_seed

    def sha256(self) -> str:
        identity = hashlib.sha256(f"diabetes test={self.test_fraction} seed={self.split_seed}".encode())
        for name in (FEATURES, TARGET):
            identity.update(self._path(name).read_bytes())
        return identity.hexdigest()

    def prepare(self) -> None:
        for name in (FEATURES, TARGET):
            self._path(name)

    def load(self) -> dict[str, Split]:
        x, y = self._table(FEATURES, 10), self._table(TARGET, 1)[:, 0]
        if len(x) != len(y):
            raise DataError(f"{self._path(TARGET)}: {len(y)} targets for {len(x)} samples; reinstall scikit-learn")
        return cut_test(Split(x, y), self.test_fraction, self.split_seed)

    def _table(self, name: str, columns: int) -> np.ndarray:
        path = self._path(name)
        try:
            return np.array(gzip.decompress(path.read_bytes()).split(), dtype=np.float32).reshape(-1, columns)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise DataError(f"{path}: not scikit-learn's diabetes data ({error}); reinstall scikit-learn") from None

    @staticmethod
    def _path(name: str) -> Path:
        return embedded(name, "diabetes")
