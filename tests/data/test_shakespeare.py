"""Tiny Shakespeare in nanoGPT's split."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from frugal.data.shakespeare import Shakespeare
from frugal.errors import DataError

TEXT = "ROMEO:\nO, é!\n" * 7 + "end"


class Mini(Shakespeare):
    checksums = {"input.txt": hashlib.md5(TEXT.encode()).hexdigest()}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_bytes(TEXT.encode())
    return tmp_path


def test_the_last_tenth_of_the_characters_is_for_testing(root):
    source = Mini(str(root), mirrors=[])
    source.prepare()
    (train,), (test,) = source.documents("train"), source.documents("test")
    assert len(TEXT) == 94 and len(train.text) == 84  # int(94 * 0.9): characters, of which é is two bytes
    assert train.text + test.text == TEXT and train.last and test.last


def test_an_altered_file_is_refused_wherever_it_is_read(root):
    (root / "tinyshakespeare" / "input.txt").write_text("to be or not to be")
    source = Mini(str(root), mirrors=[])
    for read in (source.prepare, lambda: list(source.documents("train"))):
        with pytest.raises(DataError, match="altered or cut short"):
            read()


def test_identity_needs_no_file():
    assert Shakespeare("nowhere").sha256() == Shakespeare("elsewhere", mirrors=[]).sha256() != Mini("nowhere").sha256()


@pytest.mark.data
@pytest.mark.skipif(
    not Path(os.environ.get("FRUGAL_DATA_DIR", "nowhere"), "tinyshakespeare", "input.txt").exists(),
    reason="FRUGAL_DATA_DIR holds no tinyshakespeare/",
)
def test_the_real_file(data_dir):
    source = Shakespeare(str(data_dir), mirrors=[])
    source.prepare()
    (train,), (test,) = source.documents("train"), source.documents("test")
    assert (len(train.text), len(test.text)) == (1_003_854, 111_540)  # the figures of nanoGPT's prepare.py
    assert train.text.startswith("First Citizen:\nBefore we proceed") and test.text.startswith("?\n\nGREMIO:")
