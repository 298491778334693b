"""The user's own text: what a document is, where it is cut, what is counted, and that memory stays constant."""

from __future__ import annotations

import hashlib
import json
import tracemalloc

import pytest

from frugal.data import text_file
from frugal.data.cleaning import Cleaning
from frugal.data.corpus import open_corpus
from frugal.data.text_file import TextFile, file_sha256
from frugal.errors import DataError, SettingsError
from frugal.tokenizer.bytes import Bytes


def texts(source: TextFile, split: str) -> list[str]:
    """Documents put together."""
    whole, held = [], ""
    for piece in source.documents(split):
        held += piece.text
        if piece.last:
            whole.append(held)
            held = ""
    assert not held
    return whole


def written(tmp_path, content: bytes, name: str = "my.txt") -> str:
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)


def jsonl(*records) -> bytes:
    return b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records)


# --------------------------------------------------------------------------------------------------------- documents
def test_a_file_is_cut_at_the_line_end_after_the_fraction(tmp_path):
    lines = [f"line {i}\n" for i in range(10)]  # 7 bytes each
    source = TextFile(written(tmp_path, "".join(lines).encode()), test_fraction=0.25)
    source.prepare()
    assert texts(source, "train") == ["".join(lines[:8])]  # int(70 * 0.75) = 52, within the 8th line
    assert texts(source, "test") == ["".join(lines[8:])]
    assert texts(TextFile(source.path.as_posix(), test_fraction=0.3), "train") == ["".join(lines[:7])]  # exactly there


def test_lines_are_documents_where_asked_for(tmp_path):
    path = written(tmp_path, b"one\r\ntwo\n\n \t\nthree\nfour\nlast")
    source = TextFile(path, documents="line", test_fraction=0.1)
    assert texts(source, "train") == ["one", "two", "three", "four"] and texts(source, "test") == ["last"]


def test_blank_lines_stand_between_documents_where_asked_for(tmp_path):
    path = written(tmp_path, b"\n\none\none more\n\n \t\ntwo\r\n\r\nthree\n\nfour, a\nfour, b\n")
    source = TextFile(path, documents="blank_line", test_fraction=0.3)
    # int(54 * 0.7) = 37 lies in "three": the next blank line is after it
    assert texts(source, "train") == ["one\none more", "two", "three"]
    assert texts(source, "test") == ["four, a\nfour, b"]


@pytest.mark.parametrize("documents", ["file", "line", "blank_line"])
def test_pieces_give_the_same_documents_for_any_size_of_chunk(tmp_path, monkeypatch, documents):
    text = "ein Stück\n\nzwei\r\n\n" + "Übermäßig €lang 🎈" * 9 + "\r\n" + "x\n" * 9 + "\n \nend\n"
    path = written(tmp_path, text.encode())
    wanted = [texts(TextFile(path, documents=documents), split) for split in ("train", "test")]
    for size in (1, 2, 3, 7, 16, 64):
        monkeypatch.setattr(text_file, "CHUNK", size)
        source = TextFile(path, documents=documents)
        assert [texts(source, split) for split in ("train", "test")] == wanted
        assert source.dropped == {}
        if documents == "file":
            pieces = [piece.text for piece in source.documents("train")]
            assert len(pieces) > 4 and not any(piece.endswith("\r") for piece in pieces)
    if documents == "file":
        assert "".join(wanted[0] + wanted[1]) == text


def test_a_single_line_is_cut_between_two_characters(tmp_path):
    source = TextFile(written(tmp_path, ("ä" * 10).encode()), test_fraction=0.25)
    assert texts(source, "train") == ["ä" * 8] and texts(source, "test") == ["ä" * 2]  # 15 is within the 8th


def test_a_cut_without_a_line_end_after_it_goes_before(tmp_path):
    source = TextFile(written(tmp_path, b"short\n" + b"x" * 94), test_fraction=0.05)
    assert texts(source, "train") == ["short\n"] and texts(source, "test") == ["x" * 94]


