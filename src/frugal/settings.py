"""What a configuration may be: its typed schema, the rules between options, and its way to `instantiate`.

Torch-free: a configuration is refused before anything heavy is imported. Three checks, in the order in which they
happen: the schema while Hydra composes (unknown keys and wrong types in the fixed groups), `check_rules`
(combinations that have no meaning, declared beside the options), and `instantiate.check_call` (the keys of a node
with a `_target_` against that target's own signature, so that a constructor's annotations are its schema and nothing
is written twice).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from frugal.errors import RefusedError, SettingsError, did_you_mean
from frugal.instantiate import (
    add_working_directory,
    check_call,
    check_hydra,
    check_node,
    check_targets,
    configurable,
    instantiate,
    parameter_names,
    resolve,
    user_packages,
)

__all__ = [
    "add_working_directory",
    "check_call",
    "check_hydra",
    "check_node",
    "check_rules",
    "check_targets",
    "check_values",
    "config_folder",
    "configurable",
    "did_you_mean",
    "instantiate",
    "parameter_names",
    "plain",
    "register_schema",
    "resolve",
    "user_packages",
]


# ---------------------------------------------------------------------------------------------------- the schema
@dataclass
class Paths:
    data_dir: str = MISSING
    log_dir: str = MISSING
    cache_dir: str = MISSING  # what was made from data and can be made again: encoded text


@dataclass
class RunSettings:
    experiment: str = "default"  # the folder under paths.log_dir
    resume: Any = False  # true: this command's last run that was cut off; a run's folder: that run, extended
    weights: str = "last"  # which weights become the artefact: last or best
    monitor: str = "val/loss"  # "best" is by this metric
    mode: str = "min"  # whether less or more of it is better: min or max
    checkpoint_every_s: float = 60.0  # `last` is written this often inside an epoch; sooner where that is cheap
    checkpoint_every_steps: int | None = None  # and, when given, every so many optimizer steps
    target: float | None = None  # time to accuracy: seconds until target_metric first reaches this
    target_metric: str = "val/accuracy"
    target_mode: str = "max"
    test: bool = True  # false: the test set is not looked at, for runs among which is chosen
    tags: list[str] = field(default_factory=list)


@dataclass
class TrainerSettings:
    accelerator: str = "auto"  # cpu, gpu, mps, tpu, or auto: the best there is
    devices: int = 1  # ranks on this machine; more than one need a strategy
    num_nodes: int = 1  # machines
    max_epochs: int | None = 10
    max_steps: int = -1  # optimizer steps after which training ends; -1: max_epochs decides
    check_val_every_n_epoch: int | None = 1
    val_check_interval: Any = 1.0  # validate after so many batches, or as 0.25 after such a share of an epoch
    limit_train_batches: Any = 1.0  # of an epoch: so many batches, or as 0.1 a share of them
    limit_val_batches: Any = 1.0
    limit_test_batches: Any = 1.0
    overfit_batches: Any = 0.0  # train and validate on the same few batches: so many, or a share
    gradient_clip_val: float | None = None  # the largest norm of the gradient
    accumulate_grad_batches: int = 1  # batches a step of the optimizer
    log_every_n_steps: int = 50
    detect_anomaly: bool = False  # stop where a gradient becomes NaN, and say in which operation; slow
    deterministic: bool = True  # deterministic kernels where there are such
    num_sanity_val_steps: int = 0  # batches to validate before training
    threads: int | None = None  # of torch inside an operation; null: by the step's size, see train.set_threads


@dataclass
class PrecisionSettings:
    mode: str = "32-true"  # Lightning's name: of weights and products; mixed: weights stay in 32 bits
    matmul: str = "highest"  # of products of 32-bit matrices on CUDA: highest, or high, which is TF32
    loss_scale: Any = None  # of 16-mixed: dynamic, or a number
    needs: Any = None
    excludes: Any = None


@dataclass
class CompileSettings:
    mode: str | None = None  # torch.compile's: default, reduce-overhead, max-autotune; null: not compiled
    dynamic: bool | None = (
        None  # true: one graph for all batch sizes and lengths; false: one for each; null: torch decides
    )
    fullgraph: bool = False  # refuse what does not compile as one graph
    needs: Any = None
    excludes: Any = None


@dataclass
class BudgetSettings:
    """One of them at most; it takes the place of trainer.max_epochs and trainer.max_steps."""

    seconds: float | None = None  # of training as the ledger counts it, without validation and checkpoints
    flops: float | None = None  # forward and backward
    samples: int | None = None  # of all ranks


@dataclass
class LaunchSettings:
    jobs: int | None = None  # at a time; null: as many as there are GPUs, or cores for their threads


@dataclass
class SweepSettings:
    trials: int = 30  # of a search, those of earlier commands included
    objectives: list[str] = field(default_factory=lambda: ["loss"])  # see docs/sweeps.md
    variants: list[str] = field(default_factory=list)  # of sweep=paired: each some overrides, the first the baseline
    seed: int = 0  # of the search itself


@dataclass
class MeasureSettings:
    latency: str = "quick"  # none, quick, standard, thorough
    batches: list[int] = field(default_factory=lambda: [1, 8, 64])
    warmup_steps: int = 10
    mfu: bool = True
    gradients: bool = False  # which share of gradients float16 would flush to zero, by loss scale; each epoch
    loss_scales: list[float] = field(default_factory=lambda: [1, 8, 1024, 65536])  # for these


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
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    compile: CompileSettings = field(default_factory=CompileSettings)
    strategy: Any = None
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    launch: LaunchSettings = field(default_factory=LaunchSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    debug: DebugSettings = field(default_factory=DebugSettings)
    tokenizer: Any = None
    preprocess: Any = None
    curriculum: Any = None
    optim: Any = None
    schedule: Any = None
    model: Any = None
    data: Any = None
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
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    tokenizer: Any = None
    preprocess: Any = None
    curriculum: Any = None
    optim: Any = None
    schedule: Any = None
    model: Any = None
    data: Any = None
    logger: Any = None
    launch: LaunchSettings = field(default_factory=LaunchSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)


# What an evaluation takes from the run: a data option may bring options of these groups along, which then count for
# nothing, and a command may not name them.
FROM_THE_RUN = ("tokenizer", "preprocess", "curriculum", "optim", "schedule", "model")


@dataclass
class GenerateSettings:
    tokens: int = 256
    samples: int = 1  # continuations of the prompt, each with its own draws
    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int | None = None  # draw from the k likeliest tokens only
    top_p: float | None = None  # draw from the likeliest tokens that hold this much probability
    cache: bool = True  # of keys and values; off, each token costs a pass over all before it


@dataclass
class Predict:
    """The root of `predict.yaml`."""

    source: Any = None  # a run's folder, a checkpoint or an artefact
    prompt: str | None = None  # what a language model goes on from; null: the beginning of a document
    input: str | None = None  # what to predict for: a file, a folder of images, or - for stdin; see predict --help
    output: str | None = None  # a file; null: stdout
    format: str | None = None  # csv or jsonl; null: by the name of `output`, else csv
    column: str = "text"  # of a table of texts: the name of their column
    batch_size: int = 64
    threads: int | None = None
    seed: int = 0
    generate: GenerateSettings = field(default_factory=GenerateSettings)


CHOICES = {
    "format": ("csv", "jsonl"),
    "run.weights": ("last", "best"),
    "run.mode": ("min", "max"),
    "run.target_mode": ("min", "max"),
    "measure.latency": ("none", "quick", "standard", "thorough"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "precision.matmul": ("highest", "high"),
    "compile.mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "precision.mode": ("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"),
}
# Least values: a zero or a negative number here would train nothing and say so only much later.
MINIMA = {
    "seed": 0,
    "run.checkpoint_every_steps": 1,
    "launch.jobs": 1,
    "sweep.trials": 1,
    "sweep.seed": 0,
    "budget.samples": 1,
    "trainer.max_epochs": 0,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "strategy.tensor_ranks": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.threads": 1,
    "data.batch_size": 1,
    "data.workers": 0,
    "batch_size": 1,
    "threads": 1,
    "generate.tokens": 1,
    "generate.samples": 1,
    "generate.top_k": 1,
    "measure.warmup_steps": 0,
}


# Batches, or fractions of them: a whole number or a fraction, which no type of the schema tells apart.
NUMBERS = (
    "trainer.limit_train_batches",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
    "trainer.overfit_batches",
    "trainer.val_check_interval",
)


# Zero or less would train nothing, test nothing or go the wrong way, and be noticed only afterwards.
POSITIVE = (
    "trainer.gradient_clip_val",
    "trainer.limit_train_batches",
    "trainer.limit_test_batches",
    "trainer.val_check_interval",
    "run.checkpoint_every_s",
    "strategy.timeout_s",
    "strategy.bucket_mb",
    "budget.seconds",
    "budget.flops",
)
# Groups of techniques, in the order in which they act (`technique.STAGES`); here, where no torch is needed.
TECHNIQUES = ("selection", "distillation", "pruning", "quantization", "coding", "deploy")


def register_schema() -> None:
    store = ConfigStore.instance()
    store.store(name="train_schema", node=Train)
    store.store(name="evaluate_schema", node=Evaluate)
    store.store(name="predict_schema", node=Predict)


# ------------------------------------------------------------------------------------------ rules between options
SECTIONS = {
    "paths": Paths,
    "run": RunSettings,
    "trainer": TrainerSettings,
    "precision": PrecisionSettings,
    "compile": CompileSettings,
    "budget": BudgetSettings,
    "launch": LaunchSettings,
    "sweep": SweepSettings,
    "measure": MeasureSettings,
    "debug": DebugSettings,
    "generate": GenerateSettings,
}


def check_values(cfg: DictConfig) -> None:
    """Refuse a key that no schema has, a value outside its choices, or one below its least value."""
    root = OmegaConf.get_type(cfg)
    if dataclasses.is_dataclass(root):
        for name in map(str, cfg):  # Hydra lets +name=value past a typed schema
            if name not in (roots := [f.name for f in dataclasses.fields(root)]):
                raise SettingsError(f"{name}: {did_you_mean(name, roots)}")
    for section, schema in SECTIONS.items():
        names = [f.name for f in dataclasses.fields(schema)]
        for name in cfg.get(section) or {}:
            if name not in names:
                near = did_you_mean(str(name), names)
                raise SettingsError(f"{section}.{name}: {near.replace('did you mean ', f'did you mean {section}.')}")
    for key, allowed in CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value not in allowed:
            raise SettingsError(f"{key}={value}: {did_you_mean(str(value), allowed)}")
    for key, least in MINIMA.items():
        value = OmegaConf.select(cfg, key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise SettingsError(f"{key}={value}: needs a whole number")
        if value < least:
            raise SettingsError(f"{key}={value}: the least value is {least}")
    for key in NUMBERS:
        value = OmegaConf.select(cfg, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise SettingsError(f"{key}={value}: needs a number: batches, or as 0.5 a fraction of them")
    budgets = [f"budget.{name}" for name, amount in (cfg.get("budget") or {}).items() if amount is not None]
    if len(budgets) > 1:
        raise SettingsError(f"{' and '.join(budgets)}: a run has one budget; set the others to null")
    if (
        not budgets
        and OmegaConf.select(cfg, "trainer.max_epochs") is None
        and OmegaConf.select(cfg, "trainer.max_steps") == -1
    ):
        raise SettingsError("trainer.max_epochs=null: trains without end; set it or trainer.max_steps")
    if OmegaConf.select(cfg, "trainer.max_epochs") == 0 and not OmegaConf.select(cfg, "model.init_from"):
        raise SettingsError("trainer.max_epochs=0: trains nothing, so name the weights to take, model.init_from=RUN")
    if OmegaConf.select(cfg, "trainer.max_steps") == 0:
        raise SettingsError("trainer.max_steps=0: trains nothing; -1 leaves the end to trainer.max_epochs")
    if "paths" in cfg and not OmegaConf.select(cfg, "paths.log_dir"):
        raise SettingsError("paths.log_dir: needs a folder; set it or FRUGAL_LOG_DIR")
    for batch in OmegaConf.select(cfg, "measure.batches") or ():
        if batch < 1:
            raise SettingsError(f"measure.batches: {batch} is no batch size; the least value is 1")
    experiment = str(OmegaConf.select(cfg, "run.experiment", default="default"))
    if not experiment or Path(experiment).is_absolute() or ".." in Path(experiment).parts:
        raise SettingsError(f"run.experiment={experiment}: needs the name of a folder below paths.log_dir")
    for key in POSITIVE:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, int | float) and not value > 0:
            raise SettingsError(f"{key}={value}: needs to be above 0")
    scale = OmegaConf.select(cfg, "precision.loss_scale")
    if scale not in (None, "dynamic"):
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise SettingsError(f"precision.loss_scale={scale}: needs dynamic or a number above 0")
        if OmegaConf.select(cfg, "precision.mode") != "16-mixed":
            raise SettingsError(f"precision.loss_scale={scale}: only precision=fp16 scales the loss")
    if not all(scale > 0 for scale in OmegaConf.select(cfg, "measure.loss_scales") or ()):
        raise SettingsError(f"measure.loss_scales={cfg.measure.loss_scales}: needs numbers above 0")
    lr = OmegaConf.select(cfg, "optim.lr")  # 0 is a control that learns nothing
    if isinstance(lr, int | float) and not lr >= 0:
        raise SettingsError(f"optim.lr={lr}: needs to be 0 or above")
    for stage in TECHNIQUES:
        if isinstance(cfg.get(stage), str):  # `pruning=gradual` where the group has no options: taken for a value
            raise SettingsError(
                f"{stage}={cfg[stage]}: there is no such option; an option is a file configs/{stage}/NAME.yaml"
            )
    if "trainer" in cfg:
        _check_ranks(cfg)
    for group, name, node in ((g, n, v) for g in ("callbacks", "logger") for n, v in (cfg.get(g) or {}).items()):
        if node is not None and (not OmegaConf.is_dict(node) or "_target_" not in node):
            raise SettingsError(
                f"{group}.{name}: has no _target_, so nothing would be built; is it nested one level too deep?"
            )


def _check_ranks(cfg: DictConfig) -> None:
    """Refuse ranks that no strategy trains, or among which the batch cannot be divided."""
    strategy = cfg.get("strategy") or {}
    devices, nodes = int(cfg.trainer.devices), int(cfg.trainer.num_nodes)
    if devices * nodes > 1 and not strategy.get("_target_"):
        key = f"trainer.devices={devices}" if devices > 1 else f"trainer.num_nodes={nodes}"
        way = "choose strategy=ddp, fsdp, tensor_parallel or fsdp_tp" if "strategy" in cfg else "an evaluation has one"
        raise SettingsError(f"{key}: strategy=single trains in one process; {way}")
    if not strategy.get("_target_"):
        return
    batch, ranks = OmegaConf.select(cfg, "data.batch_size"), devices * nodes
    together = strategy.get("tensor_ranks", ranks if str(strategy.get("_target_")).endswith(".TensorParallel") else 1)
    if ranks % together:
        raise RefusedError(f"strategy.tensor_ranks={together}: does not divide the {ranks} ranks")
    shares = ranks // together
    if isinstance(batch, int) and batch % shares:
        raise RefusedError(
            f"data.batch_size={batch}: is the batch of all ranks together, and {shares} cannot have equal parts of it; "
            f"take a multiple of {shares}"
        )


def check_rules(cfg: DictConfig, choices: Mapping[str, str | None]) -> None:
    """Refuse combinations without meaning, from what option files declare: `needs` (a key's values) and
    `excludes` (a key's values, or a reason by value, where `any` is every value that is set).

    Raises RefusedError, which a sweep records as `refused` and does not count as a failure.
    """
    for group, node in ((str(name), node) for name, node in cfg.items()):
        if not OmegaConf.is_dict(node):
            continue
        option = f"{group}={choices.get(group, '?')}"
        for key, allowed in (node.get("needs") or {}).items():
            value, allowed = OmegaConf.select(cfg, str(key)), _as_list(allowed)
            if value not in allowed:
                wanted = " or ".join(map(str, allowed))
                raise RefusedError(f"{option} needs {key} to be {wanted}, {_origin(str(key), choices)} has {value}")
        for key, refused in (node.get("excludes") or {}).items():  # {key: [value, ...]} or {key: {value: why}}
            value = OmegaConf.select(cfg, str(key))
            if OmegaConf.is_dict(refused):
                reasons = {_spelt(name): reason for name, reason in refused.items()}
                why = reasons.get(_spelt(value), reasons.get("any") if value else None)
            else:
                why = "" if value is not None and value in _as_list(refused) else None
            if why is not None:
                said = f"{option} cannot be combined with {_named(str(key), value, choices)}"
                raise RefusedError(f"{said}: {why}" if why else said)


def _origin(key: str, choices: Mapping[str, str | None]) -> str:
    group = key.split(".")[0]
    return f"{group}={choices[group]}" if choices.get(group) else key


def _named(key: str, value: Any, choices: Mapping[str, str | None]) -> str:
    if OmegaConf.is_dict(value):
        return key
    group, _, rest = key.partition(".")
    return f"{group}={choices[group]}" if rest == "_target_" and choices.get(group) else f"{key}={_spelt(value)}"


def _spelt(value: Any) -> str:
    """As in YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | ListConfig) else [value]


# -------------------------------------------------------------------------------------------------- plain helpers
def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration in plain containers; an interpolation that cannot be resolved is named."""
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise SettingsError(f"{error.full_key}: needs a value; set {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise SettingsError(
            f"{getattr(error, 'full_key', None) or 'configuration'}: {str(error).splitlines()[0]}"
        ) from None


def config_folder() -> Path:
    """Where the shipped options lie: inside the installed package, or beside `src/` in a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"
