"""The one `instantiate`: which objects a configuration may build, and a target's own signature as the schema of its
keys.

A `_target_` must lie in an allowed package and be a class of torch's or Lightning's families or something that
`configurable` marked. (`torch.utils.collect_env.run` is a shell inside an allowed package, which Hydra's block-list
lets through.) Torch is imported only when a target is resolved that is not marked.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from frugal.errors import SettingsError, did_you_mean

T = TypeVar("T")

PACKAGES = ("frugal", "torch", "lightning", "torchmetrics")
HYDRA_KEYS = {"_target_", "_partial_"}
# Keys that stand beside `_target_` in an option file and are read by Frugal, not by the target.
OPTION_KEYS = {"needs", "excludes", "task", "init_from", "lora"}
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
HYDRA_PACKAGES = ("hydra.", "hydra_plugins.")
LOGGING_PACKAGES = ("logging.", "colorlog.", "rich.logging.", "frugal.")
LOG_PARTS = (logging.Handler, logging.Formatter, logging.Filter)


def configurable(function: T) -> T:
    """Mark a function (or a class outside torch's and Lightning's families) as one that a `_target_` may name."""
    function.__frugal_configurable__ = True  # type: ignore[attr-defined]
    return function


def user_packages(folder: Path | None = None) -> tuple[str, ...]:
    """Packages that the user's own `pyproject.toml` adds: `[tool.frugal] packages = ["mine"]`. Never from YAML."""
    path = (folder or Path.cwd()) / "pyproject.toml"
    return _packages_in(str(path), path.stat().st_mtime_ns) if path.is_file() else ()


@functools.lru_cache(maxsize=8)
def _packages_in(path: str, modified: int) -> tuple[str, ...]:
    try:
        table = tomllib.loads(Path(path).read_text()).get("tool", {}).get("frugal", {})
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"pyproject.toml: {error}") from None
    packages = table.get("packages", [])
    if not isinstance(packages, list) or not all(isinstance(name, str) for name in packages):
        raise SettingsError(
            f'pyproject.toml: [tool.frugal] packages={packages}: needs a list, as in packages = ["mine"]'
        )
    return tuple(packages)


