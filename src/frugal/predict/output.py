"""Where predictions go: rows of CSV or JSON lines, to stdout as they come or into a file, whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from frugal.errors import DataError
from frugal.report.text import cell_text
from frugal.report.units import one_line

Write = Callable[[str], None]


@contextlib.contextmanager
def output(name: str | None) -> Iterator[Write]:
    """What writes text to stdout at once, or into the file `name`, which has its name when all is written."""
    if name is None:
        yield _to_stdout
        return
    path = Path(name).expanduser().resolve()
    replaces = path.is_file() or not path.exists()  # and not a pipe, or /dev/stdout
    temporary: Path | None = None
    with _refused(name):
        if replaces:
            handle, made = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            temporary, file = Path(made), os.fdopen(handle, "w", encoding="utf-8", errors="replace")
        else:
            file = open(path, "w", encoding="utf-8", errors="replace")  # noqa: SIM115

    def write(text: str) -> None:
        with _refused(name):
            file.write(text)

    try:
        with contextlib.closing(file):
            yield write
            with _refused(name):
                file.flush()
        if temporary is not None:
            with _refused(name):
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise


def _to_stdout(text: str) -> None:
    sys.stdout.write(text.encode(errors="replace").decode())
    sys.stdout.flush()


@contextlib.contextmanager
def _refused(name: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"output={name}: {error.strerror}") from None


class Rows:
    """Predictions as CSV or as JSON lines, as `format` or the name of `output` asks.

    `key` is the first column: what was predicted for. `names` are those of the classes; None is a regression. In CSV
    a class comes with its probability, in JSON lines with those of all.
    """

    def __init__(self, cfg: DictConfig, write: Write, key: str, names: Sequence[str] | None, errors: bool) -> None:
        named = str(cfg.output or "").rpartition(".")[2].lower()
        self.jsonl = cfg.format == "jsonl" or (cfg.format is None and named in ("jsonl", "json"))
        self.write, self.key, self.names, self.errors = write, key, names, errors
        self._buffer = io.StringIO()
        self._table = csv.writer(self._buffer, lineterminator="\n")
        if not self.jsonl:
            columns = ["prediction"] if names is None else ["label", "probability"]
            self._table.writerow([key, *columns, *(["error"] if errors else [])])

    def add(self, key: str | int, found: Sequence[float] | None, error: str | None = None) -> str | None:
        """One row: of the probabilities of all classes, or of one number. None: nothing could be predicted.

        Returns the row's error: the one given, or that the network gave no number.
        """
        if found is not None and not all(map(math.isfinite, found)):
            error = f"the network gave {'NaN' if any(map(math.isnan, found)) else 'infinity'}"
            found = None
        plain: dict[str, Any]
        cells: list[Any]
        if self.names is None:
            value = None if found is None else found[0]
            plain, cells = {"prediction": value}, ["" if value is None else f"{value:.7g}"]
        elif found is None:
            plain, cells = {"label": None, "probabilities": None}, ["", ""]
        else:
            best = max(range(len(found)), key=found.__getitem__)
            chances = {name: round(p, 6) for name, p in zip(self.names, found, strict=True)}
            plain = {"label": self.names[best], "probabilities": chances}
            cells = [self.names[best], f"{found[best]:.6f}"]
        if self.jsonl:
            plain = {self.key: key, **plain, **({"error": error} if error else {})}
            self._buffer.write(json.dumps(plain, ensure_ascii=False) + "\n")
        else:
            row = [key, *cells, *([error or ""] if self.errors else [])]
            self._table.writerow([_guarded(cell) for cell in row])
        return error

    def flush(self) -> None:
        """Pass on what was added."""
        self.write(self._buffer.getvalue())
        self._buffer.seek(0)
        self._buffer.truncate()


def _guarded(cell: Any) -> Any:
    """A cell that no spreadsheet runs, with the mark of the report's tables before it. A file's name or a text stays as
    it is but for that."""
    return f"'{cell}" if isinstance(cell, str) and cell_text(cell) != one_line(cell) else cell
