"""Which groups may be compared: those whose fingerprints agree on what is not under study."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from frugal.record import Fingerprint
from frugal.report.collect import number
from frugal.report.figures import ACCURACY, BITS, COSTS, LOSS, Figure
from frugal.report.group import Group, differing_keys, label
from frugal.report.pareto import pareto
from frugal.report.stats import paired_difference
from frugal.report.units import one_line, significant

# A fingerprint's field is under study where it follows from keys (by their last part) that differ between the groups.
# Data are not among them: another data set is another task.
STUDIED_BY = {
    "effective_batch": {"batch_size", "accumulate_grad_batches", "devices", "num_nodes"},
    "threads": {"threads", "num_threads"},
    "precision": {"precision", "mode", "matmul", "emulate"},
    "device": {"accelerator", "devices", "num_nodes"},
}
FIELDS = tuple(field.name for field in dataclasses.fields(Fingerprint))


CHOSEN = "chosen by the step's size"  # stands for a number of threads that Frugal chose: it follows from the model


def split_sets(groups: Sequence[Group]) -> list[str]:
    """Give each group that completed its set (`A`, `B`, ... by number of runs); returns a line on the difference.

    Debug runs (`debug=one_batch`) get none: they are shown, and neither judged nor on a Pareto front.
    """
    debugged = [group for group in groups if group.completed and group.is_debug]
    done = [group for group in groups if group.completed and not group.is_debug]
    notes = [f"Debug runs are shown, not judged: {_some([group.label for group in debugged])}."] if debugged else []
    follow = _threads_follow(done)
    fixed = [name for name in FIELDS if not _under_study(name, done, follow)]
    sets: dict[tuple[Any, ...], list[Group]] = defaultdict(list)
    for group in sorted(done, key=lambda g: _field(g, "effective_batch") is None):  # those without a batch join others
        key = tuple(_compared(group, name, follow) for name in fixed)
        sets[next((known for known in sets if _fits(key, known, fixed)), key)].append(group)
    order = sorted(sets, key=lambda key: -sum(len(group.completed) for group in sets[key]))
    for index, key in enumerate(order):
        for group in sets[key]:
            group.set = _letter(index)
    if len(order) < 2:
        return notes
    apart = [i for i, _ in enumerate(fixed) if len({key[i] for key in order}) > 1]
    lines = [f"{_letter(n)}: " + ", ".join(f"{fixed[i]} {_show(key[i])}" for i in apart) for n, key in enumerate(order)]
    fields = ", ".join(fixed[i] for i in apart)
    return [*notes, f"Not comparable, since their fingerprints differ in {fields}: {'; '.join(lines)}."]


def _fits(key: tuple[Any, ...], known: tuple[Any, ...], names: Sequence[str]) -> bool:
    """Whether a group belongs into a set. An evaluation has no effective batch: it fits into a set with any."""
    return all(
        mine == theirs or (name == "effective_batch" and mine is None)
        for mine, theirs, name in zip(key, known, names, strict=True)
    )


def _chose_threads(group: Group) -> bool:
    return group.leaves.get("trainer.threads") == "null"


def _threads_follow(groups: Sequence[Group]) -> bool:
    """Whether the numbers that Frugal chose (`trainer.threads: null`) follow from the configuration.

    Where one configuration ran with two numbers, the machine made the difference.
    """
    numbers: dict[frozenset[tuple[str, str]], Any] = {}
    return all(
        numbers.setdefault(frozenset(group.leaves.items()), _field(group, "threads")) == _field(group, "threads")
        for group in groups
        if _chose_threads(group)
    )


def _compared(group: Group, name: str, threads_follow: bool) -> Any:
    return CHOSEN if name == "threads" and threads_follow and _chose_threads(group) else _field(group, name)


def _field(group: Group, name: str) -> Any:
    record = group.completed[0].record
    if name == "data_sha256" and isinstance(text := record.data.get("text_sha256"), str):
        return text  # the same text in other tokens is the same task: bits per byte compare
    return getattr(record.fingerprint, name)


def _under_study(name: str, groups: Sequence[Group], threads_follow: bool) -> bool:
    keys = [key for key in differing_keys(groups) if key.rpartition(".")[2] in STUDIED_BY.get(name, ())]
    implied: dict[tuple[Any, ...], Any] = {}
    for group in groups:
        value = _compared(group, name, threads_follow)
        if name == "effective_batch" and value is None:
            continue
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


def candidates(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Set -> the groups to judge: its trainings, or its evaluations where it has no training.

    An evaluation shows again what a training made; beside it, it would be a rival without a train time.
    """
    return {name: [g for g in alike if not g.is_evaluation] or alike for name, alike in members(groups).items()}


