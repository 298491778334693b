"""What a job is called, and when two jobs are the same.

The hash is of the group choices that differ from the verb's defaults and of the leaves that differ from what those
choices compose to, without paths, loggers and launchers: a new option with a default changes no old hash (the idea is
that of facebookresearch/open_lth, foundations/desc.py). Torch-free: a sweep skips its finished jobs before torch is
imported.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from frugal import settings
from frugal.compose import Choices, compose
from frugal.errors import RunError
from frugal.paths import find_weights

# Where results go and who is told does not change them.
IGNORED_ROOTS = {"paths", "logger", "run", "choices", "launch", "sweep"}
# ... except what decides the weights that become the artefact, and what the record says of them.
KEPT_RUN_KEYS = {"weights", "monitor", "mode", "target", "target_metric", "target_mode", "test"}
IGNORED_GROUPS = {"logger", "launch", "sweep"}
# Keys that name weights to read: what counts is what lies there, not where.
WEIGHTS_KEYS = {"model.init_from", "distillation.teacher", "source"}
# Groups whose options may bring those of others, the first the most.
BRINGERS = ("data", "model")
# ... and how thoroughly it was measured is part of the hash, but not of the name.
UNNAMED_GROUPS = IGNORED_GROUPS | {"experiment", "measure"}


@dataclass(frozen=True)
class Identity:
    name: str  # short and readable
    hash: str  # eight hexadecimal digits
    source_sha256: str
    data_sha256: str


def identify(
    cfg: DictConfig, choices: Choices, verb: str = "train", sources: Sequence[Any] = (), data_sha256: str = ""
) -> Identity:
    """Name and hash of a composed job; `sources` as in `compose`."""
    frozen = tuple(tuple(sorted(dict(s).items())) for s in sources)
    _, base = _reference(verb, (), frozen)

    def words(chosen: Mapping[str, str | None]) -> tuple[str, ...]:
        """Overrides that choose these options; a group that the defaults do not know is added."""
        return tuple(f"{'' if g in base else '+'}{g}={o or 'null'}" for g, o in sorted(chosen.items()))

    chosen = {g: o for g, o in choices.items() if o != base.get(g) and g not in IGNORED_GROUPS}
    reference, _ = _reference(verb, words(chosen), frozen)
    ours = dict(leaves(cfg))
    changed = difference(ours, reference) | from_outside(cfg, ours)
    payload = json.dumps({"choices": chosen, "leaves": changed}, sort_keys=True, default=str)
    digest = hashlib.sha256(payload.encode()).hexdigest()[:8]

    # The folder is the experiment's, so the name says only what differs from that.
    experiment = {"experiment": choices["experiment"]} if choices.get("experiment") else {}
    under, implied = _reference(verb, words(experiment), frozen)
    named: dict[str, str | None] = {}
    # an option may bring others, which then go without saying: data its model, a model its optimizer
    for group in sorted(choices, key=lambda g: (BRINGERS.index(g) if g in BRINGERS else len(BRINGERS), g)):
        if choices[group] != implied.get(group) and group not in UNNAMED_GROUPS:
            named[group] = choices[group]
            under, implied = _reference(verb, words({**experiment, **named}), frozen)
    shown = {key: value for key, value in difference(ours, under).items() if key.split(".")[0] not in UNNAMED_GROUPS}
    return Identity(short_name(named, shown), digest, source_sha256(sources), data_sha256)


@functools.lru_cache(maxsize=64)
def _reference(verb: str, overrides: tuple[str, ...], sources: tuple[Any, ...]) -> tuple[dict[str, Any], Choices]:
    """The leaves and choices of what these overrides compose to."""
    cfg, choices = compose(verb, overrides, [dict(s) for s in sources])
    return dict(leaves(cfg)), choices


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted leaves of ours that theirs lack or have otherwise; a leaf that ours lack is "~"."""
    changed = {key: value for key, value in ours.items() if key not in theirs or theirs[key] != value}
    changed.update({key: "~" for key in theirs if key not in ours})
    return dict(sorted(changed.items()))


