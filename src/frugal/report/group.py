"""Runs that differ only in their seed are one group; what tells the groups apart becomes the table's first columns."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from frugal.report.collect import Run
from frugal.report.figures import Figure
from frugal.report.stats import Estimate, estimate
from frugal.report.units import one_line

# Where results go and who is told does not change them (as in the identity of a run).
IGNORED_ROOTS = frozenset({"paths", "logger", "run", "choices", "experiment", "launch", "sweep", "hydra", "seed"})
KEPT_RUN_KEYS = frozenset({"weights", "monitor", "mode", "target", "target_metric"})
IGNORED_GROUPS = frozenset({"logger", "launch", "sweep", "paths"})
MISSING = "–"
EMPTY = frozenset({None, "null", '"none"', "{}", "[]"})  # no key, and the JSON of what says nothing

Leaves = dict[str, str]  # dotted key -> value as JSON


@dataclass
class Group:
    """Runs with one configuration (seeds apart) and, where they completed, one fingerprint."""

    leaves: Leaves
    runs: list[Run] = field(default_factory=list)
    set: str = ""  # the comparable set that it belongs to; empty where no run completed
    options: dict[str, str] = field(default_factory=dict)  # column -> value: what tells it from the other groups
    pareto: bool = False
    fronts: list[str] = field(default_factory=list)  # the costs in whose plot it lies on the front

    @property
    def completed(self) -> list[Run]:
        return [run for run in self.runs if run.record.status == "completed"]

    @property
    def is_evaluation(self) -> bool:
        return self.runs[0].is_evaluation

    @property
    def is_debug(self) -> bool:
        """Whether `debug=` shortened or changed it: its figures are those of no ordinary run."""
        return self.leaves.get("choices.debug") not in EMPTY

    @property
    def statuses(self) -> dict[str, int]:
        order = ("completed", "failed", "interrupted", "running", "refused")
        counts = {status: sum(run.record.status == status for run in self.runs) for status in order}
        return {status: n for status, n in counts.items() if n}

    @property
    def seeds(self) -> list[Any]:
        return sorted(
            {run.seed for run in self.completed}, key=lambda s: (s is None, str(type(s)), s if s is not None else 0)
        )

    @property
    def label(self) -> str:
        """What tells it from the others, or the run's name where nothing does."""
        return label(self.options) or self.runs[0].name

    def by_seed(self, figure: Figure) -> dict[Any, float]:
        """A value a seed. Repeats of a seed are no new evidence: they are averaged; runs without a seed each count."""
        values: dict[Any, list[float]] = defaultdict(list)
        for index, run in enumerate(self.completed):
            value = figure.value(run.record)
            if value is not None:
                values[("unseeded", index) if run.seed is None else run.seed].append(value)
        return {seed: sum(v) / len(v) for seed, v in values.items()}

    def estimate(self, figure: Figure) -> Estimate | None:
        return estimate(list(self.by_seed(figure).values()))


