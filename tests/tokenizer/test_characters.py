"""Characters as ids: the order of Unicode, unknown ones, and a state that rebuilds everything."""

from __future__ import annotations

import json

import numpy as np
import pytest

from frugal.errors import DataError
from frugal.tokenizer.characters import Characters

TEXT = "hé!\nho 🎈"


def test_ids_are_in_the_order_of_unicode_with_the_special_ones_last():
    tokenizer = Characters(separator=True)
    assert not tokenizer.fitted and tokenizer.unknown == tokenizer.separator == -1
    tokenizer.fit([TEXT[:3], TEXT[3:]])
    # \n, space, !, h, o, é, balloon, unknown, separator
    assert tokenizer.encode(TEXT).tolist() == [3, 5, 2, 0, 3, 4, 1, 6] and tokenizer.encode(TEXT).dtype == np.int32
    assert (tokenizer.vocabulary, tokenizer.unknown, tokenizer.separator) == (9, 7, 8)
    assert tokenizer.token_bytes().tolist() == [1, 1, 1, 1, 1, 2, 4, 0, 0]
    assert tokenizer.token_characters().tolist() == [1] * 7 + [0, 0]
    assert tokenizer.token_bytes()[tokenizer.encode(TEXT)].sum() == len(TEXT.encode())
    assert tokenizer.encode("").tolist() == []


def test_unknown_characters_have_an_id_and_are_counted():
    tokenizer = Characters()
    tokenizer.fit(["abc"])
    assert tokenizer.encode("a").tolist() == [0] and tokenizer.unknown_count == 0
    assert tokenizer.encode("xaäc").tolist() == [3, 0, 3, 2] and tokenizer.unknown_count == 2
    assert tokenizer.decode([3, 0, 2]) == "\ufffdac"


def test_without_an_id_for_them_unknown_characters_are_refused_by_name():
    tokenizer = Characters(unknown=False)
    tokenizer.fit(["abc"])
    assert tokenizer.vocabulary == 3 and tokenizer.unknown is None
    for text, named in (("abx", "'x' (U+0078)"), ("aä", "'ä' (U+00E4)")):
        with pytest.raises(DataError) as caught:
            tokenizer.encode(text)
        assert named in str(caught.value) and "tokenizer.unknown=true" in str(caught.value)


def test_decoding_leaves_the_separator_out():
    tokenizer = Characters(unknown=False, separator=True)
    tokenizer.fit([TEXT])
    ids = [*tokenizer.encode(TEXT), tokenizer.separator, *tokenizer.encode("oh")]
    assert tokenizer.decode(ids) == TEXT + "oh" and tokenizer.decode(np.array(ids)) == TEXT + "oh"
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("options", [{}, {"unknown": False}, {"separator": True}])
def test_the_state_is_json_and_rebuilds_the_tokenizer(options):
    tokenizer = Characters(**options)
    tokenizer.fit([TEXT, "\ud800"])  # half a character, as broken JSON can bring
    other = Characters()
    other.load_state_dict(json.loads(json.dumps(tokenizer.state_dict())))
    assert other.fitted and other.vocabulary == tokenizer.vocabulary and other.sha256() == tokenizer.sha256()
    assert (other.unknown, other.separator) == (tokenizer.unknown, tokenizer.separator)
    assert other.encode(TEXT + "\ud800").tolist() == tokenizer.encode(TEXT + "\ud800").tolist()
    assert other.decode(other.encode(TEXT)) == TEXT
    different = Characters(**options)
    different.fit([TEXT + "x"])
    assert different.sha256() != tokenizer.sha256() != Characters(unknown=False, separator=True).sha256()


def test_before_fit_there_is_no_vocabulary():
    with pytest.raises(DataError, match="Characters has no vocabulary yet"):
        Characters().encode("a")
