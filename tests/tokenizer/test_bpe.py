"""Byte-level BPE: deterministic training, any text there and back, GPT-2's files as transformers reads them."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from frugal.errors import DataError, SettingsError

if importlib.util.find_spec("tokenizers") is None:
    pytest.skip("tokenizers not installed: pip install 'frugal-ml[text]'", allow_module_level=True)

from frugal.tokenizer.bpe import BPE

TEXT = "the cat and the hat, the bat and the rat: café!\n  def the():\n\n\treturn 'the'  \n" * 20
STRANGE = "Übermäßig €5 🎈\r\n\0 naïve <|endoftext|> 漢字\n\n\n"


@pytest.fixture(scope="module")
def fitted() -> BPE:
    tokenizer = BPE(vocabulary=280)
    assert tokenizer.vocabulary == 280 and tokenizer.separator == -1 and not tokenizer.fitted
    tokenizer.fit([TEXT])
    return tokenizer


def test_any_text_comes_back_and_merges_make_it_shorter(fitted):
    assert fitted.vocabulary == 280 and fitted.separator == 279 and fitted.unknown is None
    for text in (TEXT, STRANGE, "", " ", "the"):
        ids = fitted.encode(text)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert fitted.decode(ids) == text
        assert fitted.separator not in ids  # a document may hold that text: it ends nothing
    assert len(fitted.encode(" the")) == 1 and len(fitted.encode(TEXT)) < len(TEXT) / 2
    assert fitted.decode([*fitted.encode("the"), fitted.separator]) == "the"
    assert fitted.decode(fitted.encode("a\ud800b")) == "a?b"


def test_lengths_in_bytes_and_characters_add_up(fitted):
    for text in (TEXT, STRANGE):
        ids = fitted.encode(text)
        assert fitted.token_bytes()[ids].sum() == len(text.encode())
        assert fitted.token_characters()[ids].sum() == len(text)
    assert len(fitted.token_bytes()) == len(fitted.token_characters()) == 280
    assert fitted.token_bytes()[279] == fitted.token_characters()[279] == 0
    assert (fitted.token_bytes()[:256] == 1).all() and fitted.token_bytes()[256:279].min() >= 2


def test_the_first_merge_is_the_most_frequent_pair():
    tokenizer = BPE(vocabulary=258)
    tokenizer.fit(["hug " * 10 + "pug " * 5 + "hugs " * 5])  # u g: 20 times, h u: 15
    assert tokenizer.decode([256]) == "ug" and tokenizer.separator == 257
    assert tokenizer.encode("hug").tolist() == [*tokenizer.encode("h"), 256]


def test_fewer_merges_than_asked_for_make_fewer_ids():
    tokenizer = BPE(vocabulary=5000, min_frequency=3)
    tokenizer.fit(["ab ab ab xy xy"])
    assert tokenizer.decode([256]) == "ab" and (tokenizer.vocabulary, tokenizer.separator) == (258, 257)


def test_training_takes_no_more_than_so_many_characters():
    def endless():
        yield "ab " * 10
        yield "xy " * 10
        raise AssertionError("asked for more")

    tokenizer = BPE(vocabulary=280, characters=45)
    tokenizer.fit(endless())
    whole = BPE(vocabulary=280)
    whole.fit(["ab " * 10, "xy " * 5])
    assert tokenizer.sha256() == whole.sha256()


def test_training_is_the_same_in_another_process(fitted):
    code = (
        "import sys; from frugal.tokenizer.bpe import BPE; t = BPE(vocabulary=280); t.fit([sys.stdin.read()]); "
        "print(t.sha256(), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], input=TEXT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [fitted.sha256(), "False"]


def test_the_state_is_json_and_rebuilds_the_tokenizer(fitted):
    other = BPE()
    other.load_state_dict(json.loads(json.dumps(fitted.state_dict())))
    for same in (other, copy.deepcopy(fitted)):
        assert same.fitted and same.vocabulary == 280 and same.separator == 279 and same.sha256() == fitted.sha256()
        assert same.encode(STRANGE).tolist() == fitted.encode(STRANGE).tolist()
    with pytest.raises(DataError, match="cannot be read"):
        BPE().load_state_dict({"json": "{}", "separator": 1})


def gpt2_files(folder, separator: bool = True):
    """A vocab.json and a merges.txt in GPT-2's form, as transformers writes them."""
    trained = json.loads(_trained().state_dict()["json"])["model"]
    vocabulary = dict(trained["vocab"])
    if separator:
        vocabulary["<|endoftext|>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in trained["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return folder


def _trained() -> BPE:
    tokenizer = BPE(vocabulary=285)
    tokenizer.fit([TEXT])
    return tokenizer


def test_gpt_2s_files_give_what_transformers_gives(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = gpt2_files(tmp_path)
    theirs = transformers.GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    ours = BPE(files=str(folder))
    assert ours.fitted and ours.vocabulary == len(theirs) == 285
    assert ours.separator == theirs.eos_token_id == 284
    ours.fit(["nothing is trained"])
    for text in (TEXT, STRANGE.replace("<|endoftext|>", "")):
        assert ours.encode(text).tolist() == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
    assert ours.separator not in ours.encode("<|endoftext|>") and ours.token_bytes()[284] == 0


def test_files_without_a_separator_get_one_more_id(tmp_path):
    ours = BPE(files=str(gpt2_files(tmp_path, separator=False)))
    assert (ours.vocabulary, ours.separator) == (285, 284)
    assert ours.sha256() == _trained().sha256()


def test_files_that_are_missing_or_broken_are_named(tmp_path):
    with pytest.raises(DataError, match=r"has no vocab\.json"):
        BPE(files=str(tmp_path)).fit([])
    folder = gpt2_files(tmp_path)
    (folder / "vocab.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.files=.*cannot be read") as caught:
        BPE(files=str(folder)).encode("a")
    assert "\n" not in str(caught.value)


def test_a_state_needs_no_files(tmp_path):
    state = BPE(files=str(gpt2_files(tmp_path))).state_dict()
    moved = BPE(files=str(tmp_path / "moved"))
    moved.load_state_dict(state)
    assert moved.fitted and moved.vocabulary == 285 and moved.decode(moved.encode(STRANGE)) == STRANGE


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("padding", {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": 0}),
        ("truncation", {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5}),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}),
    ],
)
def test_parts_that_a_state_never_has_are_refused(fitted, part, value):
    """Some of them stop the library in the midst of a text, with no exception."""
    state = fitted.state_dict()
    plain = json.loads(state["json"])
    with pytest.raises(DataError, match="cannot be read"):
        BPE().load_state_dict({**state, "json": json.dumps({**plain, part: value})})
    ids = {token: i + 10**9 for token, i in plain["model"]["vocab"].items()}
    strange = {**plain, "model": {**plain["model"], "vocab": ids}}
    with pytest.raises(DataError, match="ids"):
        BPE().load_state_dict({**state, "json": json.dumps(strange)})
    with pytest.raises(ValueError, match="separator"):
        BPE().load_state_dict({**state, "separator": 10**12})


def test_another_kind_s_state_is_refused_by_name(fitted):
    from frugal.tokenizer.characters import Characters

    with pytest.raises(SettingsError, match=r"tokenizer=characters: .* trained with tokenizer=bpe; set tokenizer=bpe"):
        Characters().load_state_dict(fitted.state_dict())


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"frugal-ml\[text\]"):
        BPE()


@pytest.mark.parametrize("bad", [{"vocabulary": 256}, {"min_frequency": 0}, {"characters": 0}])
def test_settings_without_meaning_are_refused(bad):
    with pytest.raises(SettingsError, match=rf"tokenizer\.{next(iter(bad))}="):
        BPE(**bad)