def label(options: Mapping[str, str]) -> str:
    """`lenet5, lr=0.1`: a word speaks for itself, a number or a none needs its name."""
    bare = re.compile(rf"[-+]?[\d.]+(e[-+]?\d+)?|\[.*|none|true|false|{MISSING}")
    return ", ".join(f"{name}={value}" if bare.fullmatch(value) else value for name, value in options.items())


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group over seeds. Completed runs of one configuration whose fingerprints differ become groups of their own."""
    flat = [configuration(run) for run in runs]
    _drop_followed_seeds(runs, flat)
    groups: dict[tuple[Any, ...], Group] = {}
    by_configuration: dict[frozenset[tuple[str, str]], list[Group]] = defaultdict(list)
    # Completed ones first: the others join them.
    for index in sorted(range(len(runs)), key=lambda i: (runs[i].record.status != "completed", i)):
        run, leaves = runs[index], flat[index]
        configured = frozenset(leaves.items())
        alike = by_configuration[configured]
        if run.record.status == "completed":
            # without a config nothing says that two runs are alike
            alone = (str(run.file),) if not leaves else ()
            key = (configured, _fingerprint(run), alone)
            if key not in groups:
                groups[key] = Group(leaves)
                alike.append(groups[key])
            groups[key].runs.append(run)
        elif alike and leaves:
            same = [g for g in alike if g.completed and _fingerprint(g.completed[0]) == _fingerprint(run)]
            (same or alike)[0].runs.append(run)
        else:
            key = (configured, ("not completed",), () if leaves else (str(run.file),))
            groups[key] = Group(leaves, [run])
            alike.append(groups[key])
    return list(groups.values())


def configuration(run: Run) -> Leaves:
    """The dotted leaves of a run's resolved config that decide its results, choices of options among them."""
    record = run.record
    leaves: Leaves = {}
    choices = record.config.get("choices")
    for name, option in (choices if isinstance(choices, dict) else {}).items():
        if name not in IGNORED_GROUPS and not str(name).startswith("hydra"):
            leaves[f"choices.{name}"] = _json(option)
    places = _places(run)
    for root, node in record.config.items():
        if root == "run" and isinstance(node, dict):
            node = {key: value for key, value in node.items() if key in KEPT_RUN_KEYS}
        elif root in IGNORED_ROOTS:
            continue
        for key, value in _flatten(node, str(root)):
            if not (isinstance(value, str) and _is_place(value, places, record.run.hash)):
                leaves[key] = _json(value)
    return leaves


