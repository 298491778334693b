"""What all sources share: rows and targets belong together, and a `_target_` may name any of them."""

from __future__ import annotations

import numpy as np
import pytest

from frugal.data.digits import Digits
from frugal.data.mnist import MNIST
from frugal.data.source import ArraySource, LabelledTexts, LabelledTextSource, Piece, Source, Split, TextSource
from frugal.settings import instantiate


def test_a_split_needs_a_target_for_each_sample():
    assert len(Split(np.zeros((3, 2)), np.zeros(3))) == 3
    with pytest.raises(ValueError, match="3 samples, 2 targets"):
        Split(np.zeros((3, 2)), np.zeros(2))
    assert len(LabelledTexts(["a", "b"], np.zeros(2, dtype=np.int64))) == 2
    with pytest.raises(ValueError, match="1 texts, 2 labels"):
        LabelledTexts(["a"], np.zeros(2, dtype=np.int64))


def test_a_piece_ends_its_document_unless_it_says_otherwise():
    assert Piece("x").last and not Piece("x", last=False).last


def test_kinds_of_sources_have_their_tasks_and_are_abstract():
    assert TextSource.task == "language_modeling" and LabelledTextSource.task == "text_classification"
    assert issubclass(Digits, ArraySource) and issubclass(MNIST, ArraySource)
    for kind in (Source, ArraySource, TextSource, LabelledTextSource):
        with pytest.raises(TypeError):
            kind()


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "frugal.data.pydocs.PyDocs"},
        {"_target_": "frugal.data.shakespeare.Shakespeare", "root": "nowhere", "mirrors": None},
        {"_target_": "frugal.data.wikitext2.WikiText2", "root": "nowhere", "mirrors": None},
        {"_target_": "frugal.data.sst2.SST2", "root": "nowhere", "mirrors": ["http://127.0.0.1:9/"]},
        {"_target_": "frugal.data.text_file.TextFile", "path": "nowhere.txt", "documents": "line"},
        {"_target_": "frugal.data.csv_text.CSVText", "path": "nowhere.csv", "text": 0, "label": "sentiment"},
    ],
)
def test_every_text_source_can_be_built_from_a_configuration(node):
    assert isinstance(instantiate(node, "data.source"), Source)
