"""The user's own table: columns, delimiters, headers and quotes as people write them; what is broken is counted."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from frugal.data.cleaning import Cleaning
from frugal.data.csv_text import CSVText, parse
from frugal.data.text_datamodule import TextDataModule
from frugal.errors import DataError, SettingsError
from frugal.tokenizer.bytes import Bytes


def written(tmp_path, content: str | bytes, name: str = "my.csv") -> str:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(tmp_path / name)


def rows(split, names) -> list[tuple[str, str]]:
    return [(text, names[label]) for text, label in zip(split.texts, split.y, strict=True)]


def all_rows(source: CSVText) -> list[tuple[str, str]]:
    splits = source.load()
    return sorted(row for split in splits.values() for row in rows(split, source.class_names))


PLAIN = "".join(f"text {i},{'ham' if i % 3 else 'spam'}\n" for i in range(12))
PLAIN_ROWS = sorted((f"text {i}", "ham" if i % 3 else "spam") for i in range(12))


def test_a_table_is_split_by_classes_with_its_labels_sorted(tmp_path):
    source = CSVText(written(tmp_path, "text,label\n" + PLAIN), test_fraction=0.25)
    assert source.class_names is None and source.classes is None
    source.prepare()
    splits = source.load()
    assert source.class_names == ["ham", "spam"] and source.classes == 2 and source.dropped == {}
    assert np.bincount(splits["test"].y).tolist() == [2, 1] and np.bincount(splits["train"].y).tolist() == [6, 3]
    assert splits["train"].y.dtype == np.int64
    assert all_rows(source) == PLAIN_ROWS
    again = CSVText(written(tmp_path, "text,label\n" + PLAIN), test_fraction=0.25).load()
    other = CSVText(written(tmp_path, "text,label\n" + PLAIN), test_fraction=0.25, split_seed=1).load()
    assert again["test"].texts == splits["test"].texts != other["test"].texts


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("more", ["", ", and; so"])
def test_delimiter_and_columns_are_found_by_name(tmp_path, delimiter, more):
    lines = [["id", " Label ", "Text"]] + [[str(i), "yn"[i % 2], f"text {i}{more}"] for i in range(9)]
    path = tmp_path / "my.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(lines)
    assert all_rows(CSVText(str(path))) == sorted((line[2], line[1]) for line in lines[1:])
    assert all_rows(CSVText(str(path), delimiter=delimiter, text=2, label=1)) == sorted(
        (line[2], line[1]) for line in lines[1:]
    )


def test_a_tab_beats_commas_in_tsv_files_and_tab_may_be_spelled(tmp_path):
    path = written(tmp_path, "".join(f"a, {i}\t{i % 2}\n" for i in range(6)), "my.tsv")
    wanted = [(f"a, {i}", str(i % 2)) for i in range(6)]
    assert all_rows(CSVText(path, text=0, label=1)) == wanted
    assert all_rows(CSVText(path, text=0, label=1, delimiter="\\t")) == wanted


def test_by_number_a_header_is_known_by_its_label(tmp_path):
    path = written(tmp_path, PLAIN)
    assert all_rows(CSVText(path, text=0, label=1)) == PLAIN_ROWS  # "spam" comes again
    path = written(tmp_path, "comment,class\n" + PLAIN)
    assert all_rows(CSVText(path, text=0, label=1)) == PLAIN_ROWS
    assert ("comment", "class") in all_rows(CSVText(path, text=0, label=1, header=False))
    path = written(tmp_path, "text,7\n" + PLAIN)  # a number is no name of a column
    assert ("text", "7") in all_rows(CSVText(path, text=0, label=1))
    assert ("text", "7") not in all_rows(CSVText(path, text=0, label=1, header=True))


def test_quoted_texts_may_hold_delimiters_line_ends_quotes_and_be_very_long(tmp_path):
    texts = ["a, b", "two\nlines\r\nthree", 'he said "no"', "x" * 300_000, "plain", "'quoted'"]
    path = tmp_path / "my.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([text, "yn"[i % 2]] for i, text in enumerate(texts * 2))])
    limit = csv.field_size_limit()
    assert {text for text, _ in all_rows(CSVText(str(path)))} == set(texts)
    assert csv.field_size_limit() == limit  # that of the process is as it was


def test_what_cannot_be_used_is_counted_and_left_out(tmp_path):
    content = (
        b"\xef\xbb\xbftext,label,note\r\n"
        b"good one,y,\r\n"
        b"\r\n"
        b" , ,\r\n"
        b"only text\r\n"
        b"too,many,cells,here\r\n"
        b"an end too many,n,,\r\n"
        b",y,no text\r\n"
        b'"  ",y,blank text\r\n'
        b"no label, ,\r\n"
        b"caf\xe9,n,\r\n"
        b"good two, y ,\r\n"
        b"good three,n\r\n"
    )
    source = CSVText(written(tmp_path, content), test_fraction=0.3)
    assert all_rows(source) == [
        ("an end too many", "n"),
        ("caf", "n"),
        ("good one", "y"),
        ("good three", "n"),
        ("good two", "y"),
    ]
    counted = {
        "byte_order_marks": 1,
        "undecodable_bytes": 1,
        "empty_rows": 2,
        "too_few_columns": 1,
        "too_many_columns": 1,
        "empty_texts": 2,
        "empty_labels": 1,
    }
    assert source.dropped == counted
    source.load()
    assert source.dropped == counted  # loading again counts nothing twice


def test_a_stray_quotation_mark_costs_its_own_line_only(tmp_path):
    head = "text,label\n"
    never_closed = head + 'a,y\n"b,n\nc,y\nd,n\n'
    source = CSVText(written(tmp_path, never_closed), test_fraction=0.4)
    assert all_rows(source) == [("a", "y"), ("c", "y"), ("d", "n")] and source.dropped == {"too_few_columns": 1}
    closed_by_another = head + 'a,y\n"b,n\nc,y\nd "e" f,n\n"g" h,y\n'
    source = CSVText(written(tmp_path, closed_by_another), test_fraction=0.4)
    assert all_rows(source) == [("a", "y"), ("c", "y"), ('d "e" f', "n"), ("g h", "y")]
    assert source.dropped == {"too_few_columns": 1}
    source = CSVText(written(tmp_path, never_closed), quote=None, test_fraction=0.4)
    assert ('"b', "n") in all_rows(source) and source.dropped == {}


def test_own_files_for_testing_and_validation(tmp_path):
    train = written(tmp_path, "0,bad thing\n1,good thing\n1,fine\n0,poor\n", "train.csv")
    test = written(tmp_path, "1,nice\n2,what\n0,no\n", "test.csv")
    val = written(tmp_path, "0,meh\n", "val.csv")
    source = CSVText(train, test=test, val=val, text=1, label=0)
    splits = source.load()
    assert rows(splits["train"], source.class_names) == [
        ("bad thing", "0"),
        ("good thing", "1"),
        ("fine", "1"),
        ("poor", "0"),
    ]
    assert splits["test"].texts == ["nice", "no"] and splits["test"].y.tolist() == [1, 0]
    assert splits["val"].texts == ["meh"] and source.dropped == {"unknown_labels": 1}


def test_further_files_have_a_header_where_the_first_has_one(tmp_path):
    train = written(tmp_path, "c,t\n" + "x,a\ny,b\n" * 2, "train.csv")
    with_header, without = written(tmp_path, "c,t\nx,e\n", "1.csv"), written(tmp_path, "y,e\n", "2.csv")
    for test, label in ((with_header, 0), (without, 1)):
        split = CSVText(train, test=test, text=1, label=0).load()["test"]
        assert split.texts == ["e"] and split.y.tolist() == [label]


def test_numbers_are_sorted_as_numbers(tmp_path):
    path = written(
        tmp_path, "text,label\n" + "".join(f"t{i},{label}\n" for i, label in enumerate(["10", "9", "-1", "b"] * 3))
    )
    source = CSVText(path)
    source.load()
    assert source.class_names == ["-1", "9", "10", "b"]


@pytest.mark.parametrize(
    ("content", "settings", "reason"),
    [
        ("", {}, "no row"),
        ("\n \n", {}, r"no row \(2 empty rows\)"),
        ("text,label\n", {}, "no row to train on"),
        ("text,label\na,y\nb,y\nc,\n", {}, r"only the label 'y' to train on \(1 empty labels\)"),
        ("words,class\na,y\nb,n\n", {}, r"data\.source\.text=text: .* its first row has 'words', 'class'"),
        ("text,class\na,y\nb,n\n", {}, r"data\.source\.label=label: .* its first row has 'text', 'class'"),
        ("a,y\nb,n\n", {"text": 0, "label": 2}, r"data\.source\.label=2: .* columns are 0 to 1"),
        ("text label\na y\n", {}, r"set data\.source\.delimiter"),
        ("text,label\na,y\nb,n\n", {}, "no row for the test split"),
        ("text,label\n" + "".join(f"a,{i}\n" for i in range(30)), {}, "each of 30 rows has a label of its own"),
        ("text,label\n".encode("utf-16"), {}, "UTF-16"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(tmp_path, content, settings, reason):
    path = written(tmp_path, content)
    with pytest.raises(DataError, match=reason) as caught:
        CSVText(path, **settings).load()
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_are_named_by_their_key(tmp_path):
    for settings, key in (({"path": "no.csv"}, "path"), ({"path": written(tmp_path, PLAIN), "test": "no.csv"}, "test")):
        with pytest.raises(DataError, match=rf"data\.source\.{key}=no\.csv: there is no such file"):
            CSVText(**settings).sha256()


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"path": ""}, "path"),
        ({"delimiter": "::"}, "delimiter"),
        ({"quote": ""}, "quote"),
        ({"delimiter": '"'}, "delimiter"),
        ({"text": "label"}, "label"),
        ({"header": False}, "header"),
        ({"test_fraction": 1.0}, "test_fraction"),
    ],
)
def test_settings_without_meaning_are_refused(bad, key):
    with pytest.raises(SettingsError, match=rf"data\.source\.{key}"):
        CSVText(**{"path": "my.csv"} | bad)


def test_identity_follows_content_and_settings_not_the_place(tmp_path):
    path, other = written(tmp_path, PLAIN), written(tmp_path, PLAIN, "other.csv")
    first = CSVText(path).sha256()
    assert CSVText(other).sha256() == first
    for settings in ({"label": 1}, {"test": other}, {"split_seed": 1}, {"delimiter": ","}):
        assert CSVText(path, **settings).sha256() != first
    assert CSVText(path, test=other, split_seed=1).sha256() == CSVText(path, test=other).sha256()  # nothing is cut
    written(tmp_path, PLAIN + "x,ham\n", "other.csv")
    assert CSVText(other).sha256() != first


def test_many_stray_quotation_marks_are_read_in_time():
    from collections import Counter

    lines = [f'"text {i},y\n' for i in range(2000)]
    assert len(parse(lines, ",", '"', Counter())) == 2000


def test_no_cut_falls_between_copies_of_a_text(tmp_path):
    """Each text twice, with both labels: cleaning keeps both, and both are on one side."""
    lines = "text,label\n" + "".join(f"text {i // 2},{'ham' if i % 2 else 'spam'}\n" for i in range(200))
    path = written(tmp_path, lines)

    def overlap(source: CSVText, duplicates: bool = True) -> tuple[int, TextDataModule]:
        data = TextDataModule(source, Cleaning(duplicates=duplicates), Bytes(), val_fraction=0.2)
        data.setup()
        texts = {name: {split(np.array([i]))[0].numpy().tobytes().rstrip(b"\0") for i in range(len(split))}
                 for name, split in data.splits.items()}  # fmt: skip
        return len((texts["val"] | texts["test"]) & texts["train"]), data

    found, data = overlap(CSVText(path, test_fraction=0.2))
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert found == 0 and sizes == {"train": 128, "val": 32, "test": 40}
    assert "duplicates_across_splits" not in data.figures()["cleaning"]
    assert overlap(CSVText(path, test_fraction=0.2), duplicates=False)[0] == 0
    assert len(overlap(CSVText(path, test=path))[1].splits["test"]) == 200  # the user's own file stays as it is
