"""Writes docs/options.md from the heads and inline comments of configs/ and from the typed schema: `make docs`.

An option file says what it is (its first comment lines), the command that runs it, and its knobs with their defaults
and comments. Nothing is written here but what a group is for; tests/test_docs.py fails where the page is stale.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import MISSING

from frugal import settings

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PAGE = ROOT / "docs" / "options.md"

GROUPS = {
    "trainer": "How long and on what device. All its keys stand under Settings of trainer.",
    "precision": "In which numbers weights are kept and products computed.",
    "strategy": "How several processes or devices share one run.",
    "compile": "Whether torch.compile makes the network's kernels.",
    "budget": "What a run may cost, and where it ends.",
    "launch": "How the jobs of a sweep are started.",
    "sweep": "Which jobs a sweep has.",
    "tokenizer": "From text to ids and back. Images and tables have none.",
    "preprocess": "What happens to samples before a network sees them: cleaning, scaling, augmentation.",
    "curriculum": "What of a sample is shown when, as training goes on.",
    "optim": "The optimizer.",
    "schedule": "How the learning rate moves over the run. Lengths are fractions of the run.",
    "model": "The network and its loss. An option says which tasks it is for.",
    "data": "The data set: where it comes from, how it is split and batched. An option may bring what suits it.",
    "callbacks": "Lightning callbacks beside Frugal's own, each under a name.",
    "selection": "Which training samples are used.",
    "distillation": "Training by a teacher's outputs.",
    "pruning": "Fewer weights.",
    "quantization": "Fewer bits a weight.",
    "coding": "How the artefact is written: fewer bytes on disk.",
    "deploy": "What the artefact runs on.",
    "measure": "How thoroughly the artefact's latency is measured at the end.",
    "debug": "Short runs that look for a fault. They go to `logs/debug`.",
    "logger": "Where metrics go while a run is under way. `record.json` is written whatever is chosen.",
    "experiment": "Whole recipes: each says what was expected and what was seen. The command line wins over them.",
}
SECTIONS = {
    "paths": "Folders.",
    "run": "The run itself: its name, its end, how it is continued.",
    "trainer": "The arguments of Lightning's Trainer, under Lightning's names; only `threads` is Frugal's.",
    "precision": "What the options of the group `precision` set.",
    "compile": "What the options of the group `compile` set.",
    "budget": "Where a run ends, one of them; what was spent stands in the record.",
    "launch": "How a sweep's jobs are started.",
    "sweep": "What a search or a paired comparison does.",
    "measure": "What is measured. `latency` is what the options of the group `measure` set.",
    "debug": "What the options of the group `debug` set.",
}
SAID_APART = ("_target_", "_partial_", "defaults", "needs", "excludes", "task")


class Knob(NamedTuple):
    key: str
    default: str  # as the file writes it; empty for a section
    comment: str


@dataclasses.dataclass
class Option:
    """One file under configs/: what its comments and keys say."""

    group: str
    name: str
    about: str
    commands: list[str]
    facts: list[str]  # the task, what it brings, needs and excludes, a sentence each
    knobs: list[Knob]
    is_global: bool  # its keys are the settings' own: it sets them and adds none


def read_option(path: Path) -> Option:
    """Parse an option file. Raises ValueError where its head lacks what it is or a command."""
    text = path.read_text()
    head = [line[1:].strip() for line in text[: len(text) - len(_without_head(text))].splitlines()]
    said = [line for line in head if line and not line.startswith("@package")]
    commands = [line for line in said if line.startswith("frugal ")]
    about = " ".join(line for line in said if not line.startswith("frugal "))
    if not about or not commands:
        raise ValueError(f"{path}: its first comment lines must say what it is and a command to run it")
    is_global = "@package _global_" in head
    option = Option(path.parent.name, path.stem, about, commands, [], [], is_global)
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        lines = text.splitlines()
        prefix = "" if is_global else option.group
        option.knobs = list(_knobs(root, prefix, lines))
        option.facts = list(_facts(root, lines))
    return option


def _without_head(text: str) -> str:
    return re.sub(r"\A(#.*\n)+", "", text)


def _comment(node: yaml.Node, lines: list[str]) -> str:
    """What stands behind a node on its line, and any comment lines above it."""
    above: list[str] = []
    for line in reversed(lines[: node.start_mark.line]):
        if not line.startswith(" ") or not line.strip().startswith("#"):
            break
        above.insert(0, line.strip("# "))
    behind = re.match(r"[\s:\]}]*#\s*(.*)", lines[node.end_mark.line][node.end_mark.column :])
    return " ".join([*above, *([behind[1]] if behind else [])])


def _knobs(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[Knob]:
    for name, value in node.value:
        if name.value in SAID_APART:
            continue
        key = f"{prefix}.{name.value}" if prefix else name.value
        if isinstance(value, yaml.MappingNode) and value.value:
            if comment := _comment(name, lines):
                yield Knob(key, "", comment)
            yield from _knobs(value, key, lines)
        else:
            yield Knob(key, _source(value), _comment(value, lines) or _comment(name, lines))


def _source(node: yaml.Node) -> str:
    buffer = node.start_mark.buffer or ""
    text = buffer[node.start_mark.pointer : node.end_mark.pointer].rstrip("\0")
    return " ".join(text.split()) or "null"


def _values(node: yaml.Node) -> str:
    """Of `needs` and `excludes`: values, or values with the reason."""
    if isinstance(node, yaml.MappingNode):
        named = ((value.value, why.value) for value, why in node.value)
        return "; ".join(f"of any kind ({why})" if value == "any" else f"`{value}` ({why})" for value, why in named)
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    return " or ".join(f"`{item.value}`" for item in items)


def _facts(root: yaml.MappingNode, lines: list[str]) -> Iterator[str]:
    for name, value in root.value:
        if name.value == "task":
            yield f"Task: `{value.value}`{_aside(value, lines)}."
        elif name.value in ("needs", "excludes"):
            said = "Needs" if name.value == "needs" else "Not with"
            for key, allowed in value.value:
                yield f"{said} `{key.value}` {_values(allowed)}{_aside(value, lines)}."
        elif name.value == "defaults":
            brought = [
                f"`{group.value.removeprefix('override /').split('@')[0]}={option.value}`{_aside(option, lines)}"
                for item in value.value
                if isinstance(item, yaml.MappingNode)
                for group, option in item.value
            ]
            plain = [item.value for item in value.value if isinstance(item, yaml.ScalarNode)]
            beside = [f"`{name}`" for name in plain if name != "_self_"]
            if brought:
                yield f"Brings {', '.join(brought)}."
            if beside:
                yield f"With {', '.join(beside)}."


def _aside(node: yaml.Node, lines: list[str]) -> str:
    comment = _comment(node, lines)
    return f" ({comment})" if comment else ""


# ------------------------------------------------------------------------------------------------------------ settings
def fields(schema: type) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and comment of a dataclass's fields, in order; sections and groups are left out."""
    source = inspect.getsource(schema)
    lines, instance = source.splitlines(), schema()
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for item in definition.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        value = getattr(instance, item.target.id)
        if dataclasses.is_dataclass(value) or (schema is settings.Train and item.target.id in GROUPS):
            continue
        behind = re.match(r"\s*#\s*(.*)", lines[item.end_lineno - 1][item.end_col_offset :])  # type: ignore[operator]
        kind = {"Any": ""}.get(ast.unparse(item.annotation), ast.unparse(item.annotation))
        yield item.target.id, kind, _yaml(value), behind[1] if behind else ""


