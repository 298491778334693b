"""Finding and reading records: whatever lies under the folders given; what cannot be read is named and skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from frugal.errors import FrugalError, RunError
from frugal.record import FILE_NAME, Record, Status
from frugal.report.units import one_line

LARGEST = 1e150


@dataclass(frozen=True)
class Run:
    """A record and the file that it was read from."""

    record: Record
    file: Path

    @property
    def folder(self) -> Path:
        return self.file.parent

    @property
    def name(self) -> str:
        return one_line(self.record.run.name or self.folder.name or "run")

    @property
    def is_evaluation(self) -> bool:
        return is_evaluation(self.record)

    @property
    def short_name(self) -> str:
        """The name without the run's own hash at its end. For an evaluation: what was evaluated."""
        own = self.record.run.hash
        return (self.name.removesuffix(f"-{own}") if own else self.name) or self.name

    @cached_property
    def state(self) -> str:
        """The record's status. A killed run still says `running`, but no process holds its folder: it was `cut off`."""
        if self.record.status != "running":
            return self.record.status
        from frugal.folder import is_locked

        try:
            return "running" if is_locked(self.folder) else "cut off"
        except OSError:
            return "running or cut off"

    @property
    def seed(self) -> Any:
        seed = self.record.run.seed
        return self.record.config.get("seed") if seed is None else seed


def find(paths: Sequence[Path]) -> Iterator[Path]:
    """Record files among and under `paths`, each once, in a fixed order. Hidden folders are passed over.

    A sweep's folder holds no records: there, those of the runs that it names are found.
    """
    seen: set[Path] = set()
    for path in paths:
        for file in [path] if path.is_file() else list(_under(path)) or _of_sweeps(path):
            resolved = file.resolve()
            if resolved not in seen:
                seen.add(resolved)
                yield file


def _under(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if FILE_NAME in files:
            yield Path(root) / FILE_NAME


def _of_sweeps(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders.sort()
        if Path(root).name == "jobs":
            for name in sorted(file for file in files if file.endswith(".txt")):
                run = job_folder(Path(root) / name)
                if (run / FILE_NAME).is_file():
                    yield run / FILE_NAME


def job_folder(word: Path) -> Path:
    """The run's folder that a sweep's `jobs/00000.txt` names, relative to the sweep's folder."""
    return (word.resolve().parent.parent / word.read_text().strip()).resolve()


def collect(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """All runs under `paths`, and a line for each file skipped, with the reason. No record at all: RunError."""
    paths = [Path(path) for path in paths]
    runs: list[Run] = []
    skipped = [f"{path}: no such file or folder" for path in paths if not path.exists()]
    for file in find([path for path in paths if path.exists()]):
        try:
            runs.append(Run(checked(Record.read(file), file), file))
        except (FrugalError, OSError, ValueError, RecursionError) as error:  # not text; nested too deep
            reason = error.strerror if isinstance(error, OSError) else error
            text = one_line(reason or error)
            skipped.append(text if text.startswith(str(file)) else f"{file}: {text}")
    if not runs:
        where = ", ".join(map(str, paths)) or "nothing"
        why = f" ({skipped[0]})" if skipped and not skipped[0].endswith("no such file or folder") else ""
        raise RunError(
            f"no {FILE_NAME} that can be read under {where}{why}; give a run's folder or one that holds runs"
        )
    return runs, skipped


def checked(record: Record, file: Path) -> Record:
    """Refuse what reads as a record but has other types than a record, so that no later line stumbles on it."""
    if record.status not in get_args(Status):
        raise RunError(f"{file}: not a record (status {record.status!r})")
    for key in ("config", "quality", "data", "techniques", "absent"):
        if not isinstance(getattr(record, key), dict):
            raise RunError(f"{file}: not a record ({key} is no mapping)")
    if not isinstance(record.time.ledger_s, dict):
        raise RunError(f"{file}: not a record (time.ledger_s is no mapping)")
    for key, value, kinds in _typed(record):
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise RunError(f"{file}: not a record ({key} is {one_line(value, 40)!r})")
    return record


def _typed(record: Record) -> Iterator[tuple[str, Any, tuple[type, ...]]]:
    """Key, value and types of what a report groups, sorts or compares by. Figures are not among them: `number` leaves
    out what is none."""
    nothing = type(None)
    for name, value in vars(record.fingerprint).items():
        yield f"fingerprint.{name}", value, (int if name in ("threads", "effective_batch") else str, nothing)
    for name in ("hash", "command", "source_sha256"):
        yield f"run.{name}", getattr(record.run, name), (str,)
    yield "run.seed", record.run.seed, (int, nothing)
    yield "config.seed", record.config.get("seed"), (int, nothing)
    for name, seconds in record.time.ledger_s.items():
        yield f"time.ledger_s.{name}", seconds, (int, float, nothing)
    for row in record.latency:
        yield "latency.backend", row.backend, (str,)
        yield "latency.status", row.status, (str,)
        yield "latency.batch", row.batch, (int,)
        yield "latency.threads", row.threads, (int,)


def is_evaluation(record: Record) -> bool:
    """Whether `frugal evaluate` made it: its config names what it evaluated."""
    return "source" in record.config


def number(value: object) -> float | None:
    """A finite figure, or None: what a record holds may come from another program. None also where no float holds its
    square, which an interval needs."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < LARGEST else None  # NaN is not less