def from_outside(cfg: DictConfig, ours: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings take from elsewhere, as it is now: values of the environment, and the weights of other runs."""
    found: dict[str, Any] = {}
    for key, value in ours.items():
        if isinstance(value, str) and "${oc." in value and "${paths." not in value:
            with contextlib.suppress(OmegaConfBaseException):  # so is a variable that is not set
                found[key] = OmegaConf.select(cfg, key)
        elif key in WEIGHTS_KEYS and isinstance(value, str) and value != "???":
            with contextlib.suppress(RunError):  # weights that are missing are refused elsewhere
                found[key] = hashlib.sha256(find_weights(Path(value)).read_bytes()).hexdigest()
    return found


def leaves(cfg: Any) -> Iterable[tuple[str, Any]]:
    """Dotted keys and values of what makes a run what it is."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)

    def walk(node: Any, key: str) -> Iterable[tuple[str, Any]]:
        if isinstance(node, dict) and node:
            for name, child in node.items():
                yield from walk(child, f"{key}.{name}" if key else str(name))
        else:
            # 1 and 1.0 are one value
            yield key, int(node) if isinstance(node, float) and node.is_integer() else node

    for root, node in plain.items():
        if root == "run":
            node = {k: v for k, v in node.items() if k in KEPT_RUN_KEYS}
        elif root in IGNORED_ROOTS or ("source" in plain and root in settings.FROM_THE_RUN):
            continue
        yield from walk(node, str(root))


def short_name(choices: Mapping[str, str | None], leaves: Mapping[str, Any]) -> str:
    """Readable and safe for a file name: options by their names, values by the last part of their keys."""
    words = [
        option if option not in (None, "none", "null") else f"no_{group}" for group, option in sorted(choices.items())
    ]
    # the seed last, so that the runs of one setting lie side by side in a listing
    for key in sorted(leaves, key=lambda k: (k == "seed", k)):
        value = leaves[key]
        if key == "source":  # an evaluation is called after the run, not after where it lies
            path = Path(str(value))
            folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
            words.append(path.name if path.suffix not in (".ckpt", ".safetensors") else f"{folder.name}-{path.stem}")
            continue
        if key in WEIGHTS_KEYS:  # of a run its hash says enough
            words.append(f"from_{Path(str(value)).name.rpartition('-')[2]}")
            continue
        shown = "x".join(str(v) for v in value) if isinstance(value, list) else str(value)
        words.append(f"{key.rpartition('.')[2]}{shown}" if key != "seed" else f"seed{shown}")
    text = "-".join(str(word) for word in words) or "defaults"
    text = re.sub(r"[^A-Za-z0-9._+-]+", "_", text).lstrip(".") or "defaults"
    return text if len(text) <= 80 else text[:77].rstrip("-_.") + "..."


@functools.lru_cache(maxsize=16)
def _tree_sha256(tree: str) -> str:
    """Hash of a folder's Python and YAML files, or of one file."""
    digest, root = hashlib.sha256(), Path(tree)
    files = [root] if root.is_file() else sorted(p for pattern in ("*.py", "*.yaml") for p in root.rglob(pattern))
    for path in files:
        if "__pycache__" not in path.parts and path.is_file():
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def source_sha256(sources: Sequence[Any] = ()) -> str:
    """Hash of the package's source and options, of the command's other option folders and of the user's packages."""
    trees = [Path(__file__).parent, settings.config_folder(), Path.cwd() / "configs"]
    trees += [Path(source["path"]) for source in sources if source["schema"] == "file"]
    for package in settings.user_packages():
        trees += _where_is(package.split(".")[0])
    unique = dict.fromkeys(str(tree.resolve()) for tree in trees if tree.exists())
    return hashlib.sha256("".join(_tree_sha256(tree) for tree in unique).encode()).hexdigest()


def _where_is(package: str) -> list[Path]:
    """The folder or file of a package, wherever it is imported from, without importing it."""
    settings.add_working_directory()
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [Path(location) for location in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin else []


def data_sha256(cfg: DictConfig) -> str:
    """The data's identity, asked of its source; empty where it can only be known once the data is there."""
    node = OmegaConf.select(cfg, "data.source")
    if node is None:
        return ""
    return str(settings.instantiate(node, "data.source").sha256())
