"""SST-2 (Socher et al. 2013): sentences of film reviews, negative or positive; 6,920 to train on, 872 and 1,821 more.

Whole sentences, not the phrases that GLUE trains on; tokenized, lower case, hyphens taken out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from frugal.data.fetch import Fetched
from frugal.data.source import LabelledTexts, LabelledTextSource
from frugal.errors import DataError

FILES = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}


class SST2(Fetched, LabelledTextSource):
    """The splits as given, from `root`/sst2/{train,dev,test}.tsv; a line is a sentence, a tab, and 0 or 1.

    `mirrors` are base addresses tried in turn for files that are missing, None: a public repository with just these.
    """

    classes = 2
    class_names: list[str] | None = ["negative", "positive"]
    folder: ClassVar[str] = "sst2"
    checksums: ClassVar[Mapping[str, str]] = {
        "train.tsv": "c6150a821d5effe356ec872c2b95855c",
        "dev.tsv": "3f2a9a844576f2b5a7aeeac2ccbab1c7",
        "test.tsv": "f8f49ee1b37ec68b0e8977fbe33761e2",
    }
    public_mirrors: ClassVar[tuple[str, ...]] = (
        "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/"
        "457ffd83de90a9d6d472d8ffc31bbffe40a8b236/data/SST2/",
    )

    def load(self) -> dict[str, LabelledTexts]:
        return {split: self._split(name) for split, name in FILES.items()}

    def _split(self, name: str) -> LabelledTexts:
        path = self.path(name)
        rows = [line.rsplit("\t", 1) for line in self.read(name).decode().split("\n") if line]
        try:
            return LabelledTexts([text for text, _ in rows], np.array([int(label) for _, label in rows], np.int64))
        except ValueError as error:
            raise DataError(f"{path}: not lines of a sentence, a tab and 0 or 1 ({error})") from None
