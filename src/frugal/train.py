"""The main job, top to bottom: build, fit, compress, test, measure, record.

By the time it runs, the configuration was checked and the run's folder is open; `job.py` does that and keeps the record
when something breaks.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import Tensor, nn

from frugal import artefact, settings
from frugal.absent import explain_absent
from frugal.artefact import Description
from frugal.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, leaving_with_a_checkpoint
from frugal.callbacks.exact import ExactRandomness
from frugal.callbacks.progress import Progress, StepMetrics
from frugal.data.datamodule import ArrayDataModule
from frugal.debug import OperationProfiler
from frugal.errors import SettingsError, did_you_mean
from frugal.folder import Run, StepCounter
from frugal.loggers.base import RunLogger
from frugal.measure import Energy, Ledger, Memory, Throughput, TimeLedger, TimeToTarget, count_flops
from frugal.measure.flops import StepFlops
from frugal.measure.heartbeat import Heartbeat
from frugal.models.classifier import Classifier
from frugal.paths import find_weights
from frugal.recording import measure_network, record_compute, record_fit, record_quality, record_time, set_fingerprint
from frugal.technique import STAGES, Technique

log = logging.getLogger("frugal")


def check(cfg: DictConfig) -> None:
    """Check every node against its target's signature, before data loads. Raises SettingsError."""
    settings.check_node(cfg.data, "data", {"preprocess", "seed"})
    settings.check_node(cfg.preprocess, "preprocess")
    model = {key: value for key, value in settings.plain(cfg.model).items() if key != "network"}
    settings.check_node(model, "model", {"network", "optimizer", "schedule"})
    settings.check_node(cfg.model.network, "model.network", {"input_shape", "classes"})
    settings.check_node(cfg.optim, "optim", {"params"})
    settings.check_node(cfg.schedule, "schedule", {"optimizer", "total_steps"})
    for name, node in (cfg.callbacks or {}).items():
        settings.check_node(node, f"callbacks.{name}")
    for name, node in (cfg.logger or {}).items():
        settings.check_node(node, f"logger.{name}", {"folder"})
    for stage in STAGES:
        settings.check_node(cfg.get(stage), stage)


def execute(cfg: DictConfig, run: Run, ledger: Ledger) -> None:
    """Train, compress, test and measure; everything that came of it is in `run.record` and in the run's folder."""
    record, steps = run.record, StepCounter(run.folder)
    heartbeat = Heartbeat(run.folder / "heartbeat.json", ledger)
    loggers: list[Logger] = []
    try:
        heartbeat.start()
        loggers += build_loggers(cfg, run)
        with quiet_lightning():
            pl.seed_everything(cfg.seed, workers=False, verbose=False)

            data = build_data(cfg)
            data.prepare_data()
            data.setup("fit")
            network = build_network(cfg, data)
            flops = count_step(network, data)
            set_threads(cfg, flops)
            module = build_module(cfg, network)
            techniques = build_techniques(cfg)
            for technique in techniques.values():
                technique.prepare(network)
            description = describe(cfg, data)

            fit = build_fit(cfg, run, ledger, steps, description, techniques, loggers)
            set_fingerprint(record, cfg, data, fit.trainer)
            run.note(device=record.fingerprint.device, threads=record.fingerprint.threads)
            start_from(run, fit, module, steps)
            heartbeat.step = lambda: fit.trainer.global_step
            continue_from = run.last_checkpoint if run.resumed else None
            check_monitors(cfg, module, data, fit.trainer)
            with leaving_with_a_checkpoint(fit.checkpoints), lightning_in_one_line():
                fit.trainer.fit(module, datamodule=data, ckpt_path=continue_from, weights_only=True)
            ledger.base("other")
            record.run.steps_executed = steps.value
            if fit.trainer.interrupted:
                raise KeyboardInterrupt
            record_quality(record, fit.trainer)
            record_fit(record, fit)
            with ledger.charge("measure"):
                record_compute(record, cfg, flops, fit)

            with ledger.charge("compress"):
                load_weights(cfg, run, module)
                network = compress(module, techniques, data)
                artefact.write(network, description, run.artefact)
                network, _ = artefact.load(run.artefact)
            record.techniques = {
                stage: {"option": str(record.config["choices"].get(stage)), **technique.figures()}
                for stage, technique in techniques.items()
            }
            with ledger.charge("test"):
                test(cfg, module, network, data, record)
            with ledger.charge("measure"):
                measure_network(record, cfg, network, data, run.artefact, fit.trainer.strategy.root_device)
        record_time(record, ledger, fit)
        record.status = "completed"
        explain_absent(record)
        run.save()
        heartbeat.stop(remove=True)
        tell(loggers, record, run.artefact)
    finally:
        record.run.steps_executed = steps.value
        if record.status == "running":
            record.time.wall_s, record.time.ledger_s = ledger.wall_s(), ledger.seconds()
        heartbeat.stop()
        steps.close()
        close(loggers)


