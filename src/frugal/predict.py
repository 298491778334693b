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
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from frugal import settings
from frugal.compose import compose, quote
from frugal.errors import DataError, RefusedError, RunError, SettingsError
from frugal.paths import find_weights, shown

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from frugal.artefact import Description
    from frugal.tokenizer.base import Tokenizer

SEEDS = 2**63
NONE = "\x1f"  # for a delimiter, of a table that has one column only

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
  frugal predict RUN input=texts.txt                      one text a line, - is standard input
  frugal predict RUN input=table.csv column=review output=labels.csv
    column=text                of a .csv or .tsv file, the column that holds the texts
    output=null                a file; null: stdout
    format=null                csv or jsonl; null: by the name of output, else csv
    batch_size=64
  Each line or row gives one row; that of an empty text has no label.

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

    from frugal.artefact import crafted, text_parts
    from frugal.models.generate import generate

    cleaning, tokenizer = text_parts(description, path)
    prompt, origin = cfg.prompt, "prompt"
    if prompt is None and cfg.input is not None:
        prompt, origin = _read(cfg.input), f"input={cfg.input}"
    ids = _encode(tokenizer, cleaning.text(prompt), origin) if prompt else []
    if not ids:
        ids = [_beginning(tokenizer)]
    elif tokenizer.unknown is not None and tokenizer.unknown in ids:
        print(f"frugal: {ids.count(tokenizer.unknown)} unknown signs in the prompt", file=sys.stderr)
    options = settings.plain(cfg.generate)
    samples, tokens = options.pop("samples"), options.pop("tokens")
    if cfg.seed + samples - 1 >= SEEDS:
        raise SettingsError(f"seed={cfg.seed}: the greatest value is {SEEDS - samples}")
    how = "with" if options["cache"] and hasattr(network, "step") else "without"
    end, block_size = tokenizer.separator, description.dims["block_size"]
    for sample in range(samples):
        started = time.perf_counter()
        seed = int(cfg.seed) + sample
        with crafted(path, "its network cannot go on"):
            steps = generate(
                network, torch.tensor([ids]), tokens, seed=seed, stop=end, block_size=block_size, **options
            )
            made = [int(step) for step in steps]
        seconds = time.perf_counter() - started
        shown_ids = made[:-1] if made and made[-1] == end else made
        _write(cfg.output, (prompt or "") + tokenizer.decode(shown_ids) + "\n", append=sample > 0)
        print(
            f"frugal: {len(made)} tokens in {seconds:.2f} s, {len(made) / max(seconds, 1e-9):,.0f} tokens/s "
            f"({how} cache, {torch.get_num_threads()} thread(s), {shown(path)})",
            file=sys.stderr,
        )


def _encode(tokenizer: Tokenizer, text: str, origin: str) -> list[int]:
    """The ids of a text; what its tokenizer refuses is the text's fault here, and no setting can mend it."""
    try:
        return tokenizer.encode(text).tolist()
    except DataError:
        stranger = next((sign for sign in text if not _known(tokenizer, sign)), text[:1])
        raise DataError(
            f"{origin}: holds {stranger!r} (U+{ord(stranger):04X}), which the training text of this model lacks; "
            "take it out"
        ) from None


def _known(tokenizer: Tokenizer, sign: str) -> bool:
    try:
        ids = tokenizer.encode(sign).tolist()
    except DataError:
        return False
    return bool(ids) and tokenizer.unknown not in ids


def _beginning(tokenizer: Tokenizer) -> int:
    """The token to begin a document after: what ends one, else a line, else the first that is known."""
    if tokenizer.separator is not None:
        return tokenizer.separator
    if _known(tokenizer, "\n"):
        return tokenizer.encode("\n").tolist()[-1]
    first = next((i for i in range(tokenizer.vocabulary) if i != tokenizer.unknown), 0)
    print(f"frugal: without a prompt, the text begins after {tokenizer.decode([first])!r}", file=sys.stderr)
    return first


