"""What Frugal asks of a logger beyond Lightning's interface: take the record at the end, an artefact, and a resume.

A logger from elsewhere needs none of it; whoever calls these methods looks for this class first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.loggers import Logger

from frugal import console

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


class QuietLogger(RunLogger):
    """One whose service may fail: whatever it raises is said in one line, once, and the run goes on without it."""

    title: ClassVar[str]  # as the service calls itself
    _quiet = False  # for good, once set

    @contextlib.contextmanager
    def _going_quiet(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._quiet:
                console.say(f"{self.title}: {what} ({one_line(error)}); the run goes on without {self.title}")
            self._quiet = True


class Rows:
    """Steps for loggers that keep each metric for itself, and whatever they are sent."""

    def __init__(self) -> None:
        self.last = -1  # the greatest step so far
        self._step = -1
        self._row: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Any], step: int | None) -> tuple[int, dict[str, float]]:
        """The step, and what was not logged for it already: `epoch` comes with each of a step's parts."""
        step = max(self.last, 0) if step is None else int(step)
        if step != self._step:
            self._step, self._row = step, {}
        values = {key: float(value) for key, value in metrics.items()}
        new = {key: value for key, value in values.items() if self._row.get(key) != value}
        self._row |= new
        self.last = max(step, self.last)
        return step, new


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


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


def flatten_settings(config: dict[str, Any]) -> dict[str, Any]:
    """A run's settings under dotted keys, for loggers that keep no nested ones.

    `{"optim": {"lr": 0.1}, "choices": {"optim": "sgd"}}` gives `optim.lr` and `optim`. Left out are targets, which
    follow from the choices, and what is no part of an experiment: paths and loggers.
    """
    plain = {key: value for key, value in config.items() if key not in ("choices", "paths", "logger")}
    leaves = {key.replace("/", "."): value for key, value in _leaves(plain, "", absent=True)}
    chosen = {group: option for group, option in (config.get("choices") or {}).items() if group != "logger"}
    return {key: value for key, value in leaves.items() if not key.endswith("_target_")} | chosen


def _leaves(node: dict[str, Any], prefix: str, absent: bool = False) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}/", absent)
        elif absent or value is not None:
            yield f"{prefix}{key}", value