def metric_of(groups: Sequence[Group], wanted: Figure | None = None) -> Figure | None:
    """What a set is judged by; None where it has none of that.

    The quality asked for, else test accuracy, else test loss, or bits per byte where the same text came in different
    tokens, whose losses do not compare.
    """
    tokens = {run.record.fingerprint.data_sha256 for group in groups for run in group.completed}
    for figure in [wanted] if wanted else [ACCURACY, LOSS if len(tokens) < 2 else BITS]:
        if any(group.estimate(figure) for group in groups):
            return figure
    return None


def best_of(groups: Sequence[Group], metric: Figure) -> Group | None:
    """The one with the best mean of `metric`, of equals one in the Pareto set; None where none has it."""
    sign = 1 if metric.higher else -1
    means = [(sign * found.mean, group) for group in groups if (found := group.estimate(metric))]
    return max(means, key=lambda item: (item[0], item[1].pareto))[1] if means else None


def mark_pareto(groups: Sequence[Group], wanted: Figure | None = None) -> None:
    """Inside each set, fill `pareto` (quality against time, size and latency at once) and `fronts` (against one)."""
    for alike in candidates(groups).values():
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
    for name, alike in candidates(groups).items():
        metric = metric_of(alike, wanted)
        judged = [group for group in alike if metric and group.estimate(metric)]
        if metric is None or len(judged) < 2:
            continue
        best = best_of(judged, metric)
        assert best is not None
        reference = best.by_seed(metric)
        near, unpaired = [], 0
        for other in judged:
            difference = None if other is best else paired_difference(other.by_seed(metric), reference)
            if difference is None or difference.half is None:
                unpaired += other is not best
            elif difference.verdict == "within noise":
                scale, unit = (100, " points") if metric.unit == "%" else (1, "")
                shown = f"{significant(scale * difference.mean, 2)} ± {significant(scale * difference.half, 2)}{unit}"
                near.append(f"{_label_among(other, judged)} ({shown})")
        where = f"set {name}, " if len(members(groups)) > 1 else ""
        text = f"Best {where}{metric.title}: {_label_among(best, judged)}."
        if near:
            shown = "; ".join(near[:8]) + (f"; and {len(near) - 8} more" if len(near) > 8 else "")
            text += f" Within noise of it, paired by seed: {shown}."
        elif unpaired < len(judged) - 1:
            text += " Paired by seed, no other is within noise of it."
        if unpaired:
            text += f" {unpaired} of {len(judged) - 1} others share fewer than two seeds with it: no verdict on those."
        lines.append(text)
    return lines


def _label_among(group: Group, groups: Sequence[Group]) -> str:
    """What tells it from the others of its set; what the whole set shares is left out."""
    telling = {k: v for k, v in group.options.items() if any(other.options.get(k) != v for other in groups)}
    return label(telling) or group.label


def cautions(groups: Sequence[Group]) -> list[str]:
    """What else a reader of the comparison must know: unequal seeds or threads, code that changed, a lost loss."""
    lines = []
    for name, alike in members(groups).items():
        where = f" in set {name}" if len(members(groups)) > 1 else ""
        judged = candidates(groups)[name]
        seeds = {tuple(map(str, group.seeds)) for group in judged}
        if len(seeds) > 1:
            lines.append(f"Seed sets differ between groups{where}: means are not over the same seeds.")
        lines += _on_threads(judged, where)
        sources = {run.record.run.source_sha256 for group in alike for run in group.completed} - {""}
        if len(sources) > 1:
            lines.append(f"Source files changed between runs{where}: {len(sources)} versions of the code are compared.")
    return lines + _not_finite(groups)


def _on_threads(groups: Sequence[Group], where: str) -> list[str]:
    by_number: dict[Any, list[str]] = defaultdict(list)
    for group in groups:
        if _chose_threads(group):
            by_number[_field(group, "threads")].append(group.label)
    if len(by_number) < 2:
        return []
    shown = "; ".join(
        f"{n} for {_some(names, ' / ')}" for n, names in sorted(by_number.items(), key=lambda item: str(item[0]))
    )
    return [f"Threads{where} were chosen by the step's size: {shown}."]


def _not_finite(groups: Sequence[Group]) -> list[str]:
    """A line for qualities that were NaN or infinite in some runs, which the record has as null with a reason."""
    found: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        for run in group.completed:
            for key in run.record.absent:
                metric = key.removeprefix("quality.")
                if metric != key and number(run.record.quality.get(metric)) is None:
                    found[one_line(metric).removeprefix("test/")].append(run.name)
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for metric, names in found.items():
        alike[tuple(names)].append(metric)
    return [f"{', '.join(metrics)} not finite in {_some(names)}." for names, metrics in alike.items()]


def _some(names: Sequence[str], between: str = "; ", most: int = 3) -> str:
    return between.join(names[:most]) + (f"{between}and {len(names) - most} more" if len(names) > most else "")
