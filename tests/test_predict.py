"""`frugal predict`: text that goes on from a prompt, classes of texts; from an artefact or a checkpoint."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import command
import project
from command import frugal
from frugal import artefact
from frugal.models.generate import generate

SIZE = ["model.network.layers=1", "model.network.heads=2", "model.network.width=16"]
SHORT = ["measure=none", "trainer.max_epochs=1", "trainer.threads=1"]
LIMITS = ["trainer.limit_train_batches=30", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with a language model, `logs/text/...`, and a classifier, `logs/label/...`, each trained a little."""
    path = project.make(tmp_path_factory.mktemp("home"))
    rows = "".join(
        f'"a {"good" if i % 2 else "bad"} film, number {i}",{"pos" if i % 2 else "neg"}\n' for i in range(200)
    )
    (path / "reviews.csv").write_text("review,verdict\n" + rows)
    with pytest.MonkeyPatch.context() as patch, command.inside(path, path / "logs", patch):
        text = frugal("train", "data=pydocs", "data.block_size=32", *SIZE, *SHORT, *LIMITS, "run.experiment=text")
        label = frugal(
            "train", "data=csv_text", "data.source.path=reviews.csv", "data.source.text=review", "optim.lr=0.05",
            "data.source.label=verdict", "tokenizer=words", "model=text_cnn", *SHORT,
            "trainer.max_epochs=3", "run.experiment=label",
        )  # fmt: skip
        assert (text.code, label.code) == (0, 0), text.err + label.err
        yield path


@pytest.fixture(autouse=True)
def _inside(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with command.inside(made, made / "logs", monkeypatch):
        yield


def run_of(experiment: str) -> Path:
    (folder,) = command.runs(Path("logs"), experiment)
    return folder


# ------------------------------------------------------------------------------------------------------ language models
def test_text_goes_on_as_the_network_says() -> None:
    run = run_of("text")
    done = frugal("predict", str(run), "prompt=The for", "generate.tokens=20", "seed=3")
    assert done.code == 0 and done.out.startswith("The for")
    network, description = artefact.load(run / "model.safetensors")
    letters = [chr(point) for point in description.state["tokenizer"]["code_points"]]
    prompt = torch.tensor([[letters.index(letter) for letter in "The for"]])
    expected = "".join(letters[int(step)] for step in generate(network, prompt, 20, temperature=0.8, seed=3))
    assert done.out == f"The for{expected}\n"
    assert "20 tokens in" in done.err and "tokens/s (with cache" in done.err


def test_a_seed_is_a_text_and_samples_have_seeds_of_their_own() -> None:
    run = str(run_of("text"))
    one, same, other = (frugal("predict", run, "prompt=A", f"seed={seed}").out for seed in (0, 0, 1))
    assert one == same != other
    both = frugal("predict", run, "prompt=A", "generate.samples=2").out
    assert both == one + other


def test_the_checkpoint_without_a_cache_writes_what_the_artefact_writes_with_one() -> None:
    run = run_of("text")
    greedy = ["prompt=The", "generate.tokens=40", "generate.temperature=0"]
    assert frugal("predict", str(run), *greedy).out == (
        frugal("predict", str(run / "checkpoints" / "last.ckpt"), *greedy, "generate.cache=false").out
    )


def test_a_prompt_is_taken_as_it_is() -> None:
    """Commas, brackets and quotation marks mean something to Hydra, and nothing here."""
    for prompt in ("To be, or not: [that] is {it} = 'x'", '"quoted"', "a\nb", "null and void"):
        done = frugal("predict", str(run_of("text")), f"prompt={prompt}", "generate.tokens=1")
        assert done.out.startswith(prompt), done.err


def test_without_a_prompt_it_begins_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(frugal("predict", str(run_of("text")), "generate.tokens=10").out) >= 10
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"def f")))
    assert frugal("predict", str(run_of("text")), "input=-", "generate.tokens=1").out.startswith("def f")


def test_unknown_signs_are_counted() -> None:
    assert "2 unknown signs in the prompt" in frugal("predict", str(run_of("text")), "prompt=a☃b☃").err


