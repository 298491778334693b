"""Runs on text through the command: the record, the user's own files with what is broken in them, fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import frugal, runs
from frugal import artefact
from frugal.record import Record

pytest_plugins = ("users_home",)

SIZE = ["model.network.layers=2", "model.network.heads=2", "model.network.width=16"]
BLOCKS = ["data.block_size=32", "data.batch_size=8"]
SHORT = ["measure=none", "trainer.max_epochs=1", "trainer.threads=1", "trainer.limit_train_batches=12"]
EVAL = ["trainer.limit_val_batches=2", "trainer.limit_test_batches=2"]
PYDOCS = ["data=pydocs", *BLOCKS, *SIZE, *SHORT, *EVAL]
PROSE = "".join(f"Chapter {i}. It was the {i * i}th day, and nobody had said a word.\n" for i in range(400))


def train(*words: str, experiment: str = "default") -> tuple[Record, Path]:
    done = frugal("train", *words, f"run.experiment={experiment}")
    assert done.code == 0, done.err
    folder = max(runs(Path("../logs"), experiment), key=lambda path: path.stat().st_mtime_ns)
    return Record.read(folder), folder


# ----------------------------------------------------------------------------------------------------------- the record
def test_a_language_models_record(home: Path) -> None:
    record, folder = train(*(w for w in PYDOCS if w != "measure=none"), "measure=quick", "measure.batches=[1]")
    speed, compute, quality = record.throughput, record.compute, record.quality
    assert speed.tokens_per_s == pytest.approx(32 * speed.samples_per_s)
    # 2 layers: 12 d² each, the tied head; and 12 L H d T for attention (Kaplan et al. 2020, appendix of PaLM)
    vocabulary, width, layers = record.data["tokenizer"]["vocabulary"], 16, 2
    per_token = 6 * (12 * layers * width**2 + vocabulary * width) + 12 * layers * width * 32
    assert compute.flops_per_token == per_token
    assert compute.flops_per_step == 8 * 32 * per_token and compute.flops_total == 12 * 8 * 32 * per_token
    assert 0 < compute.mfu < 1
    names = ("loss", "token_accuracy", "perplexity", "bits_per_character", "bits_per_byte")
    assert {f"{stage}/{name}" for stage in ("val", "test") for name in names} <= quality.keys()
    assert quality["test/bits_per_byte"] <= quality["test/bits_per_character"]  # no character is less than a byte
    assert [row.backend for row in record.latency] == ["eager", "prefill", "decode, cached", "decode, uncached"]
    splits = record.data["splits"]
    assert set(splits) == {"train", "val", "test"} and splits["train"]["tokens"] == splits["train"]["characters"]
    assert json.loads((folder / "tokenizer.json").read_text())["code_points"][0] == ord("\n")
    assert sum(record.time.ledger_s.values()) == pytest.approx(record.time.wall_s, rel=0.01)
    shown = frugal("report", str(folder))
    assert "388,149 training tokens" not in shown.out and shown.code == 0
    assert frugal("evaluate", str(folder), "measure=none", *EVAL).code == 0
    (again,) = runs(Path("../logs"), "evaluate")
    evaluated = Record.read(again)
    assert evaluated.quality == {name: value for name, value in quality.items() if name.startswith("test/")}
    assert evaluated.data["tokenizer"] == record.data["tokenizer"]


def test_names_say_what_was_chosen_and_not_what_that_brings(home: Path) -> None:
    record, _ = train(*PYDOCS, "optim=muon")
    assert record.run.name.startswith("pydocs-muon-batch_size8-block_size32")
    assert record.config["choices"]["model"] == "gpt" and record.config["choices"]["tokenizer"] == "characters"


def test_a_corpus_is_encoded_once(home: Path) -> None:
    train(*PYDOCS)
    folders = {path: path.stat().st_mtime_ns for path in Path("../logs/.cache").glob("*/*.tokens")}
    assert len(folders) == 3
    train(*PYDOCS, "seed=1")
    assert {path: path.stat().st_mtime_ns for path in Path("../logs/.cache").glob("*/*.tokens")} == folders


def test_where_the_cache_lies_is_not_what_a_run_is(home: Path, tmp_path: Path) -> None:
    one, _ = train(*PYDOCS)
    other, _ = train(*PYDOCS, f"paths.cache_dir={tmp_path / 'elsewhere'}")
    assert one.run.hash == other.run.hash and list((tmp_path / "elsewhere").glob("*/*.tokens"))


# ------------------------------------------------------------------------------------------------ the user's own files
def test_a_text_file_with_what_is_broken_in_it(home: Path) -> None:
    lines = PROSE.encode().splitlines(keepends=True)
    broken = [b"caf\xe9 \xff and more\n", b"\n", b"a bell \x07 rings\r\n", b"twice the same\n", b"twice the same\n"]
    Path("book.txt").write_bytes(b"\xef\xbb\xbf" + b"".join([*lines[:50], *broken, *lines[50:]]))
    words = ["data=text_file", "data.source.path=book.txt", "data.source.documents=line", "tokenizer=bytes"]
    record, folder = train(*words, *BLOCKS, *SIZE, *SHORT)
    removed, dropped = record.data["cleaning"]["train"], record.data["dropped"]["train"]
    assert removed["duplicates"] == 1 and removed["control_characters"] == 1
    assert sum(dropped.values()) >= 3  # a byte order mark, and two bytes that are no UTF-8
    assert "duplicates 1" in frugal("train", *words, *BLOCKS, *SIZE, *SHORT, "seed=1").out
    assert b"book.txt" not in (folder / "model.safetensors").read_bytes()  # where it lay is not what was learnt
    assert frugal("evaluate", str(folder), "measure=none").code == 0  # and the run beside it still knows


def test_a_table_with_what_is_broken_in_it(home: Path) -> None:
    good = [f'"film {i}, {"good" if i % 2 else "bad"}",{"pos" if i % 2 else "neg"}' for i in range(80)]
    broken = ['"",pos', "only one field", '"two\nlines",neg', "caf\udcff,pos", '"film 1, good",pos']
    table = "\n".join(["text,label", *good[:20], *broken, *good[20:]]) + "\n"
    Path("table.csv").write_bytes(b"\xef\xbb\xbf" + table.encode(errors="surrogateescape"))
    Path("test.csv").write_text("text,label\na good film,pos\na bad film,neg\na film,unheard of\n")
    words = ["data=csv_text", "data.source.path=table.csv", "data.source.test=test.csv", "measure=none"]
    record, folder = train(*words, "trainer.max_epochs=1", "trainer.threads=1")
    data = record.data
    assert data["splits"]["test"]["texts"] == 2 and record.quality["test/macro_f1"] >= 0
    assert data["cleaning"]["duplicates"] == 1
    dropped = " ".join(f"{name}={count}" for name, count in data["dropped"].items())
    assert all(word in dropped for word in ("label", "empty", "columns")), dropped
    assert (folder / "confusion.csv").read_text().splitlines()[0] == "true,neg,pos"
    assert frugal("report", str(folder)).code == 0 and (folder / "confusion.png").is_file()


def test_another_table_with_fewer_classes_is_evaluated_by_their_names(home: Path) -> None:
    kinds = ("bad", "good", "meh")
    rows = [f'"a {kinds[i % 3]} film, number {i}",{kinds[i % 3]}' for i in range(120)]
    Path("three.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    Path("two.csv").write_text("\n".join(["text,label", *(row for row in rows if not row.endswith("bad"))]) + "\n")
    foreign = [f"film {i},{'fine' if i % 2 else 'foul'}" for i in range(30)]
    Path("other.csv").write_text("\n".join(["text,label", *foreign]) + "\n")
    short = ["measure=none", "trainer.max_epochs=3", "trainer.threads=1"]
    record, folder = train("data=csv_text", "data.source.path=three.csv", *short)
    assert record.quality["test/accuracy"] > 0.9
    done = frugal("evaluate", str(folder), "data=csv_text", "data.source.path=two.csv", "measure=none")
    assert done.code == 0, done.err
    (again,) = runs(Path("../logs"), "evaluate")
    assert Record.read(again).quality["test/accuracy"] > 0.9
    assert Record.read(again).data["splits"]["test"]["texts"] == 80  # another table is tested whole
    hint = frugal("evaluate", str(folder), "data.source.path=two.csv").error
    assert "data.source.path=two.csv: name the data's option too, as in data=csv_text" in hint
    table = [line.split(",") for line in (again / "confusion.csv").read_text().splitlines()]
    assert table[0] == ["true", *kinds] and table[1][1:] == ["0", "0", "0"]  # none of them is bad
    words = ["data=csv_text", "data.source.path=other.csv", "measure=none"]
    assert "fine" in frugal("evaluate", str(folder), *words).error
    assert "tokenizer=words: an evaluation takes that" in frugal("evaluate", str(folder), "tokenizer=words").error


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data=text_file", "data.source.path=empty.txt"], "empty.txt"),
        (["data=text_file", "data.source.path=none.txt"], "data.source.path=none.txt"),
        (["data=text_file"], "data.source.path: needs a value"),
        (["data=csv_text", "data.source.path=one.csv"], "one.csv"),
        (["data=csv_text", "data.source.path=one.csv", "data.source.text=body"], "body"),
        (["data=pydocs", "model=simple_net"], "model=simple_net needs data.task to be classification"),
        (["data=pydocs", "tokenizer=none"], "tokenizer=none"),
        (["data=pydocs", "data.documents=pack"], "tokenizer.separator=true"),
        (["data=pydocs", "data.block_size=1000000"], "data.block_size=1000000"),
        (["data=digits", "tokenizer=bytes"], "tokenizer=bytes needs data.task"),
        (["data=pydocs", "preprocess=shifts"], "preprocess=shifts needs data.task"),
        (["data=pydocs", "model.lora.rank=2"], "model.lora.rank=2: adapters of random weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(words: list[str], says: str, home: Path) -> None:
    Path("empty.txt").write_text(" \n\n")
    Path("one.csv").write_text("text,label\na,x\nb,x\nc,x\n")
    assert says in frugal("train", *words, *SHORT).error


# ---------------------------------------------------------------------------------------------------------- fine-tuning
def test_weights_of_another_run_bring_its_tokens(home: Path) -> None:
    _, base = train(*PYDOCS, experiment="base")
    Path("book.txt").write_text(PROSE + "☃" * 40)
    book = ["data=text_file", "data.source.path=book.txt", "tokenizer=characters", *BLOCKS, *SIZE, *SHORT]
    tuned, folder = train(*book, f"model.init_from={base}", "optim.lr=0.01", experiment="tuned")
    fresh, _ = train(*book, experiment="fresh")
    assert tuned.data["tokenizer"] == Record.read(base).data["tokenizer"] != fresh.data["tokenizer"]
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert tuned.data["unknown"]["test"] + tuned.data["unknown"]["train"] == 40


def test_adapters_are_merged_into_a_plain_network(home: Path) -> None:
    _, base = train(*PYDOCS, experiment="base")
    lora = ["model.lora.rank=2", "model.lora.targets=[qkv,out]", "optim.lr=0.05"]
    record, folder = train(*PYDOCS, f"model.init_from={base}", *lora, experiment="lora")
    assert record.techniques["lora"]["trainable_parameters"] == 2 * 2 * ((48 + 16) + (16 + 16))
    before, _ = artefact.read(base / "model.safetensors")
    after, description = artefact.read(folder / "model.safetensors")
    assert before.keys() == after.keys() and description["model"]["lora"] is None
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if name.endswith(("attention.qkv.weight", "attention.out.weight"))}
    # the checkpoint still has them apart, and is the same network
    assert frugal("evaluate", str(folder / "checkpoints" / "last.ckpt"), "measure=none", *EVAL).code == 0
    (again,) = runs(Path("../logs"), "evaluate")
    tested = {name: value for name, value in record.quality.items() if name.startswith("test/")}
    assert Record.read(again).quality == pytest.approx(tested)
    assert Record.read(again).run.name.startswith(folder.name[:20])
