"""`frugal report FOLDER...`: records in, one table, CSV, Markdown, Pareto plots and a page out. A sweep ends with the
same.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from frugal.errors import RunError, SettingsError, did_you_mean
from frugal.paths import shown
from frugal.record import CONFUSION, write_atomic
from frugal.report import text
from frugal.report.collect import Run, collect
from frugal.report.comparable import (
    best_of,
    candidates,
    cautions,
    mark_pareto,
    members,
    metric_of,
    split_sets,
    verdicts,
)
from frugal.report.figures import COSTS, FIGURES, Figure, quality_figure
from frugal.report.group import Group, group_runs, name_groups
from frugal.report.paired import baseline_of, differences
from frugal.report.table import STAR, Layout, ReportTable, below, lay_out
from frugal.report.units import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

CSV, MARKDOWN, PLOT, MATRIX, PAGE = "report.csv", "report.md", "pareto.png", "confusion.png", "report.html"
PAIRED = "Differences from the baseline, paired by seed, with 95 % intervals"
MOST_LINES = 30  # of runs that did not complete, in the terminal; the Markdown file has all
MOST_OF_AN_ERROR = 300  # characters
MOST_OPTIONS = 6  # columns of options in the terminal; above, each set of comparable runs has a table of its own


@dataclass
class Report:
    """What the records say. `table` is for the terminal; `files` are those written so far."""

    rows: list[dict[str, Any]]
    statuses: dict[str, int]  # status -> number of runs
    notes: list[str]
    unfinished: list[str]  # a line for each run that did not complete
    skipped: list[str]  # a line for each file that is no record
    title: str
    layout: Layout  # of the trainings
    by_set: list[tuple[str, Layout]]  # the same in parts, a head each, where one table would have too many columns
    evaluations: Layout
    groups: list[Group]
    metric: Figure | None
    paired: Layout = field(default_factory=lambda: Layout([]))  # of a paired sweep: differences from the baseline
    files: list[Path] = field(default_factory=list)

    @property
    def best(self) -> Group | None:
        """The best group where there is one set of comparable runs to judge."""
        sets = candidates(self.groups)
        if len(sets) != 1:
            return None
        (alike,) = sets.values()
        metric = metric_of(alike, self.metric)
        return best_of(alike, metric) if metric else None

    @property
    def table(self) -> RenderableType:
        from rich.console import Group as Stack

        parts: list[RenderableType] = [below([self.title], "bold")]
        if self.by_set:
            for head, layout in self.by_set:
                parts += [below([head], "bold"), ReportTable(layout)]
        elif self.layout.cells:
            parts.append(ReportTable(self.layout))
        if self.evaluations.cells:
            parts += [below(["Evaluations"], "bold"), ReportTable(self.evaluations)]
        if self.paired.cells:
            parts += [below([PAIRED], "bold"), ReportTable(self.paired)]
        if self.notes:
            parts.append(below(self.notes))
        if self.unfinished:
            lines = self.unfinished[:MOST_LINES]
            more = len(self.unfinished) - len(lines)
            parts.append(below(["Not completed:", *lines, *([f"and {more} more, all in {MARKDOWN}"] if more else [])]))
        if self.skipped:
            parts.append(below([f"Skipped {line}" for line in self.skipped], "yellow"))
        return Stack(*parts)

    @property
    def paired_lines(self) -> list[str]:
        """The table of differences in lines, for the page, which has no such table."""
        lines, name = [], ""
        for row in self.paired.cells:
            name = row[0] or name
            lines.append(f"{name}, paired with the baseline: {row[1]} {row[4]} ({row[6]}).")
        return lines

    @property
    def csv(self) -> str:
        return text.to_csv(self.rows)

    @property
    def markdown(self) -> str:
        plot = PLOT if any(file.name == PLOT for file in self.files) else None
        further = {"Evaluations": self.evaluations, PAIRED: self.paired}
        return text.to_markdown(self.title, self.layout, further, self.notes, self.unfinished, plot)

    def write(self, out: Path, plots: bool = True, page: bool = True) -> list[Path]:
        """Write the CSV, the plots, the Markdown file and the page into `out`, each whole or not at all.

        Raises RunError where `out` cannot be written. Without plotly there is no page, and a note says so.
        """
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._save(out / CSV, self.csv)
            if plots and (self.layout.cells or self.evaluations.cells):
                self._plot(out / PLOT)
                self._matrix(out / MATRIX)
            self._save(out / MARKDOWN, self.markdown)
            if page:
                self._page(out)
        except OSError as error:
            raise RunError(f"{out}: report cannot be written ({error.strerror}); give --out FOLDER") from None
        return self.files

    def _plot(self, path: Path) -> None:
        from frugal.report.plot import pareto_png

        png = pareto_png(candidates(self.groups), self.metric, next(iter(self.layout_options()), None))
        if png is not None:
            self._save(path, png)

    def _matrix(self, path: Path) -> None:
        """What the best run that has a confusion matrix took for what."""
        best = next((run for group in self.groups for run in group.runs if (run.folder / CONFUSION).is_file()), None)
        if best is not None:
            from frugal.report.confusion import confusion_png

            self._save(path, confusion_png(best.folder / CONFUSION, best.name))

    def _page(self, out: Path) -> None:
        from frugal.report.page import to_html

        try:
            page = to_html(self, out)
        except RunError as error:
            self.notes.append(str(error))
            return
        self._save(out / PAGE, page)

    def layout_options(self) -> list[str]:
        """Names of the columns that tell the groups apart."""
        names = {name for group in self.groups for name in group.options}
        return [column.title for column in self.layout.columns if column.title in names]

    def _save(self, path: Path, content: str | bytes) -> None:
        write_atomic(path, content)
        if path not in self.files:
            self.files.append(path)


def build(
    paths: Sequence[Path],
    since: set[Path] | None = None,
    metric: str | None = None,
    sort: str | None = None,
    baseline: Path | None = None,
) -> Report:
    """Read, group and judge; writes nothing. See `report`."""
    runs, skipped = collect(paths)
    groups = group_runs(runs)
    options = name_groups(groups)
    notes = split_sets(groups)
    wanted = _wanted(metric, runs)
    mark_pareto(groups, wanted)
    groups = _ordered(groups, options, wanted, sort)
    several = len(members(groups)) > 1
    trained = lay_out([group for group in groups if not group.is_evaluation], options, wanted, several)
    evaluated = lay_out([group for group in groups if group.is_evaluation], options, wanted, several)
    if any(group.pareto for group in groups):
        judged = {figure.title for alike in candidates(groups).values() if (figure := metric_of(alike, wanted))}
        names = {"time": "train time", "size": "file size", "latency": "latency"}
        costs = [word for name, word in names.items() if any(group.estimate(COSTS[name]) for group in groups)]
        notes.insert(
            0,
            f"{STAR} Pareto set of {' or '.join(sorted(judged))} against {', '.join(costs)}"
            f"{' inside each set' if len(members(groups)) > 1 else ''}; the words: the plots whose front it is on.",
        )
    if any(len(group.seeds) > 1 for group in groups):
        notes.append(
            "± is the half-width of the 95 % interval over seeds (Student's t); other figures are means over seeds."
        )
    notes += verdicts(groups, wanted) + cautions(groups)
    baseline = baseline or baseline_of(paths)
    paired = differences(groups, baseline, wanted) if baseline else Layout([])
    statuses = dict(Counter(str(run.record.status) for run in runs))
    if since is not None:
        before = {Path(path).resolve() for path in since}
        old = sum(run.file.resolve() in before or run.folder.resolve() in before for run in runs)
        notes.append(f"{len(runs) - old} of {len(runs)} runs are new, {old} were there before.")
    return Report(
        rows=text.rows(groups, wanted),
        statuses=statuses,
        notes=notes,
        unfinished=[_unfinished(run) for group in groups for run in group.runs if run.record.status != "completed"],
        skipped=skipped,
        title=_title(Counter(run.state for run in runs), len(groups)),
        layout=trained,
        by_set=_by_set(groups, options, wanted) if several and _told(trained, options) > MOST_OPTIONS else [],
        evaluations=evaluated,
        groups=groups,
        metric=wanted,
        paired=paired,
    )


def _told(layout: Layout, options: Sequence[str]) -> int:
    return sum(column.title in options for column in layout.columns)


def _by_set(groups: Sequence[Group], options: Sequence[str], metric: Figure | None) -> list[tuple[str, Layout]]:
    """A table for each set with the options that tell its own groups apart; sets of one group share the last one."""
    trained = [group for group in groups if group.completed and not group.is_evaluation]
    sets = {name: [group for group in alike if group in trained] for name, alike in members(trained).items()}
    parts = [(f"Set {name}", lay_out(alike, options, metric, False)) for name, alike in sets.items() if len(alike) > 1]
    alone = [group for group in trained if not group.set or len(sets[group.set]) == 1]
    return parts + ([("Alone in their sets", lay_out(alone, [], metric, True))] if alone else [])


def report(
    paths: Sequence[Path],
    out: Path | None = None,
    since: set[Path] | None = None,
    *,
    metric: str | None = None,
    sort: str | None = None,
    plots: bool = True,
    page: bool = True,
    baseline: Path | None = None,
) -> Report:
    """Report on all records among and under `paths`, and write the files into `out` (default: their common folder).

    `since` holds record files or run folders that were there before: a line says how many runs are new. FrugalError
    where no record is found or `out` cannot be written; where the default folder cannot be, a note says so and the
    table stands.
    """
    made = build(paths, since, metric, sort, baseline)
    if out is not None:
        made.write(Path(out), plots, page)
        return made
    try:
        made.write(common_folder(paths), plots, page)
    except RunError as error:
        made.notes.append(str(error))
    return made


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that holds all of `paths`, spelled as given where there is one."""
    folders = [path.parent if path.is_file() else path for path in map(Path, paths) if path.exists()]
    if len(set(folders)) == 1:
        return folders[0]
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    if common == Path(common.anchor):
        raise RunError(
            f"the folders given have no folder in common but {common}: report not written; give --out FOLDER"
        )
    try:
        return common.relative_to(Path.cwd())
    except ValueError:
        return common


