"""What a configuration may be: its typed schema, the rules between options, and the one `instantiate`.

Torch-free: a configuration is refused before anything heavy is imported. Three checks, in the order in which they happen:
the schema while Hydra composes (unknown keys and wrong types in the fixed groups), `check_rules` (combinations that have
no meaning, declared beside the options), and `check_call` (the keys of a node with a `_target_` against that target's
own signature, so that a constructor's annotations are its schema and nothing is written twice).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from frugal.errors import RefusedError, SettingsError

T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------- the schema
@dataclass
class Paths:
    data_dir: str = MISSING
    log_dir: str = MISSING


@dataclass
class RunSettings:
    experiment: str = "default"  # the folder under paths.log_dir
    resume: Any = False  # true: this command's last run that was cut off; a run's folder: that run, extended
    weights: str = "last"  # which weights become the artefact: last or best
    monitor: str = "val/loss"  # "best" is by this metric
    mode: str = "min"
    checkpoint_every_s: float = 60.0  # `last` is written at most this often inside an epoch
    checkpoint_every_steps: int | None = None  # and, when given, every so many optimizer steps
    target: float | None = None  # time to accuracy: seconds until target_metric first reaches this
    target_metric: str = "val/accuracy"
    tags: list[str] = field(default_factory=list)


@dataclass
class TrainerSettings:
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    max_epochs: int | None = 10
    max_steps: int = -1
    check_val_every_n_epoch: int | None = 1
    val_check_interval: Any = 1.0
    limit_train_batches: Any = 1.0
    limit_val_batches: Any = 1.0
    limit_test_batches: Any = 1.0
    overfit_batches: Any = 0.0
    gradient_clip_val: float | None = None
    accumulate_grad_batches: int = 1
    log_every_n_steps: int = 50
    detect_anomaly: bool = False
    deterministic: bool = True
    num_sanity_val_steps: int = 0
    threads: int | None = None  # of torch inside an operation; null: torch's own choice


@dataclass
class MeasureSettings:
    latency: str = "quick"  # none, quick, standard, thorough
    batches: list[int] = field(default_factory=lambda: [1, 8, 64])
    warmup_steps: int = 10
    mfu: bool = True


@dataclass
class DebugSettings:
    profiler: bool = False  # PyTorch's profiler: a trace file and a table of the ten costliest operations


@dataclass
class Train:
    """The root of `train.yaml`. Groups whose options differ in their keys are checked by `check_call`."""

    seed: int = 0
    paths: Paths = field(default_factory=Paths)
    run: RunSettings = field(default_factory=RunSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    debug: DebugSettings = field(default_factory=DebugSettings)
    data: Any = None
    preprocess: Any = None
    model: Any = None
    optim: Any = None
    schedule: Any = None
    callbacks: Any = None
    logger: Any = None
    selection: Any = None
    distillation: Any = None
    pruning: Any = None
    quantization: Any = None
    coding: Any = None
    deploy: Any = None


@dataclass
class Evaluate:
    """The root of `evaluate.yaml`. What is null is taken from the run that is evaluated."""

    source: Any = None  # a run's folder, a checkpoint or an artefact
    seed: int = 0
    paths: Paths = field(default_factory=Paths)
    run: RunSettings = field(default_factory=RunSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    data: Any = None
    logger: Any = None


CHOICES = {
    "run.weights": ("last", "best"),
    "run.mode": ("min", "max"),
    "measure.latency": ("none", "quick", "standard", "thorough"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
}
# Least values: a zero or a negative number here would train nothing and say so only much later.
MINIMA = {
    "seed": 0,
    "trainer.devices": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.threads": 1,
    "data.batch_size": 1,
    "data.workers": 0,
    "measure.warmup_steps": 0,
}


def register_schema() -> None:
    store = ConfigStore.instance()
    store.store(name="train_schema", node=Train)
    store.store(name="evaluate_schema", node=Evaluate)


# ------------------------------------------------------------------------------------------ rules between options
SECTIONS = {"paths": Paths, "run": RunSettings, "trainer": TrainerSettings, "measure": MeasureSettings, "debug": DebugSettings}


def check_values(cfg: DictConfig) -> None:
    """Refuse a key that no schema has, a value outside its choices, or one below its least value."""
    for section, schema in SECTIONS.items():
        names = [f.name for f in dataclasses.fields(schema)]
        for name in cfg.get(section) or {}:  # Hydra lets +section.name=value past a typed schema
            if name not in names:
                near = _did_you_mean(str(name), names)
                raise SettingsError(f"{section}.{name}: {near.replace('did you mean ', f'did you mean {section}.')}")
    for key, allowed in CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value not in allowed:
            raise SettingsError(f"{key}={value}: {_did_you_mean(str(value), allowed)}")
    for key, least in MINIMA.items():
        value = OmegaConf.select(cfg, key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise SettingsError(f"{key}={value}: needs a whole number")
        if value < least:
            raise SettingsError(f"{key}={value}: the least value is {least}")
    for name, node in (cfg.get("callbacks") or {}).items():
        if node is not None and (not OmegaConf.is_dict(node) or "_target_" not in node):
            raise SettingsError(
                f"callbacks.{name}: has no _target_, so nothing would be built; is it nested one level too deep?"
            )


def check_rules(cfg: DictConfig, choices: Mapping[str, str | None]) -> None:
    """Refuse combinations without meaning, from the `needs` and `excludes` that option files declare.

    Raises RefusedError, which a sweep records as `refused` and does not count as a failure.
    """
    for group, node in cfg.items():
        if not OmegaConf.is_dict(node):
            continue
        option = f"{group}={choices.get(str(group), '?')}"
        for key, allowed in (node.get("needs") or {}).items():
            value, allowed = OmegaConf.select(cfg, str(key)), _as_list(allowed)
            if value not in allowed:
                raise RefusedError(
                    f"{option} needs {key} to be {' or '.join(map(str, allowed))}, {_origin(str(key), choices)} has {value}"
                )
        for key, refused in (node.get("excludes") or {}).items():
            value = OmegaConf.select(cfg, str(key))
            if value is not None and value in _as_list(refused):
                raise RefusedError(f"{option} cannot be combined with {key}={value}")


def _origin(key: str, choices: Mapping[str, str | None]) -> str:
    group = key.split(".")[0]
    return f"{group}={choices[group]}" if choices.get(group) else key


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | ListConfig) else [value]


# ---------------------------------------------------------------------------------------------------- instantiate
PACKAGES = ("frugal", "torch", "lightning", "torchmetrics")
# Keys that stand beside `_target_` in an option file and are read by Frugal, not by the target.
OWN_KEYS = {"_target_", "_partial_", "needs", "excludes", "task", "init_from"}
HYDRA_PACKAGES = ("hydra.", "hydra_plugins.")
LOGGING_PACKAGES = ("logging.", "colorlog.", "rich.logging.", "frugal.")


def configurable(function: T) -> T:
    """Mark a function (or a class outside torch's and Lightning's families) as one that a `_target_` may name."""
    function.__frugal_configurable__ = True  # type: ignore[attr-defined]
    return function


def user_packages(folder: Path | None = None) -> tuple[str, ...]:
    """Packages that the user's own `pyproject.toml` adds: `[tool.frugal] packages = ["mine"]`. Never from YAML."""
    path = (folder or Path.cwd()) / "pyproject.toml"
    if not path.is_file():
        return ()
    try:
        table = tomllib.loads(path.read_text()).get("tool", {}).get("frugal", {})
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path.name}: {error}") from None
    return tuple(table.get("packages", ()))


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
    """Check what Hydra itself would build from `cfg.hydra`, before it does: callbacks, launcher, sweeper, log handlers."""
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            target = value.get("_target_")
            allowed: tuple[str, ...] = HYDRA_PACKAGES + tuple(f"{p}." for p in ("frugal", *user_packages()))
            if target is not None and not str(target).startswith(allowed):
                raise SettingsError(f"{key}._target_={target}: Hydra may build its own plugins only")
            # logging.config builds `()` and `class` entries by name.
            for entry in ("()", "class"):
                factory = value.get(entry)
                if factory is not None and "logging" in key and not str(factory).startswith(LOGGING_PACKAGES):
                    raise SettingsError(f"{key}.{entry}={factory}: log handlers come from logging only")
                if isinstance(factory, str) and factory.startswith("logging.config"):
                    raise SettingsError(f"{key}.{entry}={factory}: log handlers come from logging only")
            for name, child in value.items():
                walk(child, f"{key}.{name}")
        elif isinstance(value, list):
            for index, child in enumerate(value):
                walk(child, f"{key}.{index}")
        elif isinstance(value, str) and "logging" in key and value.startswith("ext://"):
            if value not in ("ext://sys.stdout", "ext://sys.stderr"):
                raise SettingsError(f"{key}={value}: only the standard streams can be named here")

    walk(plain, "hydra")


