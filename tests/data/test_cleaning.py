"""Cleaning: what each switch removes, what it counts, and that pieces give what whole documents give."""

from __future__ import annotations

import numpy as np
import pytest

from frugal.data import cleaning
from frugal.data.cleaning import Cleaning
from frugal.data.source import Piece
from frugal.errors import SettingsError

OFF = {"unicode": "none", "control": False, "duplicates": False}


def texts(pieces) -> list[str]:
    """Documents put together."""
    whole, held = [], ""
    for piece in pieces:
        held += piece.text
        if piece.last:
            whole.append(held)
            held = ""
    assert not held
    return whole


def removed(clean: Cleaning) -> dict[str, int]:
    return {name: count for name, count in clean.counts.items() if count}


@pytest.mark.parametrize("more", ["", "é"])  # text of ASCII alone takes another way
def test_control_characters_go_but_for_tabs_and_line_ends(more):
    clean = Cleaning(**OFF | {"control": True})
    dirty = f"a\0b\x1b[0m\tc\nd\n\x7f{more}" + "\x86" * bool(more)
    assert texts(clean.documents([Piece(dirty)])) == [f"ab[0m\tc\nd\n{more}"]
    assert removed(clean) == {"control_characters": 3 + bool(more)}


@pytest.mark.parametrize("more", ["", "é"])
def test_line_ends_of_all_kinds_become_one_and_glue_no_words(more):
    clean = Cleaning(**OFF | {"control": True})
    assert clean.text(f"one\rtwo\r\nthree\x0bfour\x0cfive{more}\x85six\r\r\n") == (
        f"one\ntwo\nthree\nfour\nfive{more}\nsix\n\n"
    )
    assert removed(clean) == {"line_ends": 7}


def test_a_line_end_between_two_pieces_is_one():
    clean = Cleaning(**OFF | {"control": True})
    pieces = [Piece("a\r", False), Piece("\nb\r", False), Piece("c", False), Piece("d\r", False), Piece("")]
    assert texts(clean.documents([*pieces, Piece("\ne")])) == ["a\nb\ncd\n", "\ne"]
    assert removed(clean) == {"line_ends": 3}


def test_normal_forms():
    decomposed, wide = "cafe\u0301", "\uff21\ufb01"
    assert texts(Cleaning().documents([Piece(decomposed), Piece(wide)])) == ["café", wide]
    clean = Cleaning(unicode="NFKC")
    assert texts(clean.documents([Piece(decomposed), Piece(wide), Piece("plain é")])) == ["café", "Afi", "plain é"]
    assert removed(clean) == {"normalized": 2}


def test_everything_can_be_switched_off():
    dirty = [Piece("cafe\u0301\0\r\n"), Piece("cafe\u0301\0\r\n")]
    clean = Cleaning(**OFF)
    assert list(clean.documents(dirty)) == dirty and removed(clean) == {}


def test_duplicates_lengths_and_empty_documents_are_dropped_and_counted():
    clean = Cleaning(min_length=3, max_length=5)
    given = ["abc", " \n", "ab", "abcdef", "abc\0", "abcde", ""]
    assert texts(clean.documents(map(Piece, given))) == ["abc", "abcde"]
    assert removed(clean) == {"empty": 2, "too_short": 1, "too_long": 1, "duplicates": 1, "control_characters": 1}


def test_duplicates_are_those_of_the_same_call():
    clean = Cleaning()
    for _ in range(2):
        assert texts(clean.documents([Piece("a"), Piece("b"), Piece("a")])) == ["a", "b"]
    assert removed(clean) == {"duplicates": 2}


def test_documents_in_pieces_are_judged_as_wholes():
    pieces = [Piece("ab", False), Piece("c"), Piece("abc"), Piece("a", False), Piece("b"), Piece("x" * 4, False)]
    clean = Cleaning(min_length=3, max_length=5)
    assert texts(clean.documents([*pieces, Piece("y" * 4, False), Piece("z"), Piece("last")])) == ["abc", "last"]
    assert removed(clean) == {"duplicates": 1, "too_short": 1, "too_long": 1}