def _wanted(metric: str | None, runs: Sequence[Run]) -> Figure | None:
    if metric is None:
        return None
    known = sorted({name for run in runs for name in run.record.quality})
    for name in (metric, f"test/{metric}"):
        if name in known:
            return next((figure for figure in FIGURES if figure.key == name), quality_figure(name))
    raise SettingsError(f"--metric {metric}: no record has it; there is {', '.join(known) or 'no quality at all'}")


def _ordered(groups: list[Group], options: list[str], metric: Figure | None, sort: str | None) -> list[Group]:
    """By set, then the best first: by quality, or by what `--sort` names (a column or a figure)."""
    if sort is None:
        judged = {name: metric_of(alike, metric) for name, alike in members(groups).items()}
        return sorted(groups, key=lambda g: (_place(g), *_value(g, judged.get(g.set)), not g.pareto, g.label))
    if sort in options:
        return sorted(groups, key=lambda g: (_place(g), _natural(g.options.get(sort, "")), g.label))
    figures = {name: f for f in reversed((*FIGURES, *([metric] if metric else []))) for name in (f.title, f.key)}
    if sort not in figures:
        names = [*options, *figures]
        near = difflib.get_close_matches(sort, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(names)}"
        raise SettingsError(f"--sort {sort}: no such column; {hint}")
    return sorted(groups, key=lambda g: (_place(g), *_value(g, figures[sort]), g.label))


