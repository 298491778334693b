"""`frugal predict`: text that goes on from a prompt, classes of texts; from an artefact or a checkpoint."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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


# ---------------------------------------------------------------------------------------------------------- classifiers
def test_lines_of_a_file_are_labelled(tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("a good film\n\na bad film\nGOOD film, 17\n", encoding="utf-8-sig")
    done = frugal("predict", str(run_of("label")), f"input={tmp_path / 'new.txt'}", "batch_size=2")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [(row["text"], row["label"]) for row in rows] == [
        ("a good film", "pos"), ("a bad film", "neg"), ("GOOD film, 17", "pos"),
    ]  # fmt: skip
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    assert "3 texts in" in done.err and "samples/s" in done.err


def test_a_batch_s_size_and_the_file_s_form_change_no_prediction(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(
        'id,say\n1,"a good, good film"\n2,a bad one that is much longer than others\n3,\n'
    )
    common = [str(run_of("label")), f"input={tmp_path / 'new.csv'}", "column=say"]
    assert frugal("predict", *common, f"output={tmp_path / 'out.jsonl'}", "batch_size=1").out == ""
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader(io.StringIO(frugal("predict", *common).out)))
    assert [line["label"] for line in lines] == [row["label"] for row in rows] == ["pos", "neg"]
    for line, row in zip(lines, rows, strict=True):
        assert line["probabilities"][row["label"]] == pytest.approx(float(row["probability"]), abs=2e-6)
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("experiment", "words", "says"),
    [
        ("text", ["generate.token=3"], "generate.token=3: unknown; did you mean generate.tokens?"),
        ("text", ["generate.temperature=-1"], "temperature=-1"),
        ("text", ["generate.top_p=0"], "top_p=0"),
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


def test_what_holds_no_model_of_text_is_refused(tmp_path: Path) -> None:
    assert "name a run" in frugal("predict", "seed=1").error
    assert str(tmp_path / "none") in frugal("predict", str(tmp_path / "none")).error
    assert frugal("train", *SHORT, "trainer.limit_train_batches=1", "run.experiment=images").code == 0
    assert "was trained for classification" in frugal("predict", str(run_of("images"))).error


def test_help_names_every_setting() -> None:
    said = frugal("predict", "--help").out
    for key in ("prompt", "input", "output", "format", "column", "batch_size", "seed", "threads"):
        assert f"{key}=" in said
    for key in ("tokens", "samples", "temperature", "top_k", "top_p", "cache"):
        assert f"generate.{key}=" in said
