"""`frugal predict RUN`: what a finished run makes of new input: text that goes on from a prompt, classes for texts.

Works from the artefact or the checkpoint alone, which says how to build the network and holds its tokenizer. What it
says of itself (speed) goes to stderr, so that stdout is the result alone.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from frugal import settings
from frugal.compose import compose, quote
from frugal.errors import DataError, RefusedError, SettingsError
from frugal.paths import find_weights, shown

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from frugal.artefact import Description

HELP = """usage: frugal predict RUN_OR_ARTEFACT [KEY=VALUE ...]

A language model goes on from a prompt:
  frugal predict RUN prompt="To be" generate.tokens=500 generate.temperature=0.7 seed=1
    generate.tokens=256        tokens to generate
    generate.samples=1         continuations
    generate.temperature=0.8   0: always the likeliest token
    generate.top_k=null        draw from the k likeliest tokens only
    generate.top_p=null        draw from the likeliest tokens that hold this much probability
    generate.cache=true        of keys and values; false computes each token from scratch
    seed=0                     of the draws
    prompt=null                null: the beginning of a document; input=FILE (or -) reads the prompt from there

A text classifier labels texts:
  frugal predict RUN input=texts.txt                      one text a line; - is standard input
  frugal predict RUN input=table.csv column=review output=labels.csv
    column=text                of a .csv or .tsv file, the column that holds the texts
    output=null                a file; null: stdout
    format=null                csv or jsonl; null: by the name of output, else csv
    batch_size=64

RUN_OR_ARTEFACT is a run's folder, a .ckpt checkpoint or a .safetensors artefact. threads=N sets torch's threads.
"""


def main(words: Sequence[str]) -> int:
    """The verb. Raises FrugalError for bad input."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return 0
    cfg = _settings(words)
    path = find_weights(Path(str(cfg.source)).expanduser())
    import torch

    from frugal import artefact

    torch.set_num_threads(int(cfg.threads or 1))  # batches are small: a second thread mostly waits
    network, description = artefact.load(path)
    if description.task == "language_modeling":
        _go_on(cfg, network, description, path)
    elif description.task == "text_classification":
        _classify(cfg, network, description, path)
    else:
        raise RefusedError(f"{path}: was trained for {description.task}; predict takes models of text so far")
    return 0


def _settings(words: Sequence[str]) -> DictConfig:
    flag = next((word for word in words if word.startswith("-")), None)
    if flag is not None:
        raise SettingsError(f"{flag}: predict takes KEY=VALUE only, see frugal predict --help")
    given = list(words)
    for index, word in enumerate(given):
        if "=" not in word or Path(word).exists():
            given[index] = f"source={quote(str(Path(word).expanduser().resolve()))}"
            break
    # `prompt=To be, or not`: what a shell gives as one word is one text, whatever Hydra's grammar would read into it
    for index, word in enumerate(given):
        key, _, value = word.partition("=")
        if key in ("prompt", "input", "output", "column") and value != "null":
            given[index] = f"{key}={quote(value)}"
    cfg, _ = compose("predict", given)
    if "source" not in {word.split("=")[0] for word in given}:
        raise SettingsError("predict: name a run, a checkpoint or an artefact: frugal predict RUN [KEY=VALUE ...]")
    settings.check_values(cfg)
    return cfg


# -------------------------------------------------------------------------------------------------- language models
def _go_on(cfg: DictConfig, network: nn.Module, description: Description, path: Path) -> None:
    import torch

    from frugal.models.generate import generate

    tokenizer = settings.instantiate(description.tokenizer, "tokenizer")
    tokenizer.load_state_dict(description.state["tokenizer"])
    prompt = cfg.prompt
    if prompt is None and cfg.input is not None:
        prompt = _read(cfg.input)
    begin = tokenizer.separator
    ids = tokenizer.encode(prompt).tolist() if prompt else [begin] if begin is not None else []
    if not ids:  # no document begins without a separator; a line does
        ids = tokenizer.encode("\n").tolist()
    if tokenizer.unknown is not None and tokenizer.unknown in ids:
        print(f"frugal: {ids.count(tokenizer.unknown)} unknown signs in the prompt", file=sys.stderr)
    options = settings.plain(cfg.generate)
    samples, tokens = options.pop("samples"), options.pop("tokens")
    for sample in range(samples):
        started = time.perf_counter()
        steps = generate(network, torch.tensor([ids]), tokens, seed=int(cfg.seed) + sample, stop=begin, **options)
        made = [int(step) for step in steps]
        seconds = time.perf_counter() - started
        shown_ids = made[:-1] if made and made[-1] == begin else made
        _write(cfg.output, (prompt or "") + tokenizer.decode(shown_ids) + "\n", append=sample > 0)
        print(
            f"frugal: {len(made)} tokens in {seconds:.2f} s, {len(made) / max(seconds, 1e-9):,.0f} tokens/s "
            f"({'with' if options['cache'] else 'without'} cache, {torch.get_num_threads()} thread(s), {shown(path)})",
            file=sys.stderr,
        )