def _place(group: Group) -> tuple[bool, int, str]:
    return (not group.set, len(group.set), group.set)


def _value(group: Group, figure: Figure | None) -> tuple[bool, float]:
    found = group.estimate(figure) if figure else None
    if figure is None or found is None:
        return (True, 0.0)
    return (False, -found.mean if figure.higher else found.mean)


def _natural(value: str) -> tuple[bool, float, str]:
    try:
        return (False, float(value), "")
    except ValueError:
        return (True, 0.0, value)


def _unfinished(run: Run) -> str:
    error = f": {one_line(run.record.error, MOST_OF_AN_ERROR)}" if run.record.error else ""
    return f"{run.state} {run.name}{error} [{run.folder}]"


def _title(statuses: Mapping[str, int], groups: int) -> str:
    total = sum(statuses.values())
    counts = ", ".join(f"{n} {status}" for status, n in sorted(statuses.items(), key=lambda item: -item[1]))
    return f"{total} run{'s' * (total != 1)} in {groups} group{'s' * (groups != 1)}: {counts}"


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, like every other verb."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"report: {one_line(message).removeprefix('argument ')}; see frugal report --help")

    @property
    def flags(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]


def main(argv: Sequence[str]) -> int:
    """The verb. Returns the exit code: 0, or FrugalError is raised where nothing was found or a flag is wrong."""
    parser = _Parser(
        prog="frugal report",
        description="Group finished runs over seeds, mark the Pareto set, write report.html, report.csv, report.md, "
        "pareto.png and, of the best classifier, confusion.png.",
    )
    parser.add_argument(
        "folder", nargs="*", type=Path, help="a run's folder, a folder that holds runs, or a record.json"
    )
    parser.add_argument("--out", type=Path, help="where the files go (default: the common folder of what is given)")
    parser.add_argument(
        "--sort", metavar="KEY", help="a column's or a figure's name; the best first (default: the quality)"
    )
    parser.add_argument("--metric", help="the quality to judge by (default: test/accuracy, else test/loss)")
    parser.add_argument("--no-plots", action="store_true", help="write no pareto.png")
    parser.add_argument("--no-page", action="store_true", help="write no report.html")
    given, unknown = parser.parse_known_intermixed_args(list(argv))
    if unknown:
        flag = unknown[0].partition("=")[0]
        raise SettingsError(f"{one_line(flag)}: {did_you_mean(flag, parser.flags)}")
    if not given.folder:
        raise SettingsError("report: name at least one folder: frugal report logs")

    from frugal.console import say

    made = build(given.folder, metric=given.metric, sort=given.sort)
    say(made.table)
    before = len(made.notes)
    files = made.write(given.out or common_folder(given.folder), plots=not given.no_plots, page=not given.no_page)
    for note in made.notes[before:]:
        say(note)
    say(written(files))
    return 0


def written(files: Sequence[Path]) -> str:
    """What lies where, and which of it a browser opens."""
    lines = [f"Written: {', '.join(shown(file) for file in files if file.name != PAGE)}"]
    lines += [f"Open in a browser: {shown(file)}" for file in files if file.name == PAGE]
    return "\n".join(lines)
