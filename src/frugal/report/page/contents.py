"""What the page shows, as plain data: figures, groups, runs, and the settings in which runs differ.

Texts are made here (`report/units.py`, as in the table), so that page, table and CSV agree; the script sorts and plots
the raw values. Everything is an index into a list that stands once, so that a thousand runs stay small.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from frugal import __version__
from frugal.record import CONFUSION, FILE_NAME
from frugal.report.collect import Run, number
from frugal.report.comparable import best_of, candidates, members, metric_of
from frugal.report.figures import COSTS, FIGURES, Figure, quality_figure
from frugal.report.group import Group, configuration, show_value
from frugal.report.table import cell, seeds
from frugal.report.units import one_line

if TYPE_CHECKING:
    from frugal.report.verb import Report

LINKED = (FILE_NAME, "metrics.csv", "config.yaml", "run.log", CONFUSION)  # files of a run that the page links to
LONGEST = 2000  # characters of a command or an error


class _Listed:
    """Values that stand once in a list; elsewhere their places in it."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._place: dict[Any, int] = {}

    def place(self, value: Any) -> int:
        if value not in self._place:
            self._place[value] = len(self.values)
            self.values.append(value)
        return self._place[value]


def contents(made: Report, out: Path) -> dict[str, Any]:
    """All but the curves. `out` is the folder that the page lies in: links to the runs are relative to it."""
    groups = made.groups
    runs = [run for group in groups for run in group.runs]
    place = {id(run): index for index, run in enumerate(runs)}
    figures = _figures(runs, made.metric)
    options = list(dict.fromkeys(name for group in groups for name in group.options))
    reasons, buckets = _Listed(), _Listed()
    leaves, keys, values = _settings(runs)
    origin = out.resolve()
    return {
        "title": made.title,
        "version": __version__,
        "notes": [one_line(note) for note in [*made.notes, *made.paired_lines]],
        "skipped": [one_line(line) for line in made.skipped],
        "figures": [_figure(figure) for figure in figures],
        "sets": _sets(made, place, figures),
        "options": options,
        "groups": [_group(group, place, figures, options) for group in groups],
        "runs": [_run(run, figures, reasons, buckets, origin) | {"leaves": leaves[i]} for i, run in enumerate(runs)],
        "reasons": reasons.values,
        "buckets": buckets.values,
        "keys": keys,
        "values": values,
    }


def runs_of(made: Report) -> list[Run]:
    """In the page's order."""
    return [run for group in made.groups for run in group.runs]


def _figures(runs: Sequence[Run], metric: Figure | None) -> list[Figure]:
    """Those of the table first, then the other figures and qualities; only what some run has."""
    own = [metric] if metric and metric.key not in {figure.key for figure in FIGURES} else []
    known = [*own, *(figure for figure in FIGURES if figure.rank), *(figure for figure in FIGURES if not figure.rank)]
    keys = {figure.key for figure in known}
    names = sorted({name for run in runs for name in run.record.quality if name not in keys})
    known += [quality_figure(name, rank=0) for name in names]
    return [f for f in known if any(f.value(run.record) is not None or f.key in run.record.quality for run in runs)]


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "key": one_line(figure.key),
        "title": one_line(figure.title),
        "unit": figure.unit,
        "per": figure.per,
        "higher": figure.higher,
        "shown": bool(figure.rank),
        "cost": figure.key in {cost.key for cost in COSTS.values()},
    }


def _sets(made: Report, place: dict[int, int], figures: Sequence[Figure]) -> dict[str, Any]:
    """Set -> the figure that it is judged by, its best group and its best single run."""
    sets: dict[str, Any] = {name: {"metric": None, "best": None, "run": None} for name in members(made.groups)}
    order = {id(group): index for index, group in enumerate(made.groups)}
    for name, alike in candidates(made.groups).items():
        metric = metric_of(alike, made.metric)
        best = best_of(alike, metric) if metric else None
        if metric is None or best is None:
            continue
        values = [(v, run) for g in alike for run in g.completed if (v := metric.value(run.record)) is not None]
        run = (max if metric.higher else min)(values, key=lambda item: item[0])[1]
        sets[name] = {
            "metric": [figure.key for figure in figures].index(metric.key),
            "best": order[id(best)],
            "run": place[id(run)],
        }
    return sets


