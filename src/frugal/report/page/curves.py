"""Learning curves from the runs' `metrics.csv`, thinned so that the page stays small however many runs there are."""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frugal.report.collect import Run
from frugal.report.figures import quality_figure

FILE = "metrics.csv"
LEFT_OUT = ("step", "epoch", "ledger/", "test/")  # no curves: the axes, shares of time, single points
MOST_POINTS = 300  # a curve
ALL_POINTS = 200_000  # a page
FEWEST_POINTS = 20
MOST_BYTES = 100_000_000  # of metrics read for one page; runs after that have no curves


def curves(runs: Sequence[Run]) -> dict[str, Any]:
    """`metrics`: name, unit, raw units in one shown; `runs`: run -> [steps an epoch, metric -> [steps, values]];
    `left_out`: a line or None.
    """
    tables: dict[int, tuple[float, dict[str, tuple[array[float], array[float]]]]] = {}
    read = too_many = unread = 0
    for index, run in enumerate(runs):
        path = run.folder / FILE
        size = path.stat().st_size if path.is_file() else 0
        if not size or read + size > MOST_BYTES:
            too_many += size > 0
            continue
        read += size
        try:
            tables[index] = _read(path)
        except (OSError, csv.Error):
            unread += 1
    left_out = [f"{too_many} runs have more metrics than a page can hold: no curves of theirs."] * bool(too_many)
    left_out += [f"{unread} {FILE} cannot be read."] * bool(unread)
    count = sum(len(columns) for _, columns in tables.values())
    limit = max(FEWEST_POINTS, min(MOST_POINTS, ALL_POINTS // max(1, count)))
    names = list(dict.fromkeys(name for _, columns in tables.values() for name in columns))
    places = {name: place for place, name in enumerate(names)}
    return {
        "metrics": [[name, (figure := quality_figure(name)).unit, figure.per] for name in names],
        "runs": {
            index: [per_epoch, {places[name]: _thin(*points, limit) for name, points in columns.items()}]
            for index, (per_epoch, columns) in tables.items()
        },
        "left_out": " ".join(left_out) or None,
    }


def _read(path: Path) -> tuple[float, dict[str, tuple[array[float], array[float]]]]:
    """Steps an epoch, and each metric's steps and values. Rows that do not read as numbers are passed over."""
    found: dict[str, tuple[array[float], array[float]]] = {}
    per_epoch = 1.0
    rows = csv.reader(io.StringIO(path.read_bytes().decode(errors="replace")))
    head = next(rows, [])
    if head[:2] != ["step", "epoch"]:
        return per_epoch, found
    columns = [(i, name) for i, name in enumerate(head) if not name.startswith(LEFT_OUT)]
    for row in rows:
        try:
            step, epoch = int(row[0]), max(0, int(row[1] or 0))
            float(step)
        except (ValueError, IndexError, OverflowError):
            continue
        per_epoch = max(per_epoch, (step + 1) / (epoch + 1))  # the last row of an epoch tells
        for i, name in columns:
            if i < len(row) and row[i]:
                try:
                    value = float(row[i])
                except ValueError:
                    continue
                steps, values = found.setdefault(name, (array("d"), array("d")))
                steps.append(step + 1)
                values.append(value)
    return per_epoch, found


def _thin(steps: Sequence[float], values: Sequence[float], limit: int) -> list[list[Any]]:
    """At most `limit` points: the first, the last, and the lowest and highest of equal stretches between, so that no
    spike is lost. What is not finite becomes None, a gap."""
    n = len(values)
    kept: Sequence[int] = range(n)
    if n > limit:
        stretches = max(1, (limit - 2) // 2)
        chosen = {0, n - 1}
        for k in range(stretches):
            inside = range(1 + k * (n - 2) // stretches, 1 + (k + 1) * (n - 2) // stretches)
            finite = [i for i in inside if math.isfinite(values[i])]
            chosen |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)} if finite else set()
        kept = sorted(chosen)
    return [
        [int(steps[i]) for i in kept],
        [float(f"{values[i]:.5g}") if math.isfinite(values[i]) else None for i in kept],
    ]
