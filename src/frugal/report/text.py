"""The report as CSV (raw figures: bytes, seconds, fractions) and as Markdown (as people read them)."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from frugal.report.comparable import FIELDS
from frugal.report.figures import FIGURES, Figure, artefact_latency
from frugal.report.group import Group
from frugal.report.table import Layout
from frugal.report.units import one_line

STATUSES = ("completed", "failed", "interrupted", "running", "refused")


def rows(groups: Sequence[Group], metric: Figure | None = None) -> list[dict[str, Any]]:
    """One dict a group, also those without results; a figure is its mean over seeds, `_ci95` its half-width."""
    figures = [*([metric] if metric and metric.key not in {f.key for f in FIGURES} else []), *FIGURES]
    return [_row(group, figures) for group in groups]


def _row(group: Group, figures: Sequence[Figure]) -> dict[str, Any]:
    first = group.completed[0] if group.completed else group.runs[0]
    row: dict[str, Any] = {
        "group": group.label,
        "set": group.set,
        **{f"option.{k}": v for k, v in group.options.items()},
    }
    row |= {"n_seeds": len(group.seeds), "seeds": " ".join(one_line(seed) for seed in group.seeds)}
    row |= {status: group.statuses.get(status, 0) for status in STATUSES}
    for figure in figures:
        found = group.estimate(figure)
        row[figure.key] = None if found is None else found.mean
        row[f"{figure.key}_ci95"] = None if found is None else found.half
    latency = artefact_latency(first.record) if group.completed else None
    row |= {
        "latency_backend": latency.backend if latency else None,
        "latency_status": latency.status if latency else None,
    }
    row |= {"pareto": group.pareto, "fronts": " ".join(group.fronts)}
    row |= {name: getattr(first.record.fingerprint, name) for name in FIELDS}
    errors = [run.record.error for run in group.runs if run.record.error]
    row |= {"error": one_line(errors[0]) if errors else None, "records": ";".join(str(run.file) for run in group.runs)}
    return row


def to_csv(table: Sequence[dict[str, Any]]) -> str:
    """Comma-separated, one header line; nothing for an absent figure, no line breaks inside cells."""
    names = list(dict.fromkeys(name for row in table for name in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(cell_text(name) for name in names)
    for row in table:
        writer.writerow(cell_text(row.get(name)) for name in names)
    return buffer.getvalue()


def cell_text(value: Any) -> Any:
    """A number or nothing as it is; the rest as one line that no spreadsheet runs as a formula."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, int | float):
        return value
    text = one_line(value)
    # a spreadsheet runs what begins like a formula; numbers stay numbers
    if text[:1] in ("=", "+", "-", "@") and not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", text):
        return f"'{text}"
    return text


def escape(text: object) -> str:
    """Text that Markdown shows as it is, also inside a table: one line, no HTML, no markup."""
    line = html.escape(one_line(text), quote=False)
    line = re.sub(r"([\\`*\[\]|~])", r"\\\1", line)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)  # between letters it is no emphasis


def to_markdown(
    title: str,
    layout: Layout,
    further: Mapping[str, Layout],
    notes: Sequence[str],
    unfinished: Sequence[str],
    plot: str | None,
) -> str:
    parts = [f"# {escape(title)}"]
    if layout.cells:
        parts.append(_table(layout))
    for head, table in further.items():
        if table.cells:
            parts += [f"## {escape(head)}"] * (len(parts) > 1) + [_table(table)]
    if plot:
        parts.append(f"![Pareto plots]({plot})")
    parts += [escape(note) for note in notes]
    if unfinished:
        parts.append("## Not completed")
        parts.append("\n".join(f"- {escape(line)}" for line in unfinished))
    return "\n\n".join(parts) + "\n"


def _table(layout: Layout) -> str:
    heads = [escape(column.head) for column in layout.columns]
    rules = ["---:" if column.right else ":---" for column in layout.columns]
    lines = [heads, rules, *([escape(text) for text in row] for row in layout.cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
