"""SST-2's three files: read as they are, never accepted altered."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from frugal.data.sst2 import SST2
from frugal.errors import DataError

FILES = {
    "train.tsv": "a stirring , funny film\t1\nno movement , no yuks\t0\nwith\ta tab\t1",  # the real ones end like this
    "dev.tsv": "one long string of cliches\t0\n",
    "test.tsv": 'quite "good" , i \'d say\t1\n',
}


class Mini(SST2):
    checksums = {name: hashlib.md5(text.encode()).hexdigest() for name, text in FILES.items()}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sst2").mkdir()
    for name, text in FILES.items():
        (tmp_path / "sst2" / name).write_text(text)
    return tmp_path


def test_the_splits_are_as_given(root):
    source = Mini(str(root), mirrors=[])
    source.prepare()
    splits = source.load()
    assert list(splits) == ["train", "val", "test"]
    assert splits["train"].texts == ["a stirring , funny film", "no movement , no yuks", "with\ta tab"]
    assert splits["train"].y.tolist() == [1, 0, 1] and splits["train"].y.dtype == np.int64
    assert splits["val"].y.tolist() == [0] and splits["test"].texts == ['quite "good" , i \'d say']
    assert source.classes == 2 and source.class_names == ["negative", "positive"] and source.dropped == {}


def test_an_altered_file_is_refused(root):
    (root / "sst2" / "dev.tsv").write_text(FILES["dev.tsv"].replace("0", "1"))
    source = Mini(str(root), mirrors=[])
    for read in (source.prepare, source.load):
        with pytest.raises(DataError, match=r"dev\.tsv: altered or cut short"):
            read()


def test_missing_files_without_network_are_named(tmp_path):
    with pytest.raises(DataError, match=r"sst2/train\.tsv") as caught:
        SST2(str(tmp_path), mirrors=["http://127.0.0.1:9/"]).prepare()
    assert "paths.data_dir" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.data
@pytest.mark.skipif(
    not Path(os.environ.get("FRUGAL_DATA_DIR", "nowhere"), "sst2", "train.tsv").exists(),
    reason="FRUGAL_DATA_DIR holds no sst2/",
)
def test_the_real_files(data_dir):
    source = SST2(str(data_dir), mirrors=[])
    source.prepare()
    splits = source.load()
    assert {name: np.bincount(split.y).tolist() for name, split in splits.items()} == {
        "train": [3310, 3610],
        "val": [428, 444],
        "test": [912, 909],
    }
    assert splits["val"].texts[0] == "one long string of cliches" and splits["val"].y[0] == 0