def instantiate(node: Any, key: str = "", **arguments: Any) -> Any:
    """Build what `node._target_` names from the node's keys and `arguments`; nested nodes are built first.

    A node with `_partial_: true` gives a `functools.partial`. Only classes of torch's Module, Optimizer and LRScheduler,
    Lightning's and torchmetrics' bases, and what `configurable` marked are built. Raises SettingsError.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(plain, dict) or not plain.get("_target_"):
        raise SettingsError(f"{key}: has no _target_, so there is nothing to build")
    target = resolve(plain["_target_"], f"{key}._target_")
    given = {name: value for name, value in plain.items() if name not in OWN_KEYS}
    partial = bool(plain.get("_partial_"))
    given = check_call(target, given, key, set(arguments), partial)
    built = {name: _build(value, f"{key}.{name}") for name, value in given.items()}
    if partial:
        return functools.partial(target, **built, **arguments)
    return target(**built, **arguments)


def check_node(node: Any, key: str, provided: Iterable[str] = ()) -> None:
    """`check_call` on a node and all below it, without building anything: bad keys are refused before data loads."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(plain, dict) or not plain.get("_target_"):
        return
    target = resolve(plain["_target_"], f"{key}._target_")
    given = {name: value for name, value in plain.items() if name not in OWN_KEYS}
    check_call(target, given, key, set(provided), partial=True)
    for name, value in given.items():
        check_node(value, f"{key}.{name}")


