"""From settings to objects: data, network, LightningModule, techniques, loggers, and the Trainer with its meters.

Each function builds one thing from its part of the configuration; `train.py` and `evaluate.py` put them together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn

from frugal import artefact, settings
from frugal.artefact import Description
from frugal.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from frugal.callbacks.exact import ExactRandomness
from frugal.callbacks.progress import Progress, StepMetrics
from frugal.data.module import DataModule
from frugal.debug import OperationProfiler
from frugal.errors import SettingsError, did_you_mean
from frugal.folder import Run, StepCounter
from frugal.measure import Energy, Ledger, Memory, Throughput, TimeLedger, TimeToTarget, count_flops
from frugal.measure.flops import StepFlops
from frugal.models.gpt import GPT
from frugal.models.gpt2 import convert, is_gpt2
from frugal.models.module import Module
from frugal.paths import find_weights
from frugal.technique import STAGES, Technique

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


def build_fit(
    cfg: DictConfig,
    run: Run,
    ledger: Ledger,
    steps: StepCounter,
    description: Description,
    techniques: dict[str, Technique],
    loggers: list[Logger],
) -> Fit:
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
            on_step=steps.add,
            extends=run.extends,
        ),
    )
    own: list[pl.Callback] = [fit.ledger, ExactRandomness(int(cfg.seed)), fit.throughput, fit.memory, fit.energy]
    own += [fit.target] if fit.target is not None else []
    users = [settings.instantiate(node, f"callbacks.{name}") for name, node in (cfg.callbacks or {}).items() if node]
    if cfg.debug.profiler:
        users.append(OperationProfiler(str(run.folder)))
    last: list[pl.Callback] = [StepMetrics(), Progress(), fit.checkpoints]
    with lightning_in_one_line():
        fit.trainer = pl.Trainer(
            **trainer_arguments(cfg),
            callbacks=[*own, *techniques.values(), *users, *last],
            logger=loggers,
            plugins=[AtomicCheckpointIO(description.to_dict())],
            default_root_dir=str(run.folder),
        )
    return fit


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
    return {
        **arguments,
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


def set_threads(cfg: DictConfig, flops: StepFlops | None = None) -> None:
    """Set torch's threads: `trainer.threads`, else one for each 100 MFLOP of a training step, at most torch's choice.

    A function of the settings alone, never of the clock, so that a run's bits stay the same. Small steps lose by a
    second thread as soon as anything else runs: its barriers wait for a thread that has no core
    (`benchmarks/threads.py`).
    """
    threads = cfg.trainer.threads
    if threads is None:
        threads = _TORCH_THREADS
        if flops is not None:
            threads = max(1, min(threads, round(flops.step / _FLOPS_PER_THREAD)))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(int(threads))