def _yaml(value: Any) -> str:
    if value == MISSING:
        return ""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).replace("\n...", "").strip()


def _settings(schema: type, prefix: str, given: dict[str, Any]) -> str:
    rows = []
    for name, kind, default, comment in fields(schema):
        key = f"{prefix}{name}"
        if key in settings.CHOICES:
            kind = ", ".join(settings.CHOICES[key])
        shown = str(given[name]) if name in given else default
        least = f"at least {settings.MINIMA[key]}" if settings.MINIMA.get(key) else ""
        rows.append([_code(key), kind, _code(shown), _text("; ".join(part for part in (comment, least) if part))])
    return _table(["setting", "type or choices", "default", "meaning"], rows)


# ---------------------------------------------------------------------------------------------------------------- page
def groups() -> list[str]:
    """The groups that have options, in train.yaml's order: what stands lower may bring what stands above it."""
    chosen = [
        next(iter(item)) for item in yaml.safe_load((CONFIGS / "train.yaml").read_text())["defaults"] if _is_group(item)
    ]
    return [group for group in chosen if (CONFIGS / group).is_dir()]


def _is_group(item: Any) -> bool:
    return isinstance(item, dict) and not next(iter(item)).startswith("override")


def options(group: str) -> list[Option]:
    return [read_option(path) for path in sorted((CONFIGS / group).glob("*.yaml"))]