# ---------------------------------------------------------------------------------------------------------- building
def build_data(cfg: DictConfig, state: dict[str, Any] | None = None) -> ArrayDataModule:
    """The DataModule; `state` are the statistics of the training split that a trained network was fed with."""
    preprocess = settings.instantiate(cfg.preprocess, "preprocess")
    if state is not None:
        preprocess.load_state_dict(state)
    data = settings.instantiate(cfg.data, "data", preprocess=preprocess, seed=int(cfg.seed))
    assert isinstance(data, ArrayDataModule)
    return data


def build_network(cfg: DictConfig, data: ArrayDataModule) -> nn.Module:
    """A fresh network of the data's dimensions, or with another run's weights (`model.init_from`)."""
    network = settings.instantiate(cfg.model.network, "model.network", **data.dims())
    source = cfg.model.get("init_from")
    if source:
        path = find_weights(Path(source))
        state, _ = artefact.read(path)
        artefact.load_state(network, state, path)
    return network


def build_module(cfg: DictConfig, network: nn.Module) -> pl.LightningModule:
    node = {key: value for key, value in settings.plain(cfg.model).items() if key != "network"}
    schedule = settings.instantiate(cfg.schedule, "schedule") if cfg.schedule and cfg.schedule.get("_target_") else None
    optimizer = settings.instantiate(cfg.optim, "optim")
    return settings.instantiate(node, "model", network=network, optimizer=optimizer, schedule=schedule)


def build_techniques(cfg: DictConfig) -> dict[str, Technique]:
    """The techniques that were chosen, in the order in which they act."""
    techniques = {}
    for stage in STAGES:
        node = cfg.get(stage)
        if node and node.get("_target_"):
            technique = settings.instantiate(node, stage)
            if not isinstance(technique, Technique):
                raise SettingsError(f"{stage}._target_={node._target_}: is no frugal.technique.Technique")
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
        logger = settings.instantiate(plain, f"logger.{key}", **extra)
        logger.log_hyperparams(run.record.config)
        loggers.append(logger)
    return loggers


