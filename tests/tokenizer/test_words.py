"""Words as ids: how text is cut, which words there are, and what is unknown."""

from __future__ import annotations

import json

import pytest

from frugal.errors import SettingsError
from frugal.tokenizer.words import Words


def cut(text: str, lower: bool = True) -> list[str]:
    tokenizer = Words(lower=lower)
    tokenizer.fit([text])
    return tokenizer.decode(tokenizer.encode(text)).split(" ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, O'Neill's!", ["don't", "stop", ",", "o'neill's", "!"]),
        ("they wo n't say it 's , i 've", ["they", "wo", "n't", "say", "it", "'s", ",", "i", "'ve"]),
        ("'quoted' re-made 3.5 a_b", ["'", "quoted", "'", "re", "-", "made", "3", ".", "5", "a", "_", "b"]),
        ("Größe – naïve\n\ttext...", ["größe", "–", "naïve", "text", ".", ".", "."]),
    ],
)
def test_text_is_cut_into_words_and_marks(text, words):
    assert cut(text) == words


def test_the_most_frequent_words_have_the_first_ids_and_the_rest_one_more():
    tokenizer = Words(vocabulary=3)
    assert tokenizer.vocabulary == 3 and not tokenizer.fitted
    tokenizer.fit(["b a b", "C c a b d"])  # b 3, a 2, c 2, d 1: of a and c, a comes first
    assert (tokenizer.vocabulary, tokenizer.unknown, tokenizer.separator) == (3, 2, None)
    assert tokenizer.encode("a B c d").tolist() == [1, 0, 2, 2] and tokenizer.unknown_count == 2
    assert tokenizer.decode([0, 1, 2]) == "b a \ufffd" and tokenizer.encode(" ").tolist() == []
    assert tokenizer.token_bytes().tolist() == [1, 1, 0] and tokenizer.token_characters().tolist() == [1, 1, 0]


def test_rare_words_are_unknown_where_asked_for():
    tokenizer = Words(min_count=2, lower=False)
    tokenizer.fit(["é é A a"])
    assert tokenizer.vocabulary == 2 and tokenizer.encode("é A a").tolist() == [0, 1, 1]
    assert tokenizer.token_bytes().tolist() == [2, 0] and tokenizer.token_characters().tolist() == [1, 0]


def test_the_state_is_json_and_rebuilds_the_tokenizer():
    tokenizer = Words(lower=False)
    tokenizer.fit(["One two Two"])
    other = Words()
    other.load_state_dict(json.loads(json.dumps(tokenizer.state_dict())))
    assert other.encode("two Two one").tolist() == tokenizer.encode("two Two one").tolist()
    assert other.vocabulary == 4 and other.sha256() == tokenizer.sha256()
    lower = Words()
    lower.fit(["One two Two"])
    assert lower.sha256() != tokenizer.sha256()


@pytest.mark.parametrize("bad", [{"vocabulary": 1}, {"min_count": 0}])
def test_settings_without_meaning_are_refused(bad):
    with pytest.raises(SettingsError, match=rf"tokenizer\.{next(iter(bad))}="):
        Words(**bad)
