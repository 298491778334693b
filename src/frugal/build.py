"""From settings to objects: data, network, LightningModule, techniques, loggers, and the Trainer with its meters.

Each function builds one thing from its part of the configuration; `train.py` and `evaluate.py` put them together.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import registry
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import DoublePrecision
from omegaconf import DictConfig
from torch import nn

from frugal import artefact, precision, settings
from frugal.artefact import Description
from frugal.callbacks.budget import Budget
from frugal.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from frugal.callbacks.exact import ExactRandomness
from frugal.callbacks.progress import Progress, StepMetrics
from frugal.compiled import Compiled
from frugal.data.module import DataModule
from frugal.debug import OperationProfiler
from frugal.errors import SettingsError, did_you_mean
from frugal.folder import Run, StepCounter
from frugal.measure import Energy, Ledger, Memory, Throughput, TimeLedger, TimeToTarget, count_flops
from frugal.measure.flops import StepFlops
from frugal.measure.gradients import Float16Flush
from frugal.models.gpt import GPT
from frugal.models.gpt2 import convert, is_gpt2
from frugal.models.module import Module
from frugal.paths import find_weights
from frugal.ranks import Group
from frugal.technique import STAGES, Technique

# A Trainer reads all installed packages' metadata for plugins' callbacks, which takes a tenth of a sweep's overhead.
registry.entry_points = functools.lru_cache(registry.entry_points)  # type: ignore[assignment]

# What a data module passes on: to the network (`dims`), and to the LightningModule (`facts`); never in a configuration.
DIMS = {
    "classification": {"input_shape", "classes"},
    "regression": {"input_shape", "outputs"},
    "text_classification": {"vocabulary", "classes", "max_length", "space"},
    "language_modeling": {"vocabulary", "block_size", "separator"},
}
FACTS = frozenset({"token_bytes", "token_characters", "padded", "block_size", "target_mean", "target_std"})


def build_data(cfg: DictConfig, state: dict[str, Any] | None = None) -> DataModule:
    """The DataModule; `state` is what another one learnt of the training split that a network was fed with."""
    offered = {key: optional(cfg, key) for key in ("tokenizer", "curriculum")}
    preprocess = settings.instantiate(cfg.preprocess, "preprocess")
    takes = settings.parameter_names(settings.resolve(cfg.data._target_, "data._target_"))
    if "tokenizer" in takes and offered["tokenizer"] is None:
        raise SettingsError("tokenizer=none: text needs one; choose tokenizer=characters, bytes, bpe or words")
    data = settings.instantiate(cfg.data, "data", offered, preprocess=preprocess, seed=int(cfg.seed))
    assert isinstance(data, DataModule)
    if state is None and "tokenizer" in takes and cfg.model.get("init_from"):
        # whose weights are taken, its tokens are too
        learnt = artefact.read(find_weights(Path(cfg.model.init_from)))[1].get("state", {})
        state = {"preprocess": {}, "tokenizer": learnt["tokenizer"]} if "tokenizer" in learnt else None
    if state is not None:
        with artefact.crafted(Path(cfg.model.init_from)) if cfg.model.get("init_from") else contextlib.nullcontext():
            data.load_state_dict(state)
    return data


def optional(cfg: DictConfig, key: str) -> Any:
    """What a group's option builds, or None where it is `none`."""
    node = cfg.get(key)
    return settings.instantiate(node, key) if node and node.get("_target_") else None


def build_network(cfg: DictConfig, data: DataModule) -> tuple[nn.Module, dict[str, Any]]:
    """A fresh network of the data's dimensions, or with other weights (`model.init_from`); and the figures of its
    adapters (`model.lora`), if it has any."""
    network = settings.instantiate(cfg.model.network, "model.network", data.dims())
    source = cfg.model.get("init_from")
    if source:
        path = find_weights(Path(source))
        if (gpt2 := is_gpt2(path)) and not isinstance(network, GPT):
            raise SettingsError(
                f"model.init_from={source}: is a GPT-2 file, and {type(network).__name__} is no GPT; set model=gpt2"
            )
        state = convert(path, network.block_size) if gpt2 else artefact.plain_state(path)
        artefact.load_state(network, state, path)
    return network, artefact.add_adapters(network, settings.plain(cfg.model))


def build_module(cfg: DictConfig, network: nn.Module, data: DataModule) -> pl.LightningModule:
    node = {key: value for key, value in settings.plain(cfg.model).items() if key != "network"}
    offered = {**data.facts(), "block_size": data.dims().get("block_size")}
    optimizer = settings.instantiate(cfg.optim, "optim", {"network": network})
    schedule = optional(cfg, "schedule")
    return settings.instantiate(node, "model", offered, network=network, optimizer=optimizer, schedule=schedule)


