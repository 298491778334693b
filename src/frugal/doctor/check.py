"""One line of the report, and what every probe needs to write it."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "missing", "broken"]
DISTRIBUTION = "frugal-ml"


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    section: str
    name: str
    status: Status
    found: str
    fix: str | None = None


def version(distribution: str) -> str | None:
    """Its installed version, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def one_line(error: BaseException) -> str:
    """The first line of what an exception says, or its kind."""
    lines = str(error).strip().splitlines()
    return " ".join(lines[0].split()) if lines else type(error).__name__
