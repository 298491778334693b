"""Text on disk as tokens: encoded once, found again, made anew where damaged; counts; validation from the end."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from data_standins import READS, Documents, Letters

from frugal.data import corpus as module
from frugal.data.cleaning import Cleaning
from frugal.data.corpus import Corpus, open_corpus
from frugal.errors import DataError, SettingsError

TEXTS = [f"text {i} of some words." for i in range(20)]


@pytest.fixture(autouse=True)
def _no_reads() -> None:
    READS.clear()


def made(cache: Path, source: Documents | None = None, val_fraction: float = 0.0, **kwargs) -> tuple[Corpus, Letters]:
    letters = kwargs.pop("tokenizer", None) or Letters(kwargs.pop("separated", True))
    source = source or Documents(train=TEXTS, test=["some text"])
    return open_corpus(source, Cleaning(**kwargs), letters, cache, val_fraction), letters


def told(corpus: Corpus, letters: Letters, split: str) -> str:
    return letters.decode(corpus.splits[split].array.tolist())


def test_tokens_are_the_documents_each_ended_by_the_separator(tmp_path):
    corpus, letters = made(tmp_path, Documents(train=["abc", ["ab", "ba", "c"], "c"], test=["cab"]))
    assert told(corpus, letters, "train") == "abc|abbac|c|" and told(corpus, letters, "test") == "cab|"
    assert corpus.splits["train"].array.dtype == np.uint8
    assert corpus.splits["train"].document_edges().tolist() == [0, 4, 10, 12]
    assert (corpus.folder / "train.tokens").stat().st_size == 12


def test_without_a_separator_documents_are_joined(tmp_path):
    corpus, letters = made(tmp_path, Documents(train=["abc", "ba"]), separated=False)
    assert told(corpus, letters, "train") == "abc\nba"  # each on a line of its own
    assert corpus.splits["train"].document_edges().tolist() == [0, 4, 6]


@pytest.mark.parametrize(("letters", "dtype"), [(255, "uint8"), (256, "uint16")])
def test_the_type_is_the_smallest_that_holds_every_id(tmp_path, letters, dtype):
    text = "".join(chr(0x4E00 + i) for i in range(letters))
    corpus, tokenizer = made(tmp_path, Documents(train=[text]))
    assert tokenizer.vocabulary == letters + 1 and corpus.meta["dtype"] == dtype
    assert corpus.splits["train"].array.tolist() == [*range(letters), letters]


def test_counts_tell_what_was_read_and_what_was_left_out(tmp_path):
    source = Documents(train=["äb", "c\x00", "äb"], val=["bä", "bä"], test=["xyz"])
    corpus, _ = made(tmp_path, source)
    figures = corpus.figures()
    assert figures["splits"] == {
        "train": {"documents": 2, "characters": 3, "bytes": 4, "tokens": 5},
        "val": {"documents": 2, "characters": 4, "bytes": 6, "tokens": 6},  # what is measured on stays whole
        "test": {"documents": 1, "characters": 3, "bytes": 3, "tokens": 1},
    }
    assert figures["cleaning"]["train"]["duplicates"] == 1 and figures["cleaning"]["train"]["control_characters"] == 1
    assert not figures["cleaning"]["test"].get("control_characters")
    assert figures["dropped"] == {name: {"broken": 1} for name in ("train", "val", "test")}
    assert figures["unknown"] == {"train": 0, "val": 0, "test": 3}
    assert source.dropped == {"broken": 0}  # the reader's own count begins at 0 each time


def test_the_second_time_nothing_is_read_and_all_is_the_same(tmp_path):
    first, letters = made(tmp_path, val_fraction=0.2)
    READS.clear()
    again, other = made(tmp_path, val_fraction=0.2)
    assert not READS and other.fits == 0 and other.state_dict() == letters.state_dict()
    assert again.folder == first.folder and again.meta == first.meta
    for name, tokens in first.splits.items():
        assert tokens.array.tolist() == again.splits[name].array.tolist()
    fresh, _ = made(tmp_path / "elsewhere", val_fraction=0.2)
    assert (fresh.folder / "train.tokens").read_bytes() == (first.folder / "train.tokens").read_bytes()
    assert fresh.meta == first.meta and fresh.folder.name == first.folder.name


def test_whatever_shapes_the_tokens_has_a_folder_of_its_own(tmp_path):
    folders = [
        made(tmp_path)[0].folder,
        made(tmp_path, val_fraction=0.2)[0].folder,
        made(tmp_path, min_length=10)[0].folder,
        made(tmp_path, separated=False)[0].folder,
        made(tmp_path, Documents(train=TEXTS[1:], test=["some text"]))[0].folder,
    ]
    assert len(set(folders)) == 5


def test_a_given_tokenizer_is_taken_and_not_fitted(tmp_path):
    made(tmp_path)
    given = Letters()
    given.load_state_dict({"letters": ["t", "e"], "separated": True})
    corpus, _ = made(tmp_path, tokenizer=given)
    assert given.fits == 0 and told(corpus, given, "test") == "etet|"
    assert corpus.meta["tokenizer_sha256"] == given.sha256()
    assert json.loads((corpus.folder / "tokenizer.json").read_text()) == given.state_dict()


@pytest.mark.parametrize("given", [False, True], ids=["fitted", "given"])
@pytest.mark.parametrize(
    "documents",
    [
        ["ab " * 30, "xyz " * 5, "q" * 40, "r"],
        ["ab " * 200],
        [["ab" * 20, "cd" * 20, ""], ["ef", "gh" * 5]],
        ["a", "b"],
    ],
)
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3, 0.6])
def test_the_tokenizer_was_fitted_on_the_training_tokens(tmp_path, documents, fraction, given):
    """By a tokenizer that has fewer tokens where text repeats: cuts by tokens and by characters lie far apart."""

    class Runs(Letters):
        def fit(self, texts):
            self.seen = "".join(texts)
            super().fit(["abcdefghqrxyz -", self.seen])

        def encode(self, text):
            return np.array([self.ids[c] for c in text.replace("ab ", "-")], dtype=np.int32)

        def decode(self, ids):
            return super().decode(ids).replace("-", "ab ").replace("|", "")

    source, fitted = Documents(train=documents), Runs()
    open_corpus(source, Cleaning(), fitted, tmp_path / "one", fraction)
    tokenizer = Runs()
    if given:
        tokenizer.fit([])
    corpus = open_corpus(source, Cleaning(), tokenizer, tmp_path / "other", fraction)
    assert told(corpus, fitted, "train") == fitted.seen
    splits = corpus.figures()["splits"]
    whole = "".join("".join(text) for text in documents)
    assert "".join(told(corpus, fitted, name) for name in splits) == whole
    assert splits["train"]["characters"] == len(fitted.seen)
    assert sum(split["characters"] for split in splits.values()) == len(whole)
    assert sum(split["tokens"] for split in splits.values()) == len(np.fromfile(corpus.folder / "train.tokens", "u1"))
    if len(whole) > 10:
        assert abs(splits["val"]["characters"] / len(whole) - fraction) <= fraction / 2 + 0.05


def test_text_that_the_vocabulary_lacks_is_counted_where_it_stands(tmp_path):
    source = Documents(train=["ab" * 20, "xyab"], test=["z"])
    corpus, _ = made(tmp_path, source, val_fraction=0.1)
    assert corpus.figures()["unknown"] == {"train": 0, "val": 2, "test": 1}


@pytest.mark.parametrize(("own", "left"), [(True, "a a|x|a a|"), (False, "x|")])
def test_documents_of_training_are_not_tested_on_where_the_source_cut_them(tmp_path, own, left):
    source = Documents(train=["a a", "x y"], test=["a a", "x", "a a"])
    source.own_splits = own
    corpus, letters = made(tmp_path, source)
    assert told(corpus, letters, "test") == left and told(corpus, letters, "train") == "a a|x y|"
    assert corpus.figures()["cleaning"]["test"].get("duplicates_across_splits", 0) == (0 if own else 2)
    source.own_splits = False
    corpus, letters = made(tmp_path / "all", source, duplicates=False)
    assert told(corpus, letters, "test") == "a a|x|a a|"


def test_the_tokenizer_knows_no_validation_and_no_test_text(tmp_path):
    source = Documents(train=["aaaaabbbbb" * 9 + "xxxxxxxxba"], test=["z"])
    corpus, letters = made(tmp_path, source, val_fraction=0.1)
    assert letters.letters == ["a", "b"]
    assert told(corpus, letters, "train") == "aaaaabbbbb" * 9 and told(corpus, letters, "val") == "ba|"


# ---------------------------------------------------------------------------------------------------------- validation
def test_validation_is_the_end_from_a_document_on(tmp_path):
    documents = ["abcd", "abdc", "acbd", "acdb", "adbc", "adcb", "bacd", "badc", "bcad"]
    corpus, letters = made(tmp_path, Documents(train=documents), val_fraction=0.3)
    # 36 characters, of which 11 are wanted: a cut at 25 goes on to the document that begins at 28
    assert told(corpus, letters, "val") == "badc|bcad|"
    assert corpus.splits["train"].document_edges().tolist() == list(range(0, 36, 5))
    assert corpus.splits["val"].document_edges().tolist() == [0, 5, 10]
    splits = corpus.figures()["splits"]
    assert splits["train"] == {"documents": 7, "characters": 28, "bytes": 28, "tokens": 35}
    assert splits["val"] == {"documents": 2, "characters": 8, "bytes": 8, "tokens": 10}


def test_a_long_document_is_cut_within(tmp_path):
    corpus, letters = made(tmp_path, Documents(train=["a" * 40 + "bä" * 29 + "b"]), val_fraction=0.1)
    assert len(corpus.splits["val"]) == 11 and told(corpus, letters, "val") == "äbäbäbäbäb|"[-11:]
    splits = corpus.figures()["splits"]
    assert splits["val"]["characters"] == 10 and splits["val"]["bytes"] == 10 + 5
    assert splits["train"]["characters"] == 89 and splits["train"]["bytes"] == 89 + 24
    assert splits["train"]["documents"] == splits["val"]["documents"] == 1


def test_a_validation_split_of_the_source_is_taken_as_it_is(tmp_path):
    corpus, letters = made(tmp_path, Documents(train=TEXTS, val=["some words"]), val_fraction=0.5)
    assert told(corpus, letters, "val") == "some words|"
    assert len(corpus.splits["train"]) == sum(len(text) + 1 for text in TEXTS)


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_no_fraction_is_refused(tmp_path, fraction):
    with pytest.raises(SettingsError, match=r"data\.val_fraction"):
        made(tmp_path, val_fraction=fraction)


# ------------------------------------------------------------------------------------------------------------- damage
def test_a_damaged_corpus_is_made_anew(tmp_path, capsys):
    corpus, _ = made(tmp_path)
    whole = (corpus.folder / "train.tokens").read_bytes()
    for name, content in (("train.tokens", whole[:-1]), ("meta.json", b"{"), ("train.documents", b"")):
        (corpus.folder / name).write_bytes(content)
        again, _ = made(tmp_path)
        assert (again.folder / "train.tokens").read_bytes() == whole and again.meta == corpus.meta
    assert "train.tokens" in capsys.readouterr().out


@pytest.mark.parametrize("summed", [64 << 20, 16])
def test_overwritten_tokens_are_noticed(tmp_path, capsys, monkeypatch, summed):
    monkeypatch.setattr(module, "SUMMED", summed)
    monkeypatch.setattr(module, "ENDS_SUMMED", 8)
    corpus, _ = made(tmp_path)
    for name in ("train.tokens", "train.documents", "tokenizer.json"):
        whole = (corpus.folder / name).read_bytes()
        for place in (3, len(whole) - 2):
            (corpus.folder / name).write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
            assert (made(tmp_path)[0].folder / name).read_bytes() == whole
            assert f"{name}: not what was written; the corpus is made anew" in capsys.readouterr().out


def test_a_damaged_tokenizer_is_fitted_anew(tmp_path):
    _, letters = made(tmp_path)
    (path,) = tmp_path.glob("tokenizer-*.json")
    path.write_text("[")
    assert made(tmp_path)[1].state_dict() == letters.state_dict() == json.loads(path.read_text())


def test_a_maker_that_fails_leaves_nothing_and_a_killed_ones_rest_goes(tmp_path, monkeypatch):
    class Failing(Documents):
        def documents(self, split):
            yield from super().documents(split)
            if split == "test":
                raise DataError("planted")

    given = Letters()
    given.fit(TEXTS)
    with pytest.raises(DataError, match="planted"):
        made(tmp_path, Failing(train=TEXTS, test=["t"]), tokenizer=given)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []
    corpus, _ = made(tmp_path)
    (corpus.folder / "meta.json").unlink()
    (tmp_path / f".{corpus.folder.name}.killed.tmp").mkdir()
    made(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_split_without_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="no text is left in the train split of Documents"):
        made(tmp_path, Documents(train=["", " "], test=["a"]), tokenizer=_fitted())


def _fitted() -> Letters:
    letters = Letters()
    letters.fit(["a"])
    return letters


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"set paths\.cache_dir"):
        made(tmp_path / "file")


# ---------------------------------------------------------------------------------------------------------- processes
def _make_slowly(folder: str, results) -> None:
    original = module._encode

    def counted(*args):
        results.put("made")
        return original(*args)

    module._encode = counted
    corpus, letters = made(Path(folder))
    results.put(told(corpus, letters, "test"))


def test_twins_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    twins = [context.Process(target=_make_slowly, args=(str(tmp_path), results)) for _ in range(3)]
    for twin in twins:
        twin.start()
    for twin in twins:
        twin.join(30)
    found = [results.get(timeout=5) for _ in range(5)]
    assert sorted(found) == ["made", "made", *["some text|"] * 3]  # two splits, once


def test_tokens_travel_to_another_process_as_their_place(tmp_path):
    corpus, _ = made(tmp_path)
    tokens = corpus.splits["train"]
    assert len(tokens.array) == len(tokens)
    pickled = pickle.dumps(tokens)
    assert len(pickled) < 500 and pickle.loads(pickled).array.tolist() == tokens.array.tolist()
    with pytest.raises(ValueError, match="read-only"):
        tokens.array[0] = 1


def test_many_pieces_are_written_as_one_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FLUSH", 7)
    source = Documents(train=["abc" * n for n in range(1, 30)], test=[["ab"] * 50])
    corpus, letters = made(tmp_path, source)
    assert told(corpus, letters, "train") == "".join("abc" * n + "|" for n in range(1, 30))
    assert told(corpus, letters, "test") == "ab" * 50 + "|"
    assert corpus.splits["train"].document_edges()[-1] == len(corpus.splits["train"])