def test_a_document_too_long_to_hold_passes_in_pieces_and_says_so(monkeypatch):
    monkeypatch.setattr(cleaning, "BUFFER", 5)
    long = [Piece("abc", False), Piece("def", False), Piece("ghi", False), Piece("")]
    clean = Cleaning()
    out = list(clean.documents([*long, *long, Piece("abc"), Piece("abc")]))
    assert out[:4] == [Piece("abc", False), Piece("def", False), Piece("ghi", False), Piece("")]
    assert texts(out) == ["abcdefghi", "abcdefghi", "abc"]
    assert removed(clean) == {"not_compared": 2, "duplicates": 1}
    assert texts(Cleaning(max_length=7).documents([*long, Piece("abc")])) == ["abcdefghi", "abc"]  # held: 5
    assert texts(Cleaning(max_length=4).documents([*long, Piece("abc")])) == ["abc"]


def test_how_many_documents_are_remembered_is_limited_and_said(monkeypatch):
    monkeypatch.setattr(cleaning, "REMEMBERED", 2)
    clean = Cleaning()
    assert texts(clean.documents(map(Piece, "abccab"))) == ["a", "b", "c", "c"]
    assert removed(clean) == {"duplicates": 2, "not_remembered": 2}


def test_what_is_measured_on_keeps_all_its_documents():
    clean = Cleaning(min_length=2)
    given = [Piece("a"), Piece("a"), Piece("x\0", False), Piece("y")]
    assert texts(clean.documents(given, whole=False)) == ["a", "a", "xy"]
    kept, y = clean.labelled(["a", "a", ""], np.array([0, 0, 1]), whole=False)
    assert kept == ["a", "a", ""] and y.tolist() == [0, 0, 1]


@pytest.mark.parametrize("buffer", [3, 100])
def test_what_stands_in_training_too_is_dropped_of_what_is_measured_on(monkeypatch, buffer):
    monkeypatch.setattr(cleaning, "BUFFER", buffer)
    clean, seen = Cleaning(), set()
    assert texts(clean.documents([Piece("a"), Piece("bcd\0")], seen=seen)) == ["a", "bcd"]
    given = [Piece("x"), Piece("a"), Piece("x"), Piece("b", False), Piece("cd"), Piece("long", False), Piece("er")]
    assert texts(clean.documents(given, whole=False, seen=seen)) == ["x", "x", "longer"]
    assert clean.counts["duplicates_across_splits"] == 2 and clean.counts["not_compared"] == (buffer == 3)
    assert clean.across(["x", "a"], ["a", "b"]).tolist() == [False, True]
    assert clean.counts["duplicates_across_splits"] == 3
    clean = Cleaning(duplicates=False)
    assert texts(clean.documents([Piece("a")], whole=False, seen=seen)) == ["a"]
    assert clean.across(["a"], ["a"]).tolist() == [False] and removed(clean) == {}


def test_rows_are_duplicates_only_with_the_same_label():
    clean = Cleaning(min_length=2)
    kept, y = clean.labelled(["good", "bad", "good", "good\0", "x", " "], np.array([1, 0, 0, 1, 1, 0]))
    assert kept == ["good", "bad", "good"] and y.tolist() == [1, 0, 0]
    assert removed(clean) == {"duplicates": 1, "too_short": 1, "empty": 1, "control_characters": 1}


@pytest.mark.parametrize(
    "bad", [{"unicode": "nfd"}, {"min_length": -1}, {"max_length": 0}, {"min_length": 9, "max_length": 8}]
)
def test_settings_without_meaning_are_refused(bad):
    with pytest.raises(SettingsError, match=rf"preprocess\.{list(bad)[-1]}="):
        Cleaning(**bad)
