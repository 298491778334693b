"""Python's own language reference as running text."""

from __future__ import annotations

import sys

import pytest

from frugal.data.pydocs import PyDocs, _families
from frugal.errors import DataError


def test_each_topic_is_in_one_split_and_about_a_tenth_is_for_testing():
    from pydoc_data.topics import topics

    source = PyDocs()
    source.prepare()
    train, val, test = ([piece.text for piece in source.documents(split)] for split in source.splits)
    assert sorted(train + val + test) == sorted(topics.values())
    assert 0.03 < sum(map(len, test)) / sum(map(len, topics.values())) < 0.2
    assert 0.02 < sum(map(len, val)) / sum(map(len, topics.values())) < 0.2
    assert train == [text for _, text in sorted(topics.items()) if text in set(train)]


def test_no_paragraph_is_in_two_splits():
    def paragraphs(split):
        texts = [piece.text for piece in PyDocs().documents(split)]
        return {" ".join(part.split()) for text in texts for part in text.split("\n\n") if len(part) > 120}

    train, val, test = paragraphs("train"), paragraphs("val"), paragraphs("test")
    assert min(len(test), len(val)) > 10 and not train & test and not train & val and not val & test


def test_topics_that_share_a_paragraph_are_a_family_through_others_too():
    shared, other = "one " * 20 + "end", "two " * 20 + "end"
    topics = {"a": shared, "b": "alone", "c": f"x\n\n{other}", "d": f"{shared}\n \n{other}", "e": "alone"}
    assert sorted(_families(topics)) == [["a", "c", "d"], ["b"], ["e"]]  # short ones are shared by chance


def test_identity_follows_the_content(monkeypatch):
    before = PyDocs().sha256()
    assert before == PyDocs().sha256()
    import pydoc_data.topics

    monkeypatch.setitem(pydoc_data.topics.topics, "assert", "another text")
    assert PyDocs().sha256() != before


def test_a_python_without_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"pydoc_data\.topics"):
        PyDocs().prepare()
