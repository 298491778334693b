"""`logger=csv`: one wide `metrics.csv` in the run's folder, a row a step, which survives kills and resumes.

Each row is handed to the operating system when it is logged, not kept in a buffer: a checkpoint may be written at any
moment, and after a kill the run goes on from there, so a row still in memory would be missing for good. It costs
some 15 microseconds a row, and rows come once in `log_every_n_steps` steps.
"""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from frugal.errors import RunError
from frugal.loggers.base import RunLogger
from frugal.record import write_atomic

FILE_NAME = "metrics.csv"


class CSVMetrics(RunLogger):
    """Columns are `step`, `epoch`, then metrics as they first appear; what was not logged at a step is empty.

    `step` is Lightning's: the number of optimizer steps done before the one that the row tells of, so the first is 0.
    What comes for the same step one after the other shares a row. Unlike Lightning's own logger of this kind it
    deletes nothing: an existing file is continued, and no other file in `folder` is touched.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.path = Path(folder) / FILE_NAME
        self._columns = ["step", "epoch"]
        self._last: dict[str, str] = {}  # the last row in the file, as text
        self._last_offset = 0  # where it begins, in bytes
        self._last_step = -1
        self._file: io.FileIO | None = None

    @property
    def name(self) -> str:
        return Path(self.folder).name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return self.folder

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Drop, now, the rows of all but the first `step` optimizer steps and what came after training (a test)."""
        self.close()
        if self.path.exists():
            self._open(keep_below=step)

    def read(self, below: int) -> list[dict[str, float]]:
        """The rows of the first `below` optimizer steps, each with what was logged for it; none without a file."""
        rows = self._read(below) if self.path.exists() else []
        return [{key: float(cell) for key, cell in zip(self._columns, row, strict=True) if cell} for row in rows]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = max(self._last_step, 0) if step is None else int(step)
        file = self._file or self._open()
        row = {"step": str(step)} | {key: _text(value) for key, value in metrics.items() if key != "step"}
        same_row = step == self._last_step
        if same_row:
            row = self._last | row
        new = [key for key in row if key not in self._columns]
        if new:
            file = self._add_columns(new)
        if not same_row:
            self._last_offset = file.seek(0, io.SEEK_END)
        file.seek(self._last_offset)
        file.write(_line([row.get(key, "") for key in self._columns]).encode())
        file.truncate()
        self._last, self._last_step = row, step

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The settings are in the run's folder already."""

    def finalize(self, status: str) -> None:
        """Nothing is held back, so there is nothing to write. More metrics may follow: a test after the fit."""

    @rank_zero_only
    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, keep_below: int | None = None) -> io.FileIO:
        """Open what is there, or a new file, and leave out rows that were cut off or are not to be kept."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rows = self._read(keep_below) if self.path.exists() else []
            lines = [_line(row) for row in rows]
            content = (_line(self._columns) + "".join(lines)).encode()
            if not self.path.exists() or self.path.read_bytes() != content:
                write_atomic(self.path, content, sync=False)  # no row is synced either
            self._file = self.path.open("r+b", buffering=0)
        except OSError as error:
            raise RunError(f"{self.path}: metrics cannot be written here ({error.strerror})") from None
        self._last = {key: cell for key, cell in zip(self._columns, rows[-1], strict=True) if cell} if rows else {}
        self._last_step = int(rows[-1][0]) if rows else -1
        self._last_offset = len(content) - len(lines[-1]) if rows else len(content)
        return self._file

    def _read(self, keep_below: int | None) -> list[list[str]]:
        text = self.path.read_bytes().decode(errors="replace")
        text = text[: text.rfind("\n") + 1]  # a kill can cut off the last line
        table = list(csv.reader(io.StringIO(text)))
        if not table:
            return []
        if table[0][:2] != ["step", "epoch"]:
            raise RunError(f"{self.path}: not a table of Frugal's metrics; move it away and start again")
        self._columns = table[0]
        rows = [row for row in table[1:] if len(row) == len(self._columns) and row[0].isdigit()]
        if keep_below is None:
            return rows
        kept: list[list[str]] = []
        for row in rows:
            # A test by a Trainer of its own begins at step 0 again: it is no training step and comes anew, too.
            if int(row[0]) >= keep_below or (kept and int(row[0]) < int(kept[-1][0])):
                break
            kept.append(row)
        return kept

    def _add_columns(self, new: list[str]) -> io.FileIO:
        """Rewrite the file with wider rows. It happens when a metric first appears, so a few times a run."""
        self.close()
        body = self.path.read_bytes().decode().partition("\n")[2].splitlines()
        body = [line + "," * len(new) + "\n" for line in body]
        self._columns += new
        content = (_line(self._columns) + "".join(body)).encode()
        write_atomic(self.path, content, sync=False)
        self._last_offset = len(content) - len(body[-1]) if body else len(content)
        self._file = self.path.open("r+b", buffering=0)
        return self._file


def _text(value: Any) -> str:
    """The shortest text that reads back as the same number."""
    number = value.item() if hasattr(value, "item") else value
    return repr(int(number) if isinstance(number, bool | int) else float(number))


def _line(cells: list[str]) -> str:
    if not any(c in cell for cell in cells for c in ',"\r\n'):
        return ",".join(cells) + "\n"
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