# ------------------------------------------------------------------------------------------------------------- jsonl
def test_broken_lines_of_a_jsonl_are_counted_and_left_out(tmp_path):
    good = [{"text": f"document {i}", "id": i} for i in range(8)]
    bad = [b"{broken\n", b"\n", {"body": "no text"}, {"text": 5}, ["text"], {"text": "  "}, b'{"text": "\xff!"}\n']
    source = TextFile(written(tmp_path, b"\xef\xbb\xbf" + jsonl(*good, *bad, {"text": "last"}), "my.jsonl"))
    assert texts(source, "train") == [*(record["text"] for record in good), "!"]
    assert texts(source, "test") == ["last"]
    counted = {
        "byte_order_marks": 1,
        "broken_lines": 1,
        "empty_lines": 1,
        "lines_without_text": 3,
        "empty_texts": 1,
        "undecodable_bytes": 1,
    }
    assert source.dropped == counted
    assert len(texts(source, "train")) == 9 and source.dropped == counted  # reading again counts nothing twice


def test_a_jsonl_has_its_text_under_any_key_and_may_hold_line_ends(tmp_path):
    records = [{"body": "a\nb\ud800"}, {"body": "c" * 10}]
    source = TextFile(written(tmp_path, jsonl(*records), "my.JSONL"), key="body", test_fraction=0.4)
    assert texts(source, "train") == ["a\nb"] and source.dropped == {"half_characters": 1}
    assert texts(source, "test") == ["c" * 10]


def test_a_jsonl_of_one_line_is_refused(tmp_path):
    with pytest.raises(DataError, match="a single line"):
        TextFile(written(tmp_path, jsonl({"text": "x"}), "my.jsonl")).prepare()


# ------------------------------------------------------------------------------------------------------------ folders
def test_of_ten_files_the_last_are_for_testing(tmp_path):
    (tmp_path / "deep").mkdir()
    for i in range(10):
        (tmp_path / "deep" / f"{i}.txt").write_text(f"file {i}")
    (tmp_path / "a.md").write_text("markdown")
    (tmp_path / "a.py").write_text("no text")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    source = TextFile(str(tmp_path), test_fraction=0.2)
    assert texts(source, "train") == ["markdown", *(f"file {i}" for i in range(8))]
    assert texts(source, "test") == ["file 8", "file 9"]


def test_of_fewer_files_the_last_bytes_are_for_testing(tmp_path):
    (tmp_path / "a.txt").write_text("a\n" * 10)
    (tmp_path / "b.jsonl").write_bytes(jsonl({"text": "b"}, {"text": "c"}))  # 14 bytes a line
    (tmp_path / "c.txt").write_text("d")
    for fraction, train, test in (
        (0.7, ["a\n" * 7], ["a\n" * 3, "b", "c", "d"]),  # int(49 * 0.3) = 14, the begin of a line
        (0.5, ["a\n" * 10, "b"], ["c", "d"]),
        (0.01, ["a\n" * 10, "b", "c"], ["d"]),
    ):
        source = TextFile(str(tmp_path), test_fraction=fraction)
        assert (texts(source, "train"), texts(source, "test")) == (train, test)


