"""What Frugal asks of a logger beyond Lightning's interface: take the record at the end, an artefact, and a resume.

A logger from elsewhere needs none of it; whoever calls these methods looks for this class first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

# Sections of a record that are no figures: the settings go to `log_hyperparams`, reasons and text stay in record.json.
_NOT_FIGURES = ("schema", "config", "absent", "diagnosis")


class RunLogger(Logger):
    """A Lightning logger that also knows how a run begins again and how it ends."""

    def resume_at(self, step: int) -> None:
        """The run goes on after `step` optimizer steps; what was logged for later steps will be logged again."""

    def log_record(self, record: dict[str, Any]) -> None:
        """The finished record (`Record.to_dict()`), after the last `log_metrics`."""

    def log_artifact(self, path: Path) -> None:
        """The file that the run leaves: the network as it was tested."""

    def close(self) -> None:
        """The job is over, or has failed. Lightning calls `finalize` instead, and does so after each fit and test."""


def flatten_record(record: dict[str, Any]) -> dict[str, Any]:
    """A record's figures under slashed keys, absent ones left out.

    `{"throughput": {"samples_per_s": 9.0}}` gives `throughput/samples_per_s`. Quality keeps its own names
    (`test/accuracy`), and a latency row is `latency/<backend>/batch_<n>/p50_ms`.
    """
    plain = {key: value for key, value in record.items() if key not in _NOT_FIGURES}
    rows = plain.pop("latency", [])
    quality = plain.pop("quality", {})
    flat = dict(_leaves(plain, ""))
    flat |= {key: value for key, value in quality.items() if value is not None}
    for row in rows:
        rest = {key: value for key, value in row.items() if key not in ("backend", "batch")}
        flat |= _leaves(rest, f"latency/{row['backend']}/batch_{row['batch']}/")
    return flat


def _leaves(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}/")
        elif value is not None:
            yield f"{prefix}{key}", value