def _group(group: Group, place: dict[int, int], figures: Sequence[Figure], options: Sequence[str]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "label": one_line(group.label),
        "set": group.set,
        "options": [group.options.get(name) for name in options],
        "runs": [place[id(run)] for run in group.runs],
        "seeds": seeds(group),
        "pareto": group.pareto,
        "fronts": group.fronts,
        "kind": "evaluation" if group.is_evaluation else "debug" if group.is_debug else "",
    }
    if len(group.runs) > 1:  # of one run they are the run's
        found = [group.estimate(figure) for figure in figures]
        made["mean"] = [None if e is None else _short(e.mean) for e in found]
        made["half"] = [None if e is None or e.half is None else _short(e.half) for e in found]
        made["text"] = [None if e is None else cell(f, e) for f, e in zip(figures, found, strict=True)]
    return made


def _run(run: Run, figures: Sequence[Figure], reasons: _Listed, buckets: _Listed, origin: Path) -> dict[str, Any]:
    record = run.record
    values = [figure.value(record) for figure in figures]
    ledger = {buckets.place(one_line(name)): number(s) for name, s in record.time.ledger_s.items()}
    return {
        "name": run.name,
        "href": _link(run.folder, origin),
        "files": [name for name in LINKED if (run.folder / name).is_file()],
        "state": run.state,
        "error": one_line(record.error, LONGEST) if record.error else None,
        "seed": None if run.seed is None else one_line(run.seed),
        "started": one_line(record.run.started_at),
        "command": one_line(record.run.command, LONGEST),
        "diagnosis": one_line(record.diagnosis) if record.diagnosis else None,
        "figures": [None if value is None else _short(value) for value in values],
        "text": [None if v is None else f.show(v) for f, v in zip(figures, values, strict=True)],
        "why": {
            i: reasons.place(_reason(run, figure))
            for i, (figure, value) in enumerate(zip(figures, values, strict=True))
            if value is None
        },
        "ledger": {bucket: _short(s) for bucket, s in ledger.items() if s},
        "latency": [
            [one_line(row.backend), row.batch, row.threads, row.status, *map(_ms, (row.p50_ms, row.p90_ms, row.p99_ms))]
            for row in record.latency
        ],
    }


def _reason(run: Run, figure: Figure) -> str:
    """Why a run lacks a figure, as its record says."""
    absent, section = run.record.absent, figure.at.partition(".")[0]
    found = absent.get(figure.at) or absent.get(section)
    if found is None and figure.key in run.record.quality:
        found = "it was not finite"
    return one_line(found) if found else "not in the record" if run.state == "completed" else f"the run is {run.state}"


def _link(folder: Path, origin: Path) -> str:
    return "/".join(quote(os.fsencode(part), safe="") for part in Path(os.path.relpath(folder.resolve(), origin)).parts)


def _settings(runs: Sequence[Run]) -> tuple[list[list[int]], list[str], list[str]]:
    """For each run the places of its values of the keys that differ anywhere; the keys; the values as people write
    them."""
    flat = [dict(_leaves(run)) for run in runs]
    names = dict.fromkeys(name for leaves in flat for name in leaves)
    differing = [name for name in names if len({leaves.get(name) for leaves in flat}) > 1]
    differing.sort(key=lambda name: ("." in name, name.startswith("fingerprint."), name))  # options chosen come first
    listed = _Listed()
    return (
        [[listed.place(one_line(leaves.get(name, "–"), LONGEST)) for name in differing] for leaves in flat],
        [one_line(name) for name in differing],
        listed.values,
    )


def _leaves(run: Run) -> Iterable[tuple[str, str]]:
    """What was asked (options, settings) and where it ran (fingerprint, code)."""
    for key, value in configuration(run).items():
        yield key.removeprefix("choices.") if key.startswith("choices.") else key, show_value(value)
    yield "seed", str(run.seed)
    for name, value in vars(run.record.fingerprint).items():
        yield f"fingerprint.{name}", str(value)[:12] if name.endswith("sha256") else str(value)
    yield "code", str(run.record.run.source_sha256)[:12] or "–"


def _short(value: float) -> float:
    """Seven digits are more than any figure is good for, and short in the file."""
    return float(f"{value:.7g}")


def _ms(value: object) -> float | None:
    found = number(value)
    return None if found is None else _short(found)
