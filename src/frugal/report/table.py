"""The report's table for the terminal, and the lines that stand below it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from frugal.report.figures import FIGURES, Figure
from frugal.report.group import Group
from frugal.report.stats import Estimate
from frugal.report.units import ABSENT

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table
    from rich.text import Text

STAR = "★"
LONGEST_LABEL = 40  # characters; a run's name says as much in fewer


@dataclass(frozen=True)
class Column:
    title: str
    unit: str = ""
    rank: int = 100  # a terminal that is too narrow drops the lowest first; 100 stays
    right: bool = True

    @property
    def head(self) -> str:
        return f"{self.title} {self.unit}".strip()


@dataclass
class Layout:
    """The table as text: one list of cells a group, in the order of `columns`."""

    columns: list[Column]
    cells: list[list[str]] = field(default_factory=list)
    marked: list[bool] = field(default_factory=list)  # in the Pareto set
    sets: list[str] = field(default_factory=list)


def shown_figures(groups: Sequence[Group], metric: Figure | None) -> list[Figure]:
    """The metric first, then what tables show and at least one group has."""
    figures = [metric] if metric and metric.key not in {f.key for f in FIGURES} else []
    figures += [f for f in FIGURES if f.rank]
    return [f for f in figures if any(group.estimate(f) or _lost(group, f) for group in groups)]


def _lost(group: Group, figure: Figure) -> bool:
    """Whether a run has this quality without a value: it was not finite. Its column stays, showing nothing."""
    return any(figure.key in run.record.quality for run in group.completed)


def lay_out(
    groups: Sequence[Group], options: Sequence[str], metric: Figure | None = None, several: bool | None = None
) -> Layout:
    """Cells of all groups that completed, in the order given; `several`: whether to name each one's set."""
    done = [group for group in groups if group.completed]
    figures = shown_figures(done, metric)
    several = len({group.set for group in done}) > 1 if several is None else several
    # a column that no completed group tells apart says nothing here
    options = [name for name in options if len({group.options.get(name) for group in done}) > 1]
    columns = [Column("set", right=False)] if several else []
    columns += [Column(name, right=False) for name in options] or [Column("run", right=False)]
    columns += [
        Column("seeds"),
        *(Column(f.title, f.unit, f.rank) for f in figures),
    ]
    judged = any(not group.is_evaluation or group.pareto for group in done)
    columns += [Column("Pareto", right=False, rank=95)] if judged else []
    layout = Layout(columns)
    for group in done:
        row = [group.set] if several else []
        row += [group.options.get(name, ABSENT) for name in options] or [_short_label(group)]
        row += [seeds(group), *(cell(f, group.estimate(f)) for f in figures)]
        row += [pareto_cell(group)] if judged else []
        layout.cells.append(row)
        layout.marked.append(group.pareto)
        layout.sets.append(group.set)
    return layout


def _short_label(group: Group) -> str:
    return group.label if len(group.label) <= LONGEST_LABEL else group.runs[0].short_name


def seeds(group: Group) -> str:
    """`3`, or `2, 1 failed`; repeats of a seed are named."""
    unseeded = sum(run.seed is None for run in group.completed)
    n = len([seed for seed in group.seeds if seed is not None]) + unseeded
    words = [str(n)]
    if len(group.completed) > n:
        words.append(f"{len(group.completed)} runs")
    states = Counter(run.state for run in group.runs if run.record.status != "completed")
    words += [f"{count} {state}" for state, count in sorted(states.items())]
    return ", ".join(words)


def cell(figure: Figure, found: Estimate | None) -> str:
    """`97.52 ± 0.31` for a quality, the mean for the rest."""
    if found is None:
        return ABSENT
    text = figure.show(found.mean)
    if "/" in figure.key and found.half is not None:
        digits = len(text.partition(".")[2])  # as many as the mean has
        text += f" ± {(100 if figure.unit == '%' else 1) * found.half:.{digits}f}"
    return text


def pareto_cell(group: Group) -> str:
    return f"{STAR if group.pareto else ' '} {', '.join(group.fronts)}".rstrip()


class ReportTable:
    """Renders a Layout. Where the terminal is narrower than the table it leaves columns out, and says which."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.measure import Measurement
        from rich.text import Text

        kept = list(range(len(self.layout.columns)))
        dropped: list[str] = []
        brief = False  # of the Pareto column the star alone
        table = self._table(kept)
        free = options.update(width=1_000_000)  # a measure is never more than the options allow
        while Measurement.get(console, free, table).maximum > options.max_width:
            if not brief:
                brief = True
                table = self._table(kept, brief)
                continue
            lowest = min(kept, key=lambda i: self.layout.columns[i].rank)
            if self.layout.columns[lowest].rank >= 95:
                break
            kept.remove(lowest)
            dropped.append(self.layout.columns[lowest].title)
            table = self._table(kept, brief)
        yield table
        if dropped:
            yield Text(f"Left out on {options.max_width} columns: {', '.join(dropped)}.", style="dim")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> object:
        from rich.measure import Measurement

        return Measurement.get(console, options, self._table(range(len(self.layout.columns))))

    def _table(self, kept: Sequence[int], brief: bool = False) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for i in kept:
            column = self.layout.columns[i]
            head = Text(column.title)
            if column.unit:
                head.append(f"\n{column.unit}", style="dim")
            table.add_column(head, justify="right" if column.right else "left", overflow="fold", vertical="bottom")
        for n, row in enumerate(self.layout.cells):
            last = n + 1 < len(self.layout.sets) and self.layout.sets[n + 1] != self.layout.sets[n]
            style = "bold" if self.layout.marked[n] else None
            table.add_row(
                *(self._text(row[i], self.layout.columns[i], brief) for i in kept), style=style, end_section=last
            )
        return table

    @staticmethod
    def _text(content: str, column: Column, brief: bool) -> Text:
        from rich.text import Text

        text = Text(content[:1].strip() if brief and column.title == "Pareto" else content)
        if column.title == "Pareto" and content.startswith(STAR):
            text.stylize("green", 0, 1)
        return text


def below(lines: Sequence[str], style: str = "") -> RenderableType:
    from rich.text import Text

    return Text("\n".join(lines), style=style)