def check_targets(node: Any, key: str = "") -> None:
    """Refuse a `_target_` outside the allowed packages, anywhere below `node`, without importing anything."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=False)
    if isinstance(node, dict):
        if "_target_" in node and node["_target_"] is not None:
            _check_package(node["_target_"], f"{key}._target_" if key else "_target_")
        for name, child in node.items():
            check_targets(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            check_targets(child, f"{key}.{index}")


def check_hydra(node: Any) -> None:
    """Check what Hydra itself would build from `cfg.hydra`, before it does: callbacks, launcher, sweeper, log
    handlers."""
    plain = _as_resolved(node)

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            target = value.get("_target_")
            allowed: tuple[str, ...] = HYDRA_PACKAGES + tuple(f"{p}." for p in ("frugal", *user_packages()))
            if target is not None and not _is_class_of(target, allowed, f"{key}._target_"):
                raise SettingsError(f"{key}._target_={target}: Hydra may build its own plugins only")
            # logging.config builds `()` and `class` entries by name.
            for entry in ("()", "class") if "logging" in key else ():
                factory = value.get(entry)
                if factory is not None and not _is_class_of(factory, LOGGING_PACKAGES, f"{key}.{entry}", LOG_PARTS):
                    raise SettingsError(f"{key}.{entry}={factory}: log handlers come from logging only")
            for name, child in value.items():
                walk(child, f"{key}.{name}")
        elif isinstance(value, list):
            for index, child in enumerate(value):
                walk(child, f"{key}.{index}")
        elif isinstance(value, str) and "logging" in key and value.startswith("ext://") and value not in STREAMS:
            raise SettingsError(f"{key}={value}: only the standard streams can be named here")

    walk(plain, "hydra")


def _as_resolved(node: Any, depth: int = 0) -> Any:
    """`node` in plain containers with every interpolation followed, as Hydra will before it builds: a `${data.evil}`
    may bring a whole node. What cannot be resolved yet (a job's number) is left out: Hydra cannot build it either."""
    if depth > 40:
        raise SettingsError("hydra: interpolations that lead into themselves")
    if OmegaConf.is_dict(node) or isinstance(node, dict):
        return {str(name): _child(node, name, depth) for name in node}
    if OmegaConf.is_list(node):
        return [_child(node, index, depth) for index in range(len(node))]
    return node


def _child(node: Any, name: Any, depth: int) -> Any:
    try:
        return _as_resolved(node[name], depth + 1)
    except OmegaConfBaseException:
        return None


def _is_class_of(path: Any, packages: tuple[str, ...], key: str, bases: tuple[type, ...] = (object,)) -> bool:
    """Whether `path` names a class that one of `packages` defines itself: `frugal.folder.shutil.rmtree` is none."""
    if not isinstance(path, str) or not path.startswith(packages):
        return False
    add_working_directory()
    found = _locate(path, key)
    return inspect.isclass(found) and issubclass(found, bases) and f"{found.__module__}.".startswith(packages)


def instantiate(node: Any, key: str = "", offered: Mapping[str, Any] | None = None, **arguments: Any) -> Any:
    """Build what `node._target_` names from the node's keys and `arguments`; nested nodes are built first.

    Of what is `offered` the target gets that which its signature names.

    A node with `_partial_: true` gives a `functools.partial`. Only classes of torch's Module, Optimizer and
    LRScheduler, Lightning's and torchmetrics' bases, and what `configurable` marked are built. Raises SettingsError.
    """
    plain = _plain(node)
    if not plain.get("_target_"):
        raise SettingsError(f"{key}: has no _target_, so there is nothing to build")
    target = resolve(plain["_target_"], f"{key}._target_")
    given = _arguments(plain, key)
    names = parameter_names(target) if offered else []
    arguments = {name: value for name, value in (offered or {}).items() if name in names} | arguments
    partial = bool(plain.get("_partial_"))
    given = check_call(target, given, key, set(arguments), partial)
    built = {name: _build(value, f"{key}.{name}") for name, value in given.items()}
    if partial:
        return functools.partial(target, **built, **arguments)
    return target(**built, **arguments)


def _plain(node: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return {str(name): value for name, value in plain.items()} if isinstance(plain, dict) else {}


def _arguments(plain: dict[str, Any], key: str) -> dict[str, Any]:
    """What of a node is for its target; an option's own keys stand at the top of its group only."""
    own = HYDRA_KEYS if "." in key else HYDRA_KEYS | OPTION_KEYS
    return {name: value for name, value in plain.items() if name not in own}


def check_node(node: Any, key: str, provided: Iterable[str] = ()) -> None:
    """`check_call` on a node and all below it, without building anything: bad keys are refused before data loads."""
    plain = _plain(node)
    if not plain.get("_target_"):
        return
    target = resolve(plain["_target_"], f"{key}._target_")
    given = _arguments(plain, key)
    check_call(target, given, key, set(provided), partial=True)
    for name, value in given.items():
        check_node(value, f"{key}.{name}")


def resolve(path: Any, key: str) -> Callable[..., Any]:
    """The object that a `_target_` names, if it may be built."""
    _check_package(path, key)
    found = _locate(path, key)
    if not _buildable(found):
        raise SettingsError(
            f"{key}={path}: may not be built; it is no module, optimizer, scheduler, callback, logger, data module or "
            f"metric, and not marked with frugal.settings.configurable"
        )
    return found


def _locate(path: Any, key: str) -> Any:
    """The object at a dotted path; modules on the way are imported."""
    parts = str(path).split(".")
    found: Any = None
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name is not None and not ".".join(parts[:cut]).startswith(error.name):
                raise SettingsError(f"{key}={path}: {error}; is it an extra that is not installed?") from None
            continue
        rest = parts[cut:]
        break
    try:
        for part in rest if found is not None else [None]:
            found = getattr(found, part)  # type: ignore[arg-type]
    except (AttributeError, TypeError):
        raise SettingsError(f"{key}={path}: there is no such class") from None
    return found


def _check_package(path: Any, key: str) -> None:
    allowed = PACKAGES + user_packages()
    if not isinstance(path, str) or path.split(".")[0] not in allowed or "." not in path:
        raise SettingsError(
            f"{key}={path}: not from an allowed package ({', '.join(allowed)}); "
            f'add your own in pyproject.toml: [tool.frugal] packages = ["{str(path).split(".")[0]}"]'
        )


def _buildable(found: Any) -> bool:
    if getattr(found, "__frugal_configurable__", False) is True:
        return True
    return inspect.isclass(found) and issubclass(found, _bases())


@functools.cache
def _bases() -> tuple[type, ...]:
    from lightning.pytorch import Callback, LightningDataModule
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.profilers import Profiler
    from lightning.pytorch.strategies import Strategy
    from torch.nn import Module  # of LightningModule and torchmetrics' Metric too
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    return (Module, Optimizer, LRScheduler, LightningDataModule, Callback, Logger, Profiler, Strategy)


def _build(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        if "_target_" in value:
            return instantiate(value, key) if value["_target_"] else None
        return {name: _build(child, f"{key}.{name}") for name, child in value.items()}
    if isinstance(value, list):
        return [_build(child, f"{key}.{index}") for index, child in enumerate(value)]
    return value


# ----------------------------------------------------------------------------- a target's signature as its schema
def check_call(
    target: Callable[..., Any], given: dict[str, Any], key: str, provided: set[str], partial: bool
) -> dict[str, Any]:
    """Check names and types of `given` against the signature of `target`; `provided` are arguments that code passes.

    Returns `given` with values converted as their annotations say ("0.1" from a command line stays refused for an int,
    1 becomes 1.0 for a float).
    """
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    hints = _hints(target)
    checked = {}
    for name, value in given.items():
        full = f"{key}.{name}"
        if name in provided or (name not in names and not open_ended):  # what code passes is not for a configuration
            raise SettingsError(
                f"{full}={_short(value)}: {did_you_mean(name, [n for n in names if n not in provided])}"
            )
        checked[name] = _convert(value, hints.get(name, Any), full)
    if not partial:
        for name in names:
            if parameters[name].default is inspect.Parameter.empty and name not in given and name not in provided:
                raise SettingsError(f"{key}.{name}: needs a value")
    return checked


def parameter_names(target: Callable[..., Any]) -> list[str]:
    """The keywords that `target` takes."""
    return list(inspect.signature(target).parameters)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # annotations that only a type checker can resolve
        return {}


def _convert(value: Any, annotation: Any, key: str) -> Any:
    if isinstance(value, dict) and "_target_" in value:
        return value
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        if value not in arguments:
            raise SettingsError(f"{key}={_short(value)}: {did_you_mean(str(value), [str(a) for a in arguments])}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        if any(_open(a) for a in options):
            return value
        problem: SettingsError | None = None
        # bool before int before float before str, so that a value keeps the narrowest type that it has
        order: list[Any] = [bool, int, float, str]
        for option in sorted(options, key=lambda o: order.index(o) if o in order else len(order)):
            try:
                return _convert(value, option, key)
            except SettingsError as error:
                problem = error
        raise problem or SettingsError(f"{key}={_short(value)}: does not fit {annotation}")
    if origin in (list, tuple, typing.get_origin(typing.Sequence[int])) and arguments:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{key}={_short(value)}: needs a list, as in {key}=[1,2]")
        element = arguments[0]
        return [_convert(item, element, f"{key}.{index}") for index, item in enumerate(value)]
    if annotation in (bool, int, float, str):
        return _scalar(value, annotation, key)
    if annotation in (list, dict) and not isinstance(value, annotation):
        raise SettingsError(f"{key}={_short(value)}: needs a {annotation.__name__}")
    return value


def _open(annotation: Any) -> bool:
    return annotation not in (bool, int, float, str, list, dict) and typing.get_origin(annotation) not in (
        list,
        tuple,
        dict,
        Literal,
    )


def _scalar(value: Any, kind: type, key: str) -> Any:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        str: isinstance(value, str),
    }
    if not fits[kind]:
        raise SettingsError(f"{key}={_short(value)}: needs {names[kind]}")
    return float(value) if kind is float else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def add_working_directory() -> None:
    """Let `_target_` name packages that lie in the working directory; last, so that they shadow nothing."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
