"""California housing (Pace and Barry 1997): the median house value of 20,640 census blocks of 1990, and eight features.

The features and the order of rows are those of scikit-learn's `fetch_california_housing`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from frugal.data.archive import read_members
from frugal.data.fetch import Fetched
from frugal.data.source import ArraySource, Split
from frugal.data.split import cut_test
from frugal.errors import DataError, SettingsError

ARCHIVE = "cal_housing.tgz"
MEMBER = "CaliforniaHousing/cal_housing.data"
LARGEST = 4 << 20  # bytes of that file, which has 2 MB
STORED = 9  # columns: longitude, latitude, age, rooms, bedrooms, population, households, income, value in dollars


class CaliforniaHousing(Fetched, ArraySource):
    """Features (N, 8); the target is a block's median house value in 100,000 dollars, at most 5.00001.

    The share `test_fraction` of the blocks is for testing, drawn with `split_seed`. `root`/california_housing holds the
    archive; `mirrors` are base addresses that are tried in turn where it is missing, None: two public ones.
    """

    task: ClassVar[str] = "regression"
    own_splits = False
    feature_names: list[str] | None = [
        "MedInc", "HouseAge", "AveRooms", "AveBedrms", "Population", "AveOccup", "Latitude", "Longitude",
    ]  # fmt: skip
    folder: ClassVar[str] = "california_housing"
    checksums: ClassVar[Mapping[str, str]] = {
        ARCHIVE: "aaa5c9a6afe2225cc2aed2723682ae403280c4a3695a2ddda4ffb5d8215ea681"
    }
    public_mirrors: ClassVar[tuple[str, ...]] = (
        # a store of numbered files: the name that is put behind the # is not sent
        "https://ndownloader.figshare.com/files/5976036#",
        "https://www.dcc.fc.up.pt/~ltorgo/Regression/",
    )

    def __init__(
        self, root: str, mirrors: list[str] | None = None, test_fraction: float = 0.2, split_seed: int = 0
    ) -> None:
        super().__init__(root, mirrors)
        if not 0 < test_fraction < 1:
            raise SettingsError(f"data.source.test_fraction={test_fraction}: it is above 0 and below 1")
        self.test_fraction, self.split_seed = test_fraction, split_seed

    def sha256(self) -> str:
        cut = f"{super().sha256()} test={self.test_fraction} seed={self.split_seed}"
        return hashlib.sha256(cut.encode()).hexdigest()

    def load(self) -> dict[str, Split]:
        try:
            content = read_members(self.read(ARCHIVE), {MEMBER: LARGEST})[MEMBER]
            table = np.array([line.split(b",") for line in content.split()], dtype=np.float64)
            if table.shape[1:] != (STORED,):
                raise ValueError(f"not rows of {STORED} numbers")
        except ValueError as error:
            raise DataError(f"{self.path(ARCHIVE)}: not the archive of California housing ({error})") from None
        longitude, latitude, age, rooms, bedrooms, population, households, income, value = table.T
        features = (
            income, age, rooms / households, bedrooms / households, population, population / households,
            latitude, longitude,
        )  # fmt: skip
        x, y = np.stack(features, axis=1).astype(np.float32), (value / 100_000).astype(np.float32)
        return cut_test(Split(x, y), self.test_fraction, self.split_seed)