def _flatten(node: Any, key: str) -> Iterable[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from _flatten(child, f"{key}.{name}")
    else:
        yield key, node


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def _places(run: Run) -> list[str]:
    paths = run.record.config.get("paths")
    known = [p for p in paths.values() if isinstance(p, str) and len(p) > 1] if isinstance(paths, dict) else []
    return [*known, str(run.folder), str(run.folder.resolve())]


def _is_place(value: str, places: list[str], run_hash: str) -> bool:
    """Whether a value is only a place of this run or machine (a resolved `${paths.data_dir}`), not a setting."""
    if len(run_hash) >= 6 and run_hash in value:
        return True
    return value in places or any(value.startswith(f"{place.rstrip('/')}/") for place in places[-2:])


def _drop_followed_seeds(runs: Sequence[Run], flat: list[Leaves]) -> None:
    """Take out resolved copies of the seed (`data.seed: ${seed}`), but keep a fixed `split_seed` that equals it.

    A key is a copy where it equals the seed in every run; or, among runs that agree in all else, in every one of them,
    if these have more than one seed (one alone may equal anything by chance).
    """
    buckets: dict[frozenset[tuple[str, str]], list[int]] = defaultdict(list)
    for index, leaves in enumerate(flat):
        buckets[frozenset(item for item in leaves.items() if not _is_seed(item[0]))].append(index)
    several = [indices for indices in buckets.values() if len({_json(runs[i].seed) for i in indices}) > 1]
    for indices in [list(range(len(runs))), *several]:
        for key in {key for i in indices for key in flat[i] if _is_seed(key)}:
            having = [i for i in indices if key in flat[i]]
            if all(flat[i][key] == _json(runs[i].seed) for i in having):
                for i in having:
                    del flat[i][key]


def _is_seed(key: str) -> bool:
    last = key.rpartition(".")[2]
    return last == "seed" or last.endswith("_seed")


def _fingerprint(run: Run) -> tuple[Any, ...]:
    return tuple(vars(run.record.fingerprint).values())


# ---------------------------------------------------------------------------------------------------------- columns
def name_groups(groups: Sequence[Group]) -> list[str]:
    """Fill each group's `options` with what tells them apart; returns the columns: options chosen, then single keys.

    A key that only follows from the options chosen (`model.hidden` from `model=lenet5`) is left out, unless a command
    named it; so is one that only some have, with nothing to say in the others (`_only_absent`). Evaluations are named
    apart (`run`: what was evaluated), since they have hardly a key in common with trainings.
    """
    for group in groups:
        group.options = {}
    trained = _name([group for group in groups if group.leaves and not group.is_evaluation])
    evaluated = _name([group for group in groups if group.leaves and group.is_evaluation])
    return list(dict.fromkeys([*trained, *evaluated]))


def _name(groups: Sequence[Group]) -> list[str]:
    """Fill the options of groups of one kind."""
    differing = [key for key in differing_keys(groups) if key != "source"]
    chosen = [key for key in differing if key.startswith("choices.")]
    named = _named_in_commands(groups)
    differing = [key for key in differing if not _only_absent(key, key in chosen or key in named, groups)]
    chosen = [key for key in chosen if key in differing]
    kept: list[str] = []
    seen: set[tuple[Any, ...]] = set()
    for key in [*chosen, *(k for k in differing if not k.startswith("choices."))]:
        column = tuple(group.leaves.get(key) for group in groups)
        if key not in chosen and key not in named and _follows(key, chosen, groups):
            continue
        # `module.lr: ${optim.lr}` says the same again
        alike = (key.rpartition(".")[2], *column)
        if alike not in seen:
            seen.add(alike)
            kept.append(key)
    titles = _short([key.removeprefix("choices.") for key in kept])
    for group in groups:
        group.options = {title: show_value(group.leaves.get(key)) for title, key in zip(titles, kept, strict=True)}
    done = [group for group in groups if group.completed]
    configurations = {frozenset(group.leaves.items()) for group in done}
    clash = len({tuple(group.options.values()) for group in done}) < len(configurations)
    if clash or (groups and groups[0].is_evaluation):
        _prepend_names(groups)
        titles = ["run", *(title for title in titles if title != "run")]
    return titles


def _prepend_names(groups: Sequence[Group]) -> None:
    """A `run` column of short names, of whole ones where the short clash."""
    short = [group.runs[0].short_name for group in groups]
    for group, name in zip(groups, short, strict=True):
        shown = name if short.count(name) == 1 else group.runs[0].name
        group.options = {"run": shown, **{title: v for title, v in group.options.items() if title != "run"}}


def _only_absent(key: str, asked: bool, groups: Sequence[Group]) -> bool:
    """Whether groups differ in `key` only by having it or not: older records lack what newer ones have.

    No key and an empty value (null, none, {}) are the same. An option that was chosen, or a value that a command named,
    counts against lacking it; any other value that all who have the key share does not.
    """
    values = {group.leaves.get(key) for group in groups}
    telling = values - EMPTY
    if not telling:
        return True
    return None in values and len(values) == 2 and not asked


def differing_keys(groups: Sequence[Group]) -> list[str]:
    keys = sorted({key for group in groups for key in group.leaves})
    return [key for key in keys if len({group.leaves.get(key) for group in groups}) > 1]


def _follows(key: str, chosen: list[str], groups: Sequence[Group]) -> bool:
    implied: dict[tuple[Any, ...], Any] = {}
    for group in groups:
        choice = tuple(group.leaves.get(name) for name in chosen)
        if implied.setdefault(choice, group.leaves.get(key)) != group.leaves.get(key):
            return False
    return True


def _named_in_commands(groups: Sequence[Group]) -> set[str]:
    commands = {run.record.run.command for group in groups for run in group.runs}
    return {key for command in commands for key in re.findall(r"([\w.]+)=", str(command))}


def _short(keys: Sequence[str]) -> list[str]:
    """The last parts of dotted keys, as many as it takes to tell them apart."""
    parts = [key.split(".") for key in keys]
    length = [1] * len(keys)
    while True:
        names = [".".join(p[-n:]) for p, n in zip(parts, length, strict=True)]
        clash = [i for i, name in enumerate(names) if names.count(name) > 1 and length[i] < len(parts[i])]
        if not clash:
            return [one_line(name) for name in names]
        for i in clash:
            length[i] += 1


def show_value(value: str | None) -> str:
    """A leaf's JSON as a person writes it."""
    if value is None or value == "null":
        return MISSING if value is None else "none"
    plain = json.loads(value)
    if isinstance(plain, bool):
        return str(plain).lower()
    if isinstance(plain, float):
        return f"{plain:g}"
    if isinstance(plain, list):
        return "[" + ", ".join(one_line(item) for item in plain) + "]"
    return one_line(plain)