# ------------------------------------------------------------------------------------------------------- classifiers
def _classify(cfg: DictConfig, network: nn.Module, description: Description, path: Path) -> None:
    import torch

    from frugal.artefact import crafted, text_parts
    from frugal.data.text_datamodule import encode, pad

    if cfg.input is None:
        raise SettingsError("input=null: name what to classify: input=FILE, or input=- for standard input")
    cleaning, tokenizer = text_parts(description, path)
    texts = list(_texts(cfg))
    full = [i for i, text in enumerate(texts) if text.strip()]
    if not full:
        raise DataError(f"{cfg.input}: holds no text")
    found: dict[int, list[float]] = {}
    started, size = time.perf_counter(), int(cfg.batch_size)
    for first in range(0, len(full), size):
        part = full[first : first + size]
        cleaned = [cleaning.text(texts[i]) for i in part]
        if tokenizer.unknown is None:  # it may refuse a text, which is to be named
            for i, text in zip(part, cleaned, strict=True):
                _encode(tokenizer, text, f"input={cfg.input}: text {i + 1}")
        with crafted(path, "its network cannot classify"), torch.inference_mode():
            rows = [encode(text, tokenizer, description.dims["max_length"]) for text in cleaned]
            found |= zip(part, network(pad(rows)).float().softmax(dim=1).tolist(), strict=True)
    seconds = time.perf_counter() - started
    classes = len(found[full[0]])
    names = description.state.get("class_names") or [str(label) for label in range(classes)]
    if len(names) != classes:
        raise RunError(f"{path}: describes itself wrongly ({len(names)} names of classes for {classes} classes)")
    output = Rows(cfg, names)
    for i, text in enumerate(texts):
        output.add(text, found.get(i))
    _write(cfg.output, output.text())
    if len(full) < len(texts):
        print(f"frugal: {len(texts) - len(full):,} empty text(s) without a label", file=sys.stderr)
    print(
        f"frugal: {len(full):,} texts in {seconds:.2f} s, {len(full) / max(seconds, 1e-9):,.0f} samples/s "
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

    def add(self, text: str, probabilities: Sequence[float] | None) -> None:
        """One row; None: without a label."""
        if probabilities is None:
            if self.jsonl:
                self._buffer.write(json.dumps({"text": text, "label": None, "probabilities": None}) + "\n")
            else:
                self._table.writerow([text, "", ""])
            return
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
    """Texts of a table's column, or the lines of anything else; those that are empty too."""
    suffix = Path(cfg.input).suffix.lower()
    content = _read(cfg.input)
    if suffix not in (".csv", ".tsv"):
        yield from (line.rstrip("\r") for line in content.removesuffix("\n").split("\n"))
        return
    lines = io.StringIO(content, newline="").readlines()  # with \n, \r\n or \r
    column, delimiter = _column(lines, cfg, suffix == ".tsv")
    yield from (row[column] if column < len(row) else "" for row in islice(_table(lines, delimiter), 1, None))


def _column(lines: list[str], cfg: DictConfig, tabs: bool) -> tuple[int, str]:
    """Where the column of texts stands, and the delimiter by which its name is in the first row: of several, that
    which cuts most rows into the same number of columns."""
    from frugal.data.csv_text import DELIMITERS, SNIFFED

    best, found = -1.0, None
    headers: list[list[str]] = []
    for delimiter in (NONE, *sorted(DELIMITERS, key=lambda mark: mark != "\t" if tabs else 0)):
        rows = list(islice(_table(lines, delimiter), SNIFFED))
        header = [cell.strip() for cell in rows[0]] if rows else []
        headers.append(header)
        if delimiter != NONE and len(header) < 2:
            continue
        place = next((i for i, cell in enumerate(header) if cell == cfg.column), None)
        if place is None:
            place = next((i for i, cell in enumerate(header) if cell.casefold() == cfg.column.casefold()), None)
        score = sum(len(row) == len(header) for row in rows) / max(1, len(rows))
        if place is not None and score > best:
            best, found = score, (place, delimiter)
    if found is None:
        longest = max(headers, key=len)
        columns = ", ".join(longest) or "no columns"
        raise SettingsError(f"column={cfg.column}: {cfg.input} has {columns}; set column=NAME")
    return found


def _table(lines: list[str], delimiter: str) -> Iterator[list[str]]:
    """The rows of a table as training reads them, the empty ones too. A row whose quotation marks do not add up costs
    its first line only, which is taken as it stands."""
    from frugal.data.csv_text import parse

    before = csv.field_size_limit(2**31 - 1)
    try:
        begin = 0
        while begin < len(lines):
            reader = csv.reader((lines[i] for i in range(begin, len(lines))), delimiter=delimiter, strict=True)
            offset = begin
            try:
                for row in reader:
                    begin = offset + reader.line_num
                    yield row
            except csv.Error:
                yield next(iter(parse(lines[begin : begin + 1], delimiter, '"', Counter())), [])
                begin += 1
    finally:
        csv.field_size_limit(before)


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
        stream.write(content.encode(errors="replace").decode())
        stream.flush()
        return
    try:
        with open(Path(name).expanduser(), "a" if append else "w", encoding="utf-8", errors="replace") as file:
            file.write(content)
    except OSError as error:
        raise DataError(f"output={name}: {error.strerror}") from None