def describe(cfg: DictConfig, data: ArrayDataModule) -> Description:
    preprocess = {**settings.plain(cfg.preprocess), "state": data.preprocess.state_dict()}
    node = settings.plain(cfg.data)
    node.get("source", {}).pop("root", None)  # where the data lay and who carried it is no part of what was learnt
    node.pop("workers", None)
    return Description(
        model=settings.plain(cfg.model) | {"init_from": None},
        dims={key: list(value) if isinstance(value, tuple) else value for key, value in data.dims().items()},
        task=str(cfg.data.task),
        preprocess=preprocess,
        data=node,
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


def start_from(run: Run, fit: Fit, module: pl.LightningModule, steps: StepCounter) -> None:
    """Say in the record where a continued run starts."""
    if not run.resumed:
        return
    checkpoint = artefact.read_checkpoint(run.last_checkpoint)
    artefact.load_state(module, checkpoint["state_dict"], run.last_checkpoint)
    step = int(checkpoint["global_step"])
    run.record.run.resumed += 1
    run.record.run.resumed_at_step.append(step)
    run.record.run.steps_executed = steps.value
    run.save()
    for logger in fit.trainer.loggers:
        if isinstance(logger, RunLogger):
            logger.resume_at(step)
    log.info("Continuing at step %d", step)


def check_monitors(cfg: DictConfig, module: pl.LightningModule, data: ArrayDataModule, trainer: pl.Trainer) -> None:
    """Refuse a monitored metric that this module never logs, before the training instead of after it."""
    if not isinstance(module, Classifier):  # of another module nobody knows what it logs
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


# ------------------------------------------------------------------------------------------------- after the training
def load_weights(cfg: DictConfig, run: Run, module: pl.LightningModule) -> None:
    """`run.weights=best` takes the weights of the best validation; by default the last ones stay."""
    if cfg.run.weights == "last":
        return
    if not run.best_checkpoint.is_file():
        raise SettingsError(
            f"run.weights=best: {cfg.run.monitor} was never logged; set run.monitor or run.weights=last"
        )
    module.load_state_dict(artefact.read_checkpoint(run.best_checkpoint)["state_dict"])


def compress(module: pl.LightningModule, techniques: dict[str, Technique], data: ArrayDataModule) -> nn.Module:
    """Let each technique finish its work on the network, in the order of the stages."""
    network: nn.Module = module.network.cpu().eval()  # type: ignore[union-attr]
    for technique in techniques.values():
        network = technique.finalize(network, calibration(data))
    return network


def calibration(data: ArrayDataModule, samples: int = 512) -> list[Tensor]:
    return list(data.calibration_batches(samples))


_TRUE = {torch.bfloat16: "bf16-true", torch.float16: "16-true", torch.float64: "64-true"}


def test(cfg: DictConfig, module: pl.LightningModule, network: nn.Module, data: ArrayDataModule, record: Any) -> None:
    """Test the network as it was read back from disk, by the same LightningModule's `test_step`."""
    module.network = network
    # A network that was written in another dtype than fp32 is tested in that, whatever the settings of an evaluation.
    dtype = artefact.floating_dtype(network.parameters())
    precision = {"precision": _TRUE[dtype]} if dtype in _TRUE else {}
    trainer = pl.Trainer(
        **{**trainer_arguments(cfg), "devices": 1, "enable_checkpointing": False, "detect_anomaly": False, **precision},
        callbacks=[Progress()],
        logger=False,
    )
    with lightning_in_one_line():
        (figures,) = trainer.test(module, datamodule=data, verbose=False)
    record.quality.update({name: float(value) for name, value in figures.items()})


def tell(loggers: list[Logger], record: Any, path: Path) -> None:
    """Hand the finished record and the artefact to the loggers. An upload is outside the run's wall time."""
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.log_record(record.to_dict())
            logger.log_artifact(path)


def close(loggers: list[Logger]) -> None:
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.close()


# --------------------------------------------------------------------------------------------------------- surroundings
_TORCH_THREADS = torch.get_num_threads()
_FLOPS_PER_THREAD = 1e8


def count_step(network: nn.Module, data: ArrayDataModule) -> StepFlops | None:
    """Operations of one batch of training; None for a network without trainable weights."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        return None
    return count_flops(network, torch.empty(data.batch_size, *data.dims()["input_shape"], device="meta"))


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


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's tips and hardware lines would bury what Frugal says; its warnings that matter stay."""
    names = (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
        "lightning.fabric.utilities.seed",
        "torch.onnx",  # speaks of torchvision at each export
    )
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in (
                ".*does not have many workers.*",  # data in memory is fastest without
                ".*GPU available but not used.*",
                ".*The number of training batches.*logging interval.*",
                ".*Checkpoint directory.*exists and is not empty.*",
                ".*isinstance.treespec, LeafSpec.*",
                ".*no training dataloader.*",
                ".*overfit_batches.*",
                ".*Starting from v1.9.0, `tensorboardX`.*",
                ".*You defined a `validation_step` but have no.*",
            ):
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