def changed(experiment: str, path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """A copy of a run's artefact that says something else of itself."""
    state, plain = artefact.read(run_of(experiment) / "model.safetensors")
    change(plain)
    save_file(state, path, metadata={"frugal": json.dumps(plain)})
    return str(path)


def without_unknown(plain: dict[str, Any]) -> None:
    """One character more in place of the unknown."""
    state = plain["state"]["tokenizer"]
    state["unknown"], state["code_points"] = False, [*state["code_points"], 0x2603]


def test_a_sign_that_the_tokenizer_refuses_is_the_prompts_fault(tmp_path: Path) -> None:
    path = changed("text", tmp_path / "a.safetensors", without_unknown)
    assert frugal("predict", path, "prompt=a☃", "generate.tokens=1").code == 0
    error = frugal("predict", path, "prompt=a♜b").error
    assert error.startswith("frugal: prompt: holds '♜' (U+265C)") and "tokenizer.unknown" not in error


def test_a_prompt_is_cleaned_as_the_training_text_was() -> None:
    common = [str(run_of("text")), "generate.tokens=20"]
    plain, signs = (frugal("predict", *common, f"prompt={prompt}") for prompt in ("Ae", "A\x01e\x7f"))
    assert signs.out == "A\x01e\x7f" + plain.out[2:] and "unknown" not in signs.err


def test_where_lines_have_no_end_text_begins_after_the_first_known_character(tmp_path: Path) -> None:
    def change(plain: dict[str, Any]) -> None:
        points = plain["state"]["tokenizer"]["code_points"]
        points[points.index(10)] = 0x2603

    path = changed("text", tmp_path / "a.safetensors", change)
    done = frugal("predict", path, "generate.tokens=5", "generate.temperature=0")
    state = artefact.read(Path(path))[1]["state"]["tokenizer"]
    first = chr(state["code_points"][0])
    assert f"the text begins after {first!r}" in done.err
    assert done.out == frugal("predict", path, "generate.tokens=5", "generate.temperature=0", f"prompt={first}").out[1:]


def test_what_has_no_cache_is_not_said_to_use_one() -> None:
    words = ["data=pydocs", "model=ngram", "data.block_size=16", *SHORT, *LIMITS, "run.experiment=counts"]
    assert frugal("train", *words).code == 0
    done = frugal("predict", str(run_of("counts")), "prompt=The", "generate.tokens=40")
    assert "40 tokens in" in done.err and "(without cache" in done.err


def test_the_least_temperature_takes_the_likeliest() -> None:
    common = [str(run_of("text")), "prompt=The", "generate.tokens=20"]
    coldest = frugal("predict", *common, "generate.temperature=1e-45")
    assert coldest.out == frugal("predict", *common, "generate.temperature=0").out


# ---------------------------------------------------------------------------------------------------------- classifiers
def test_lines_of_a_file_are_labelled(tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("a good film\n\na bad film\nGOOD film, 17\n", encoding="utf-8-sig")
    done = frugal("predict", str(run_of("label")), f"input={tmp_path / 'new.txt'}", "batch_size=2")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [(row["text"], row["label"]) for row in rows] == [
        ("a good film", "pos"), ("", ""), ("a bad film", "neg"), ("GOOD film, 17", "pos"),
    ]  # fmt: skip
    assert rows.pop(1)["probability"] == "" and all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    assert "1 empty text(s) without a label" in done.err and "3 texts in" in done.err and "samples/s" in done.err


def test_where_the_network_gives_nan_there_is_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new.txt").write_text("=a good film\n\na bad film\n")
    words = [str(run_of("label")), f"input={tmp_path / 'new.txt'}", "batch_size=1"]
    assert frugal("predict", *words).out.splitlines()[1].startswith("'=a good film,pos,")  # no formula
    softmax = torch.Tensor.softmax
    calls: list[int] = []

    def broken(x: torch.Tensor, dim: int) -> torch.Tensor:  # the first text's
        calls.append(1)
        return softmax(x, dim) * (float("nan") if len(calls) == 1 else 1)

    monkeypatch.setattr(torch.Tensor, "softmax", broken)
    done = frugal("predict", *words, "format=jsonl")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in done.out.splitlines()]
    assert [row["label"] for row in rows] == [None, None, "neg"]
    assert [row.get("error") for row in rows] == ["the network gave NaN", None, None]
    assert done.code == 0 and "1 text(s) without a label: the network gave NaN" in done.err
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: softmax(x, dim) * float("nan"))
    assert "the network gave NaN for each text" in frugal("predict", *words, f"output={tmp_path / 'out.csv'}").error
    assert not (tmp_path / "out.csv").exists()


def test_a_line_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_bytes("a good\x0c film\u2028, bad\r\na bad film".encode())
    done = frugal("predict", str(run_of("label")), f"input={tmp_path / 'new.txt'}", "format=jsonl")
    rows = [json.loads(line) for line in done.out.removesuffix("\n").split("\n")]
    assert [row["text"] for row in rows] == ["a good\x0c film\u2028, bad", "a bad film"]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_tables_are_read_as_training_reads_them(mark: str, tmp_path: Path) -> None:
    """Other delimiters, a quotation mark gone wrong, which costs its line only, and empty rows, which stay in place."""
    rows = ["id{}Say", '1{}"a good\nfilm"', '2{}"a bad film', "{}", "", "3{}good", "4"]
    (tmp_path / "new.csv").write_text("".join(row.format(mark) + "\n" for row in rows))
    done = frugal("predict", str(run_of("label")), f"input={tmp_path / 'new.csv'}", "column=say", "format=jsonl")
    found = [(line["text"], line["label"]) for line in map(json.loads, done.out.splitlines())]
    assert [text.strip() for text, _ in found] == ["a good\nfilm", "a bad film", "", "", "good", ""]
    assert [label for _, label in found] == ["pos", "neg", None, None, "pos", None]
    assert "3 empty text(s) without a label" in done.err