def build_techniques(cfg: DictConfig) -> dict[str, Technique]:
    """The techniques that were chosen, in the order in which they act."""
    techniques = {}
    for stage in STAGES:
        node = cfg.get(stage)
        if node and node.get("_target_"):
            technique = settings.instantiate(node, stage)
            if not isinstance(technique, Technique):
                raise SettingsError(f"{stage}._target_={node._target_}: is no frugal.technique.Technique")
            technique.stage = stage
            techniques[stage] = technique
    return techniques


def build_loggers(cfg: DictConfig, run: Run) -> list[Logger]:
    """The loggers that were chosen; each is told the run's name, its fixed id and the sweep that it belongs to."""
    given = {
        "folder": str(run.folder),
        "name": run.folder.name,
        "id": run.id,
        "group": run.sweep or str(cfg.run.experiment),
    }
    loggers = []
    for key, node in (cfg.logger or {}).items():
        if not node:
            continue
        target = settings.resolve(node["_target_"], f"logger.{key}._target_")
        takes = settings.parameter_names(target)
        extra = {name: value for name, value in given.items() if name in takes and node.get(name) is None}
        plain = {name: value for name, value in settings.plain(node).items() if name not in extra}
        if "tags" in takes:
            plain["tags"] = [*(plain.get("tags") or []), *cfg.run.tags]
        logger = settings.instantiate(plain, f"logger.{key}", extra)
        logger.log_hyperparams(run.record.config)
        loggers.append(logger)
    return loggers


def describe(cfg: DictConfig, data: DataModule) -> Description:
    node = settings.plain(cfg.data)
    for name in data.source.places:  # where the data lay and who carried it is no part of what was learnt
        node.get("source", {}).pop(name, None)
    for name in ("workers", "cache", "defaults"):
        node.pop(name, None)
    tokenizer = settings.plain(cfg.tokenizer) if cfg.get("tokenizer") else {}
    tokenizer.pop("files", None)  # a place too: what lay there is in the state
    return Description(
        model=settings.plain(cfg.model) | {"init_from": None},
        dims={key: list(value) if isinstance(value, tuple) else value for key, value in data.dims().items()},
        task=str(cfg.data.task),
        preprocess=settings.plain(cfg.preprocess),
        data=node,
        tokenizer=tokenizer,
        state=data.state_dict(),
        techniques={
            stage: settings.plain(cfg[stage])
            for stage in artefact.IN_THE_STATE
            if cfg.get(stage) and cfg[stage].get("_target_")
        },
    )


@dataclass
class Fit:
    """The Trainer and the meters on it."""

    trainer: pl.Trainer
    ledger: TimeLedger
    throughput: Throughput
    memory: Memory
    energy: Energy
    target: TimeToTarget | None
    checkpoints: Checkpoints
    compiled: Compiled | None = None
    budget: Budget | None = None


def build_fit(
    cfg: DictConfig,
    run: Run,
    ledger: Ledger,
    steps: StepCounter | None,
    description: Description,
    techniques: dict[str, Technique],
    loggers: list[Logger],
    network: nn.Module,
    group: Group | None = None,
) -> Fit:
    """Of ranks above 0 without what shows, writes or logs: rank 0 does it for all."""
    first = group is None or group.first
    warmup = int(cfg.measure.warmup_steps)
    fit = Fit(
        trainer=None,  # type: ignore[arg-type]
        ledger=TimeLedger(ledger, warmup),
        throughput=Throughput(warmup),
        memory=Memory(warmup_steps=warmup),
        energy=Energy(warmup),
        target=TimeToTarget(cfg.run.target_metric, cfg.run.target, cfg.run.target_mode)
        if cfg.run.target is not None
        else None,
        checkpoints=Checkpoints(
            str(run.checkpoints),
            monitor=cfg.run.monitor,
            mode=cfg.run.mode,
            every_s=float(cfg.run.checkpoint_every_s),
            every_steps=cfg.run.checkpoint_every_steps,
            on_step=steps.add if steps is not None else None,
            extends=run.extends,
        ),
    )
    own: list[pl.Callback] = [fit.ledger, ExactRandomness(int(cfg.seed)), fit.throughput, fit.memory, fit.energy]
    own += [fit.target] if fit.target is not None else []
    if (budget := budget_of(cfg)) is not None:
        fit.budget = Budget(*budget, ledger=ledger)
        own.append(fit.budget)
    if cfg.compile.mode is not None:
        fit.compiled = Compiled(network, cfg.compile.mode, cfg.compile.dynamic, bool(cfg.compile.fullgraph))
        own.append(fit.compiled)
    if cfg.measure.gradients:
        own.append(Float16Flush(list(cfg.measure.loss_scales)))
    users = [settings.instantiate(node, f"callbacks.{name}") for name, node in (cfg.callbacks or {}).items() if node]
    if cfg.debug.profiler and first:
        users.append(OperationProfiler(str(run.folder)))
    last: list[pl.Callback] = [*([StepMetrics(), Progress()] if first else []), fit.checkpoints]
    arguments = trainer_arguments(cfg)
    if group is not None:
        from frugal.strategy.environment import Ranks
        from frugal.strategy.weighted import SameBuffers

        own.append(SameBuffers())
        arguments["strategy"] = settings.instantiate(cfg.strategy, "strategy")
        arguments["plugins"] = [*arguments.get("plugins", []), Ranks(group)]
        if arguments.get("precision") == "64-true":  # which Lightning refuses by name where weights are shared out
            del arguments["precision"]
            arguments["plugins"].append(DoublePrecision())
    plugins = [AtomicCheckpointIO(description.to_dict()), *arguments.pop("plugins", [])]
    with lightning_in_one_line():
        fit.trainer = pl.Trainer(
            **arguments,
            callbacks=[*own, *techniques.values(), *users, *last],
            logger=loggers,
            plugins=plugins,
            default_root_dir=str(run.folder),
        )
    if group is not None:
        # Lightning (2.6) broadcasts from within its handler of SIGTERM, where the other ranks wait for something else,
        # and asks all ranks about it at each step; `Checkpoints` has them agree.
        fit.trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        fit.trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return fit


