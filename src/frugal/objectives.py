"""What a search optimizes: figures of a record, by name or by their key. Torch-free."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from frugal.errors import SettingsError, did_you_mean
from frugal.record import Record

# The validation's, never the test's: what is chosen by a figure has no honest figure of that kind left.
NAMES = {
    "accuracy": "max val/accuracy",
    "loss": "min val/loss",
    "size": "min size.file_bytes",
    "latency": "min latency",
    "time": "min time.train_s",
    "memory": "min memory.peak_private_bytes",
}


@dataclass(frozen=True)
class Objective:
    """`key` is one of a record's qualities ("val/loss"), a dotted figure ("size.file_bytes"), `time.train_s` (seconds
    of training) or `latency` (its median in ms, as in the report)."""

    key: str
    maximize: bool

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Of "accuracy" or "max val/macro_f1". Raises SettingsError."""
        mode, _, key = NAMES.get(text.strip(), text).strip().partition(" ")
        key = key.strip()
        if mode not in ("min", "max") or not key:
            near = did_you_mean(text, NAMES)
            raise SettingsError(f"sweep.objectives: {text}: {near}; others are written max val/macro_f1")
        section, _, name = key.partition(".")
        if "/" not in key and key not in ("latency", "time.train_s"):
            part = getattr(Record(), section, None)
            known = [f.name for f in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
            if name not in known:
                raise SettingsError(f"sweep.objectives: {key}: no record has such a figure; see docs/measurement.md")
        return cls(key, mode == "max")

    def value(self, record: Record) -> float | None:
        """None where the record lacks it or it is not finite."""
        found: object
        if "/" in self.key:
            found = record.quality.get(self.key)
        elif self.key in ("latency", "time.train_s"):
            from frugal.report.figures import COSTS

            found = COSTS["latency" if self.key == "latency" else "time"].value(record)
        else:
            section, _, name = self.key.partition(".")
            found = getattr(getattr(record, section), name)
        ok = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
        return float(found) if ok else None  # type: ignore[arg-type]


def reached(record: Record, objectives: Sequence[str]) -> float | list[float] | None:
    """The figures of the objectives, alone or as a list; None where one is missing."""
    values = [Objective.parse(str(text)).value(record) for text in objectives]
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return None
    return found[0] if len(found) == 1 else found
