"""`sweep=paired`: what each variant changed, run by run against the baseline's run of the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from frugal.report.collect import job_folder
from frugal.report.comparable import metric_of
from frugal.report.figures import FIGURES, Figure
from frugal.report.group import Group
from frugal.report.stats import Difference, paired_difference
from frugal.report.table import Column, Layout
from frugal.report.units import significant

MARK = "paired.txt"  # in the folder of such a sweep, whose first job is the baseline's
COMPARED = ("test/loss", "train_s", "samples_per_s", "peak_private_bytes", "file_bytes", "latency_p50_ms")
COLUMNS = [
    Column("variant", right=False),
    Column("figure", right=False),
    Column("baseline"),
    Column("variant's"),
    Column("difference"),
    Column("seeds"),
    Column("verdict", right=False),
]


def baseline_of(paths: Sequence[Path]) -> Path | None:
    """The baseline's first run, where one paired sweep's folder is what is reported on."""
    if len(paths) != 1 or not (paths[0] / MARK).is_file():
        return None
    first = paths[0] / "jobs" / "00000.txt"
    return job_folder(first) if first.is_file() else None


def differences(groups: Sequence[Group], baseline: Path, wanted: Figure | None = None) -> Layout:
    """A line for each variant and figure: the mean difference over seeds with its 95 % interval (paired t).

    Empty where the baseline did not complete.
    """
    layout = Layout(COLUMNS)
    folder = baseline.resolve()
    base = next((g for g in groups if any(run.folder.resolve() == folder for run in g.runs)), None)
    if base is None or not base.completed:
        return layout
    metric = metric_of([base], wanted)
    chosen = ([metric] if metric else []) + [f for f in FIGURES if f.key in COMPARED and f is not metric]
    for group in groups:
        if group is base or group.is_evaluation:
            continue
        name = ", ".join(f"{k}={v}" for k, v in group.options.items() if base.options.get(k) != v) or group.label
        for figure in chosen:
            theirs, ours = base.by_seed(figure), group.by_seed(figure)
            difference = paired_difference(ours, theirs)
            if difference is None:
                continue
            shared = [seed for seed in ours if seed in theirs]
            means = [sum(values[seed] for seed in shared) / len(shared) for values in (theirs, ours)]
            half = "" if difference.half is None else f" ± {significant(difference.half / figure.per, 2)}"
            layout.cells.append(
                [
                    name,
                    f"{figure.title} {figure.unit}".strip(),
                    *(figure.show(mean) for mean in means),
                    f"{_signed(difference.mean / figure.per)}{half}",
                    str(len(shared)),
                    _verdict(difference, figure),
                ]
            )
            layout.marked.append(False)
            layout.sets.append("")
            name = ""
    return layout


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + significant(value, 2)


def _verdict(difference: Difference, figure: Figure) -> str:
    verdict = difference.verdict
    if difference.mean == difference.half == 0:
        return "the same"
    if verdict not in ("higher", "lower"):
        return verdict
    return f"{verdict}, {'better' if (verdict == 'higher') == figure.higher else 'worse'}"