def budget_of(cfg: DictConfig) -> tuple[Any, float] | None:
    """Unit and amount of what may be spent; None where epochs or steps decide."""
    node = cfg.get("budget") or {}
    return next(((name, amount) for name, amount in node.items() if amount is not None), None)


@contextlib.contextmanager
def lightning_in_one_line() -> Iterator[None]:
    """What Lightning refuses (an accelerator that is not there, a limit that leaves no batch), as bad input."""
    try:
        yield
    except MisconfigurationException as error:
        raise SettingsError(f"trainer: {' '.join(str(error).split())}") from None


def trainer_arguments(cfg: DictConfig) -> dict[str, Any]:
    """What Lightning's Trainer takes from `cfg.trainer`; everything that Frugal does itself is switched off."""
    arguments = settings.plain(cfg.trainer)
    del arguments["threads"]
    if budget_of(cfg) is not None:  # which ends the run itself
        arguments |= {"max_epochs": -1, "max_steps": -1}
    return {
        **arguments,
        **precision.trainer_arguments(cfg),
        "deterministic": "warn" if arguments["deterministic"] else False,
        "enable_checkpointing": True,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }


def check_monitors(cfg: DictConfig, module: pl.LightningModule, data: DataModule, trainer: pl.Trainer) -> None:
    """Refuse a monitored metric that this module never logs, before the training instead of after it."""
    if not isinstance(module, Module):  # of another module nobody knows what it logs
        return
    known = module.logged_metrics()
    if "val" not in data.splits:
        known = [name for name in known if not name.startswith("val/")]
    wanted = {f"callbacks.{type(c).__name__}.monitor": getattr(c, "monitor", None) for c in trainer.callbacks}  # type: ignore[attr-defined]
    del wanted["callbacks.Checkpoints.monitor"]
    if cfg.run.weights == "best":
        wanted["run.monitor"] = cfg.run.monitor
    if cfg.run.target is not None:
        wanted["run.target_metric"] = cfg.run.target_metric
    for key, name in wanted.items():
        if isinstance(name, str) and name not in known:
            raise SettingsError(f"{key}={name}: {did_you_mean(name, known)}")


_TORCH_THREADS = torch.get_num_threads()
_FLOPS_PER_THREAD = 1e8


def count_step(network: nn.Module, data: DataModule) -> StepFlops | None:
    """Operations of one batch of training; None for a network without trainable weights."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        return None
    return count_flops(network, data.example(data.batch_size, "meta"))


def set_threads(cfg: DictConfig, flops: StepFlops | None = None, group: Group | None = None) -> None:
    """Set torch's threads: `trainer.threads`, else one for each 100 MFLOP of a training step, at most torch's choice.

    A function of the settings alone, never of the clock, so that a run's bits stay the same. Small steps lose by a
    second thread as soon as anything else runs: its barriers wait for a thread that has no core
    (`benchmarks/threads.py`).
    """
    threads = cfg.trainer.threads
    ranks, on_this_machine = (group.size, group.local_size) if group is not None else (1, 1)
    if threads is None:
        threads = max(1, _TORCH_THREADS // on_this_machine)
        if flops is not None:
            threads = max(1, min(threads, round(flops.step / ranks / _FLOPS_PER_THREAD)))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(int(threads))