def resolve(path: Any, key: str) -> Callable[..., Any]:
    """The object that a `_target_` names, if it may be built."""
    _check_package(path, key)
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
    if not _buildable(found):
        raise SettingsError(
            f"{key}={path}: may not be built; it is no module, optimizer, scheduler, callback, logger, data module or "
            f"metric, and not marked with frugal.settings.configurable"
        )
    return found


def _check_package(path: Any, key: str) -> None:
    allowed = PACKAGES + user_packages()
    if not isinstance(path, str) or path.split(".")[0] not in allowed or "." not in path:
        raise SettingsError(
            f"{key}={path}: not from an allowed package ({', '.join(allowed)}); "
            f"add your own in pyproject.toml under [tool.frugal] packages"
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
        if name not in names and not open_ended:
            raise SettingsError(f"{full}={_short(value)}: {_did_you_mean(name, [n for n in names if n not in provided])}")
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
            raise SettingsError(f"{key}={_short(value)}: {_did_you_mean(str(value), [str(a) for a in arguments])}")
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


# -------------------------------------------------------------------------------------------------- plain helpers
def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The nearest valid name, or all of them where none is near."""
    return _did_you_mean(name, valid)


def _did_you_mean(name: str, valid: Iterable[str]) -> str:
    names = sorted(str(v) for v in valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"unknown; did you mean {near[0]}?"
    return f"unknown; valid are {', '.join(names)}" if names else "unknown; nothing can be set here"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration in plain containers; an interpolation that cannot be resolved is named."""
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise SettingsError(f"{getattr(error, 'full_key', None) or 'configuration'}: {str(error).splitlines()[0]}") from None


def config_folder() -> Path:
    """Where the shipped options lie: inside the installed package, or beside `src/` in a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def add_working_directory() -> None:
    """Let `_target_` name packages that lie in the working directory, as `python -m` would."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