def test_a_table_of_one_column_holds_commas(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text('text\na bad, bad film\n"good; ""good"""\n')
    done = frugal("predict", str(run_of("label")), f"input={tmp_path / 'new.csv'}", "format=jsonl")
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == ["a bad, bad film", 'good; "good"']


def test_a_batch_s_size_and_the_file_s_form_change_no_prediction(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(
        'id,say\n1,"a good, good film"\n2,a bad one that is much longer than others\n3,\n'
    )
    common = [str(run_of("label")), f"input={tmp_path / 'new.csv'}", "column=say"]
    assert frugal("predict", *common, f"output={tmp_path / 'out.jsonl'}", "batch_size=1").out == ""
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader(io.StringIO(frugal("predict", *common).out)))
    assert [line["label"] for line in lines] == ["pos", "neg", None]
    assert [row["label"] for row in rows] == ["pos", "neg", ""]
    for line, row in zip(lines[:2], rows[:2], strict=True):
        assert line["probabilities"][row["label"]] == pytest.approx(float(row["probability"]), abs=2e-6)
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("experiment", "words", "says"),
    [
        ("text", ["generate.token=3"], "generate.token=3: unknown; did you mean generate.tokens?"),
        ("text", ["generate.temperature=-1"], "temperature=-1"),
        ("text", ["generate.top_p=0"], "top_p=0"),
        ("text", ["generate.temperature=inf"], "temperature=inf"),
        ("text", [f"seed={2**63 - 1}", "generate.samples=2"], f"the greatest value is {2**63 - 2}"),
        ("text", ["generate.tokens=0"], "generate.tokens=0: the least value is 1"),
        ("text", ["--prompt", "x"], "--prompt: predict takes KEY=VALUE only"),
        ("label", [], "input=null: name what to classify"),
        ("label", ["input=nothing.txt"], "input=nothing.txt: No such file"),
        ("label", ["input=reviews.csv"], "column=text: reviews.csv has review, verdict; set column=NAME"),
        ("label", ["input=reviews.csv", "column=review", "format=xml"], "format=xml"),
        ("label", ["input=reviews.csv", "column=review", "output=no/such/folder.csv"], "output=no/such/folder.csv: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(experiment: str, words: list[str], says: str) -> None:
    assert says in frugal("predict", str(run_of(experiment)), *words).error


@pytest.mark.parametrize(
    ("experiment", "path", "value", "says"),
    [
        ("text", "state.tokenizer", None, "state.tokenizer is missing"),
        ("text", "state.tokenizer", [1], "state.tokenizer is missing"),
        ("text", "state.tokenizer.code_points", [1, 2, 3], "its tokenizer has 4"),
        ("text", "state.tokenizer.code_points", [-1] * 9, "code_points"),
        ("text", "state.tokenizer.code_points", [9_999_999], "code_points"),
        ("text", "state.tokenizer.code_points", "abc", "code_points"),
        ("text", "state.tokenizer.kind", "BPE", "trained with tokenizer=bpe; set tokenizer=bpe"),
        ("text", "tokenizer._target_", "frugal.data.pydocs.PyDocs", "tokenizer is no Tokenizer"),
        ("text", "preprocess._target_", "frugal.data.preprocess.Preprocess", "preprocess is no Cleaning"),
        ("text", "dims.block_size", "x", "dims.block_size is no number"),
        ("text", "dims.vocabulary", 10**13, "dims.vocabulary is no number"),
        ("text", "model.network.width", 10**9, "holds another network"),
        ("text", "model.network.layers", 10**7, "holds another network"),
        ("text", "model.network.layers", 10**400, "holds another network"),
        ("label", "dims.max_length", 0, "dims.max_length is no number"),
        ("label", "state.class_names", ["a"], "state.class_names has 1 names, dims.classes is 2"),
        ("label", "state.class_names", 5, "state.class_names is no list"),
        ("label", "dims.classes", 2**30, "names"),
        ("label", "state.tokenizer.words", 5, "words are no list"),
    ],
)
def test_what_a_crafted_file_says_is_one_line_and_costs_nothing(
    experiment: str, path: str, value: Any, says: str, tmp_path: Path
) -> None:
    def change(plain: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for key in above:
            plain = plain[key]
        plain[last] = value

    started = time.monotonic()
    words = ["prompt=A"] if experiment == "text" else ["input=reviews.csv", "column=review"]
    assert says in frugal("predict", changed(experiment, tmp_path / "a.safetensors", change), *words).error
    assert time.monotonic() - started < 10


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "name a run" in frugal("predict", "seed=1").error
    assert str(tmp_path / "none") in frugal("predict", str(tmp_path / "none")).error


def test_a_run_that_starts_from_another_tokenizers_says_which_it_was() -> None:
    words = ["data=pydocs", "data.block_size=32", "tokenizer=bytes", *SIZE, *SHORT, *LIMITS]
    said = frugal("train", *words, f"model.init_from={run_of('text')}").error
    assert "trained with tokenizer=characters; set tokenizer=characters" in said


def test_help_names_every_setting() -> None:
    said = frugal("predict", "--help").out
    for key in ("prompt", "input", "output", "format", "column", "batch_size", "seed", "threads"):
        assert f"{key}=" in said
    for key in ("tokens", "samples", "temperature", "top_k", "top_p", "cache"):
        assert f"generate.{key}=" in said