# ------------------------------------------------------------------------------------------------------- classifiers
def _classify(cfg: DictConfig, network: nn.Module, description: Description, path: Path) -> None:
    import torch

    from frugal.data.text_datamodule import encode, pad

    if cfg.input is None:
        raise SettingsError("input=null: name what to classify: input=FILE, or input=- for standard input")
    tokenizer = settings.instantiate(description.tokenizer, "tokenizer")
    tokenizer.load_state_dict(description.state["tokenizer"])
    cleaning = settings.instantiate(description.preprocess, "preprocess")
    names = description.state.get("class_names") or [str(label) for label in range(description.dims["classes"])]
    texts = list(_texts(cfg))
    if not texts:
        raise DataError(f"{cfg.input}: holds no text")
    output = Rows(cfg, names)
    started, size = time.perf_counter(), int(cfg.batch_size)
    with torch.inference_mode():
        for first in range(0, len(texts), size):
            part = texts[first : first + size]
            rows = [encode(cleaning.text(text), tokenizer, description.dims["max_length"]) for text in part]
            probabilities = network(pad(rows)).float().softmax(dim=1)
            for text, row in zip(part, probabilities.tolist(), strict=True):
                output.add(text, row)
    seconds = time.perf_counter() - started
    _write(cfg.output, output.text())
    print(
        f"frugal: {len(texts):,} texts in {seconds:.2f} s, {len(texts) / max(seconds, 1e-9):,.0f} samples/s "
        f"(batch {size}, {torch.get_num_threads()} thread(s), {shown(path)})",
        file=sys.stderr,
    )


class Rows:
    """Predictions as CSV (text, label, probability) or as JSON lines with all probabilities."""

    def __init__(self, cfg: DictConfig, names: Sequence[str]) -> None:
        named = str(cfg.output or "").rpartition(".")[2].lower()
        self.jsonl = cfg.format == "jsonl" or (cfg.format is None and named in ("jsonl", "json"))
        self.names = names
        self._buffer = io.StringIO()
        self._table = csv.writer(self._buffer, lineterminator="\n")
        if not self.jsonl:
            self._table.writerow(["text", "label", "probability"])

    def add(self, text: str, probabilities: Sequence[float]) -> None:
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        if self.jsonl:
            chances = {name: round(p, 6) for name, p in zip(self.names, probabilities, strict=True)}
            row = {"text": text, "label": self.names[best], "probabilities": chances}
            self._buffer.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            self._table.writerow([text, self.names[best], f"{probabilities[best]:.6f}"])

    def text(self) -> str:
        return self._buffer.getvalue()


# --------------------------------------------------------------------------------------------------- input and output
def _texts(cfg: DictConfig) -> Iterator[str]:
    """Texts of a table's column, or the lines of anything else that are not empty."""
    suffix = Path(cfg.input).suffix.lower()
    content = _read(cfg.input)
    if suffix not in (".csv", ".tsv"):
        yield from (line for line in content.splitlines() if line.strip())
        return
    csv.field_size_limit(1 << 30)
    table = csv.DictReader(io.StringIO(content, newline=""), delimiter="\t" if suffix == ".tsv" else ",")
    columns = table.fieldnames or []
    if cfg.column not in columns:
        raise SettingsError(
            f"column={cfg.column}: {cfg.input} has {', '.join(columns) or 'no columns'}; set column=NAME"
        )
    yield from _filled(row.get(cfg.column) for row in table)


def _filled(values: Iterable[Any]) -> Iterator[str]:
    yield from (value for value in values if value and value.strip())


def _read(name: str) -> str:
    if name == "-":
        return sys.stdin.buffer.read().decode("utf-8-sig", errors="replace")
    try:
        return Path(name).expanduser().read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"input={name}: {error.strerror}") from None


def _write(name: str | None, content: str, append: bool = False) -> None:
    if name is None:
        stream: TextIO = sys.stdout
        stream.write(content)
        stream.flush()
        return
    try:
        with open(Path(name).expanduser(), "a" if append else "w", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        raise DataError(f"output={name}: {error.strerror}") from None
