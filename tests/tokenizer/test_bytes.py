"""Bytes as ids: any text, no training."""

from __future__ import annotations

import time

import numpy as np
import pytest

from frugal.tokenizer.bytes import Bytes

TEXT = "hé €🎈\n"


def test_ids_are_the_bytes_of_utf_8():
    tokenizer = Bytes()
    assert tokenizer.fitted and (tokenizer.vocabulary, tokenizer.separator, tokenizer.unknown) == (256, None, None)
    assert tokenizer.encode(TEXT).tolist() == list(TEXT.encode()) and tokenizer.encode(TEXT).dtype == np.int32
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT and tokenizer.encode("").tolist() == []
    assert tokenizer.decode(list("é".encode())[:1]) == "\ufffd"  # half a character
    assert tokenizer.encode("\ud800").tolist() == [ord("?")]


def test_lengths_in_bytes_and_characters_add_up():
    for tokenizer in (Bytes(), Bytes(separator=True)):
        ids = tokenizer.encode(TEXT)
        assert tokenizer.token_bytes()[ids].sum() == 12 and tokenizer.token_characters()[ids].sum() == len(TEXT) == 6
        assert len(tokenizer.token_bytes()) == len(tokenizer.token_characters()) == tokenizer.vocabulary


def test_a_separator_is_no_text():
    tokenizer = Bytes(separator=True)
    assert (tokenizer.vocabulary, tokenizer.separator) == (257, 256)
    assert tokenizer.token_bytes()[256] == tokenizer.token_characters()[256] == 0
    assert tokenizer.decode([104, 256, 105]) == "hi"
    other = Bytes()
    other.load_state_dict(tokenizer.state_dict())
    assert other.separator == 256 and other.sha256() == tokenizer.sha256() != Bytes().sha256()


@pytest.mark.parametrize("text", ["plain text, and more of it\n" * 400_000])
def test_large_text_is_encoded_fast(text):
    tokenizer = Bytes()
    begin = time.process_time()
    tokenizer.encode(text)
    assert len(text) / (time.process_time() - begin) > 30e6  # bytes a second; it is some 30 times that