# ------------------------------------------------------------------------------------------------- what is no text
def test_bytes_that_are_no_utf_8_are_dropped_or_replaced_and_counted(tmp_path):
    path = written(tmp_path, b"\xef\xbb\xbfcaf\xe9 \xff\xfe!\n" * 3 + b"good\n" * 9)
    source = TextFile(path)
    assert texts(source, "train")[0].startswith("caf !\n\ufeffcaf")  # a mark within the text stays
    assert source.dropped == {"byte_order_marks": 1, "undecodable_bytes": 9}
    assert texts(TextFile(path, undecodable="replace"), "train")[0].startswith("caf\ufffd \ufffd!\n")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        ("text\n".encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04", "zip"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, reason):
    path = written(tmp_path, content)
    with pytest.raises(DataError, match=reason) as caught:
        TextFile(path).prepare()
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_that_can_be_used_is_refused_with_the_counts(tmp_path):
    source = TextFile(written(tmp_path, jsonl({"body": "x"}, {"body": "y"}, b"{\n"), "my.jsonl"))
    with pytest.raises(DataError, match=r"train split \(2 lines without text\)"):
        list(source.documents("train"))
    blank = TextFile(written(tmp_path, b" \n" * 50), documents="line")
    with pytest.raises(DataError, match="no text that can be used for the test split;"):
        list(blank.documents("test"))


def test_a_missing_path_is_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"data\.source\.path=.*nowhere: there is no such file or folder"):
        TextFile(str(tmp_path / "nowhere")).prepare()
    with pytest.raises(DataError, match=r"data\.source\.path=.*: a folder without a \.txt"):
        TextFile(str(tmp_path)).prepare()
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, b"a\nb\n")
    assert texts(TextFile("~/my.txt"), "test") == ["b\n"]


@pytest.mark.parametrize(
    "bad",
    [{"path": ""}, {"documents": "page"}, {"undecodable": "guess"}, {"test_fraction": 0.0}, {"test_fraction": 1.0}],
)
def test_settings_without_meaning_are_refused(bad):
    with pytest.raises(SettingsError, match=rf"data\.source\.{next(iter(bad))}"):
        TextFile(**{"path": "my.txt"} | bad)


# ----------------------------------------------------------------------------------------------- identity and memory
def test_identity_follows_content_and_settings_not_the_place(tmp_path):
    path = written(tmp_path, b"a\nb\nc\n")
    other = written(tmp_path, b"a\nb\nc\n", "other.txt")
    first = TextFile(path).sha256()
    assert TextFile(other).sha256() == first
    assert TextFile(path, test_fraction=0.5).sha256() != first != TextFile(path, documents="line").sha256()
    (tmp_path / "other.txt").write_bytes(b"a\nb\nd\n")
    assert TextFile(other).sha256() != first
    assert file_sha256(tmp_path / "my.txt") == hashlib.sha256(b"a\nb\nc\n").hexdigest()


@pytest.mark.parametrize("documents", ["file", "blank_line"])
def test_memory_stays_constant(tmp_path, monkeypatch, documents):
    monkeypatch.setattr(text_file, "CHUNK", 1 << 16)
    path = tmp_path / "large.txt"
    with open(path, "wb") as file:
        for _ in range(8):
            file.write(b"some words of a line " * 50_000 + b"\n")  # 8 MB in all, one paragraph, long lines
    source = TextFile(str(path), documents=documents)
    tracemalloc.start()
    try:
        size = sum(len(piece.text) for split in source.splits for piece in source.documents(split))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 0.99 * path.stat().st_size and peak < 2 << 20


@pytest.mark.parametrize("kind", ["line", "blank_line", "jsonl"])
def test_documents_that_a_cut_puts_on_both_sides_are_not_tested_on(tmp_path, kind):
    said = [f"this was said {i % 45}" for i in range(50)] + ["\u00e4 new one"]
    end = "\n\n" if kind == "blank_line" else "\n"
    lines = [json.dumps({"text": text}) for text in said] if kind == "jsonl" else said
    path = written(
        tmp_path, "".join(line + end for line in lines).encode(), "my.jsonl" if kind == "jsonl" else "my.txt"
    )
    source = TextFile(path, documents="file" if kind == "jsonl" else kind, test_fraction=0.1)
    assert len(texts(source, "test")) > 4
    corpus = open_corpus(source, Cleaning(), Bytes(separator=True), tmp_path / "cache", 0.1)
    told = bytes(b if b < 256 else 10 for b in corpus.splits["test"].array.tolist()).decode()
    assert told == "\u00e4 new one\n"
    assert corpus.figures()["cleaning"]["test"]["duplicates_across_splits"] == len(texts(source, "test")) - 1