def page() -> str:
    """The whole page."""
    found = {group: options(group) for group in groups()}
    train = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    chosen = {group: option for item in train["defaults"] if _is_group(item) for group, option in item.items()}
    listed = [
        [f"[{group}](#{group})", GROUPS[group], ", ".join(_link(o, chosen[group]) for o in members)]
        for group, members in found.items()
    ]
    parts = [
        "# Every group, option and setting",
        "Made by `make docs` from the comments of `configs/` and `src/frugal/settings.py`: mend it there. An option is "
        "chosen by `GROUP=OPTION`, a key set by `KEY=VALUE`, as in `frugal train model=lenet5 optim.lr=0.05`. "
        "`frugal train --help` lists them in the terminal; `frugal train --cfg job` shows what a command would run.",
        _table(["group", "what it is for", "options, the default in bold"], listed),
        f"Settings that every run has: {', '.join(f'[{name}](#settings-of-{name})' for name in SECTIONS)}. "
        "Other verbs: [evaluate](#evaluate), [predict](#predict).",
    ]
    for group, members in found.items():
        parts += [f"## {group}", GROUPS[group], *(part for option in members for part in _option(option))]
    parts += ["## Settings of every run", _settings(settings.Train, "", train)]
    for name, about in SECTIONS.items():
        parts += [
            f"## Settings of {name}",
            about,
            _settings(settings.SECTIONS[name], f"{name}.", train.get(name) or {}),
        ]
    parts += [
        "## evaluate",
        "`frugal evaluate RUN` takes `data=`, `measure=`, `trainer.` and `logger=` as above; all else is the run's.",
        "## predict",
        "What `frugal predict RUN` takes; `frugal predict --help` says what of it is for which kind of model.",
        _settings(settings.Predict, "", {}),
        _settings(settings.GenerateSettings, "generate.", {}),
    ]
    return "\n\n".join(parts) + "\n"


def _option(option: Option) -> Iterator[str]:
    yield f"### {option.group}={option.name}"
    yield _text(" ".join([option.about, *option.facts]))
    yield "\n".join(["```", *option.commands, "```"])
    if option.knobs and option.is_global:
        asides = [f" ({_text(knob.comment)})" if knob.comment else "" for knob in option.knobs]
        sets = [f"`{knob.key}={knob.default}`{aside}" for knob, aside in zip(option.knobs, asides, strict=True)]
        yield f"Sets {', '.join(sets)}."
    elif option.knobs:
        yield _table(
            ["key", "default", "meaning"], [[_code(k.key), _code(k.default), _text(k.comment)] for k in option.knobs]
        )


def _link(option: Option, default: str | None) -> str:
    link = f"[{option.name}](#{option.group}{option.name})"
    return f"**{link}**" if option.name == default else link


def _code(text: str) -> str:
    if text == MISSING:
        return "needs a value"
    return f"`{text}`" if text else ""


def _text(text: str) -> str:
    """Prose of a comment as Markdown: what would be read as markup stands for itself."""
    return re.sub(r"([*<]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"Written: {PAGE.relative_to(ROOT)}")
