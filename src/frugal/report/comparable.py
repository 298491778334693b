"""Which groups may be compared: those whose fingerprints agree on what is not under study."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from frugal.record import Fingerprint
from frugal.report.figures import ACCURACY, COSTS, LOSS, Figure
from frugal.report.group import Group, differing_keys
from frugal.report.pareto import pareto
from frugal.report.stats import paired_difference
from frugal.report.units import one_line, significant

# A fingerprint's field is under study where it follows from keys (by their last part) that differ between the groups.
# Data are not among them: another data set is another task.
STUDIED_BY = {
    "effective_batch": {"batch_size", "accumulate_grad_batches", "devices", "num_nodes"},
    "threads": {"threads", "num_threads"},
    "device": {"accelerator", "devices", "num_nodes"},
}
FIELDS = tuple(field.name for field in dataclasses.fields(Fingerprint))


def split_sets(groups: Sequence[Group]) -> list[str]:
    """Give each group that completed its set (`A`, `B`, ... by number of runs); returns a line on the difference."""
    done = [group for group in groups if group.completed]
    fixed = [name for name in FIELDS if not _under_study(name, done)]
    sets: dict[tuple[Any, ...], list[Group]] = defaultdict(list)
    for group in done:
        sets[tuple(_field(group, name) for name in fixed)].append(group)
    order = sorted(sets, key=lambda key: -sum(len(group.completed) for group in sets[key]))
    for index, key in enumerate(order):
        for group in sets[key]:
            group.set = _letter(index)
    if len(order) < 2:
        return []
    apart = [i for i, _ in enumerate(fixed) if len({key[i] for key in order}) > 1]
    lines = [f"{_letter(n)}: " + ", ".join(f"{fixed[i]} {_show(key[i])}" for i in apart) for n, key in enumerate(order)]
    fields = ", ".join(fixed[i] for i in apart)
    return [f"Not comparable, since their fingerprints differ in {fields}: {'; '.join(lines)}."]


def _field(group: Group, name: str) -> Any:
    return getattr(group.completed[0].record.fingerprint, name)


def _under_study(name: str, groups: Sequence[Group]) -> bool:
    keys = [key for key in differing_keys(groups) if key.rpartition(".")[2] in STUDIED_BY.get(name, ())]
    implied: dict[tuple[Any, ...], Any] = {}
    for group in groups:
        value = _field(group, name)
        if implied.setdefault(tuple(group.leaves.get(key) for key in keys), value) != value:
            return False
    return bool(keys)


def _letter(index: int) -> str:
    return ("" if index < 26 else _letter(index // 26 - 1)) + chr(ord("A") + index % 26)


def _show(value: Any) -> str:
    text = one_line(value) if value not in ("", None) else "unknown"
    return text[:8] if len(text) == 64 and " " not in text else text  # a hash


def members(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Set -> its groups, in the order of the sets' names."""
    found: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        if group.set:
            found[group.set].append(group)
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def metric_of(groups: Sequence[Group], wanted: Figure | None = None) -> Figure | None:
    """What a set is judged by: the quality asked for, else test accuracy, else test loss; None where it has none."""
    for figure in [wanted] if wanted else [ACCURACY, LOSS]:
        if any(group.estimate(figure) for group in groups):
            return figure
    return None


def mark_pareto(groups: Sequence[Group], wanted: Figure | None = None) -> None:
    """Inside each set, fill `pareto` (quality against time, size and latency at once) and `fronts` (against one)."""
    for alike in members(groups).values():
        metric = metric_of(alike, wanted)
        if metric is None:
            continue
        sign = 1 if metric.higher else -1
        quality = [None if (e := g.estimate(metric)) is None else sign * e.mean for g in alike]
        costs = {name: [None if (e := g.estimate(f)) is None else e.mean for g in alike] for name, f in COSTS.items()}
        for group, member in zip(alike, pareto(list(zip(quality, *costs.values(), strict=True))), strict=True):
            group.pareto, group.fronts = member, []
        for name, cost in costs.items():
            for group, member in zip(alike, pareto(list(zip(quality, cost, strict=True))), strict=True):
                if member:
                    group.fronts.append(name)


def verdicts(groups: Sequence[Group], wanted: Figure | None = None) -> list[str]:
    """For each set a line: the best group, and which others, paired by seed, are within noise of it."""
    lines = []
    for name, alike in members(groups).items():
        metric = metric_of(alike, wanted)
        judged = [group for group in alike if metric and group.estimate(metric)]
        if metric is None or len(judged) < 2:
            continue
        best = (max if metric.higher else min)(judged, key=lambda g: g.estimate(metric).mean)  # type: ignore[union-attr]
        reference = best.by_seed(metric)
        near, unpaired = [], 0
        for other in judged:
            difference = None if other is best else paired_difference(other.by_seed(metric), reference)
            if difference is None or difference.half is None:
                unpaired += other is not best
            elif difference.verdict == "within noise":
                scale, unit = (100, " points") if metric.unit == "%" else (1, "")
                shown = f"{significant(scale * difference.mean, 2)} ± {significant(scale * difference.half, 2)}{unit}"
                near.append(f"{other.label} ({shown})")
        where = f"set {name}, " if len(members(groups)) > 1 else ""
        text = f"Best {where}{metric.title}: {best.label}."
        if near:
            shown = "; ".join(near[:8]) + (f"; and {len(near) - 8} more" if len(near) > 8 else "")
            text += f" Within noise of it, paired by seed: {shown}."
        elif unpaired < len(judged) - 1:
            text += " Paired by seed, no other is within noise of it."
        if unpaired:
            text += f" {unpaired} of {len(judged) - 1} others share fewer than two seeds with it: no verdict on those."
        lines.append(text)
    return lines


def cautions(groups: Sequence[Group]) -> list[str]:
    """What else a reader of the comparison must know: unequal seed sets, code that changed in between."""
    lines = []
    for name, alike in members(groups).items():
        where = f" in set {name}" if len(members(groups)) > 1 else ""
        seeds = {tuple(map(str, group.seeds)) for group in alike}
        if len(seeds) > 1:
            lines.append(f"Seed sets differ between groups{where}: means are not over the same seeds.")
        sources = {run.record.run.source_sha256 for group in alike for run in group.completed} - {""}
        if len(sources) > 1:
            lines.append(f"Source files changed between runs{where}: {len(sources)} versions of the code are compared.")
    return lines
