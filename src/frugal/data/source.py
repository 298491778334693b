"""What a data set is: named splits of plain arrays. Needs numpy only, so that its identity is had without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Split:
    """Samples and their targets, row by row."""

    x: np.ndarray  # images: uint8, (N, C, H, W); features: float32, (N, F)
    y: np.ndarray  # int64 (N,) for classification, float32 for regression

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"a split needs one target a sample: {len(self.x)} samples, {len(self.y)} targets")

    def __len__(self) -> int:
        return len(self.x)


class Source(ABC):
    """A data set with its own splits. Any subclass may be named by `_target_` under `data.source`."""

    __frugal_configurable__: ClassVar[bool] = True

    task: ClassVar[str]  # "classification" or "regression"
    classes: int | None = None  # where it is known without reading the data

    @abstractmethod
    def sha256(self) -> str:
        """Identity of the data as hexadecimal digits; cheap, needs neither torch nor the network."""

    @abstractmethod
    def prepare(self) -> None:
        """Fetch what is missing and verify what is there; may be called again. Raises DataError."""

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """The splits "train" and "test" and, where the data set has one, "val". Raises DataError."""
