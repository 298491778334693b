"""Text that goes on from a prompt, and classes of texts."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from frugal import settings
from frugal.artefact import Description, crafted, text_parts
from frugal.data import csv_text
from frugal.data.text_datamodule import encode, pad
from frugal.errors import DataError, RunError, SettingsError
from frugal.models.generate import generate
from frugal.paths import shown
from frugal.predict.output import Rows, output
from frugal.tokenizer.base import Tokenizer

SEEDS = 2**63
NONE = "\x1f"  # for a delimiter, of a table that has one column only


# ------------------------------------------------------------------------------------------------------ language models
def go_on(cfg: DictConfig, network: nn.Module, description: Description, path: Path) -> None:
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
    with output(cfg.output) as write:
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
            write((prompt or "") + tokenizer.decode(shown_ids) + "\n")
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


# ---------------------------------------------------------------------------------------------------------- classifiers
def classify(cfg: DictConfig, network: nn.Module, description: Description, path: Path) -> None:
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
            ids = [encode(text, tokenizer, description.dims["max_length"]) for text in cleaned]
            found |= zip(part, network(pad(ids)).float().softmax(dim=1).tolist(), strict=True)
    seconds = time.perf_counter() - started
    classes = len(found[full[0]])
    names = description.state.get("class_names") or [str(label) for label in range(classes)]
    if len(names) != classes:
        raise RunError(f"{path}: describes itself wrongly ({len(names)} names of classes for {classes} classes)")
    with output(cfg.output) as write:
        rows = Rows(cfg, write, "text", names, errors=False)
        errors = [rows.add(text, found.get(i)) for i, text in enumerate(texts)]
        rows.flush()
        failed = sum(error is not None for error in errors)
        if failed == len(full):
            raise RunError(f"{path}: {next(filter(None, errors))} for each text")
    if len(full) < len(texts):
        print(f"frugal: {len(texts) - len(full):,} empty text(s) without a label", file=sys.stderr)
    if failed:
        print(f"frugal: {failed:,} text(s) without a label: {next(filter(None, errors))}", file=sys.stderr)
    print(
        f"frugal: {len(full):,} texts in {seconds:.2f} s, {len(full) / max(seconds, 1e-9):,.0f} samples/s "
        f"(batch {size}, {torch.get_num_threads()} thread(s), {shown(path)})",
        file=sys.stderr,
    )


# ------------------------------------------------------------------------------------------------------ a table's texts
def _texts(cfg: DictConfig) -> Iterator[str]:
    """Texts of a table's column, or the lines of anything else; those that are empty too."""
    suffix = Path(cfg.input).suffix.lower()
    content = _read(cfg.input)
    if suffix not in (".csv", ".tsv"):
        yield from (line.rstrip("\r") for line in content.removesuffix("\n").split("\n"))
        return
    lines = io.StringIO(content, newline="").readlines()  # with \n, \r\n or \r
    column, delimiter = _column(lines, cfg, suffix == ".tsv")
    yield from (
        row[column] if column < len(row) else "" for row in islice(csv_text.rows(lines, delimiter, '"'), 1, None)
    )


def _column(lines: list[str], cfg: DictConfig, tabs: bool) -> tuple[int, str]:
    """Where the column of texts stands, and the delimiter by which its name is in the first row: of several, that
    which cuts most rows into the same number of columns."""
    best, found = -1.0, None
    headers: list[list[str]] = []
    for delimiter in (NONE, *sorted(csv_text.DELIMITERS, key=lambda mark: mark != "\t" if tabs else 0)):
        rows = list(islice(csv_text.rows(lines, delimiter, '"'), csv_text.SNIFFED))
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


def _read(name: str) -> str:
    if name == "-":
        return sys.stdin.buffer.read().decode("utf-8-sig", errors="replace")
    try:
        return Path(name).expanduser().read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"input={name}: {error.strerror}") from None
