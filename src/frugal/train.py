"""The main job, top to bottom: build, fit, compress, test, measure, record.

By the time it runs, the configuration was checked and the run's folder is open; `job.py` does that and keeps the record
when something breaks.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from frugal import artefact, compiled, precision, ranks, settings
from frugal.absent import explain_absent
from frugal.build import (
    DIMS,
    FACTS,
    Fit,
    build_data,
    build_fit,
    build_loggers,
    build_module,
    build_network,
    build_techniques,
    check_monitors,
    count_step,
    describe,
    lightning_in_one_line,
    set_threads,
    trainer_arguments,
)
from frugal.callbacks.checkpoints import leaving_with_a_checkpoint
from frugal.callbacks.progress import Progress
from frugal.coding.coder import CodingTechnique
from frugal.data.module import DataModule
from frugal.errors import SettingsError
from frugal.folder import HEARTBEAT, Run, StepCounter
from frugal.loggers.base import RunLogger
from frugal.measure import Ledger
from frugal.measure.flops import StepFlops
from frugal.measure.heartbeat import Heartbeat
from frugal.models.lora import merge
from frugal.record import CONFUSION, TOKENIZER, write_atomic
from frugal.recording import (
    flatten,
    measure_network,
    record_compute,
    record_fit,
    record_quality,
    record_time,
    set_fingerprint,
)
from frugal.report.text import cell_text
from frugal.strategy.activations import recomputed
from frugal.technique import STAGES, Technique

log = logging.getLogger("frugal")


def check(cfg: DictConfig) -> None:
    """Check every node against its target's signature, before data loads. Raises SettingsError."""
    for group in ("data", "preprocess", "model", "optim"):
        if not (cfg.get(group) or {}).get("_target_"):
            raise SettingsError(
                f"{group}: has no _target_, so there is nothing to build; choose an option, {group}=NAME"
            )
    for group in ("tokenizer", "preprocess", "curriculum"):
        settings.check_node(cfg.get(group), group)
    settings.check_node(cfg.data, "data", {"preprocess", "tokenizer", "curriculum", "seed"})
    model = {key: value for key, value in settings.plain(cfg.model).items() if key != "network"}
    settings.check_node(model, "model", {"network", "optimizer", "schedule", *FACTS})
    settings.check_node(cfg.model.network, "model.network", DIMS.get(cfg.data.task, set()))
    settings.check_node(cfg.model.get("lora"), "model.lora")
    if (cfg.model.get("lora") or {}).get("rank") and not cfg.model.get("init_from"):
        raise SettingsError(
            f"model.lora.rank={cfg.model.lora.rank}: adapters of random weights; "
            "name the run whose weights to start from, model.init_from=RUN"
        )
    settings.check_node(cfg.optim, "optim", {"params", "network"})
    settings.check_node(cfg.schedule, "schedule", {"optimizer", "total_steps"})
    for name, node in (cfg.callbacks or {}).items():
        settings.check_node(node, f"callbacks.{name}")
    for name, node in (cfg.logger or {}).items():
        settings.check_node(node, f"logger.{name}", {"folder"})
    for stage in STAGES:
        settings.check_node(cfg.get(stage), stage)
    settings.check_node(cfg.strategy, "strategy")
    ranks.check(cfg)
    precision.check(cfg)
    compiled.check(cfg)


def execute(cfg: DictConfig, run: Run, ledger: Ledger) -> None:
    """Train, compress, test and measure; everything that came of it is in `run.record` and in the run's folder."""
    record, steps = run.record, StepCounter(run.folder)
    heartbeat = Heartbeat(run.folder / HEARTBEAT, ledger)
    loggers: list[Logger] = []
    try:
        heartbeat.start()
        loggers += build_loggers(cfg, run)
        with quiet_lightning(), precision.products(cfg):
            with ranks.gather(cfg) as group:
                trained = train(cfg, run, ledger, group, steps, heartbeat, loggers)
            data, module, fit, techniques = trained.data, trained.module, trained.fit, trained.techniques
            network, description = trained.network, trained.description
            ledger.base("other")
            record.run.steps_executed = steps.value
            record_quality(record, fit.trainer)
            record_fit(record, fit)
            with ledger.charge("measure"):
                record_compute(record, cfg, trained.flops, fit)
                compiling = weigh_compilation(fit, data, ledger)

            with ledger.charge("compress"):
                network = gather_weights(run, trained)
                load_weights(cfg, run, module)
                network = compress(module, techniques, data)
                coding = techniques.get("coding")
                assert coding is None or isinstance(coding, CodingTechnique)
                artefact.write(network, description, run.artefact, coding)
                network, description = artefact.load(run.artefact)
            record.techniques = ({"lora": {"option": "lora", **trained.adapters}} if trained.adapters else {}) | {
                stage: {"option": str(record.config["choices"].get(stage)), **technique.figures()}
                for stage, technique in techniques.items()
            }
            with ledger.charge("test"):
                test(cfg, module, network, data, record)
                keep_confusion(run, module, data)
            for chosen, figures in (("strategy", trained.strategy), ("compile", compiling)):
                if figures:
                    record.techniques[chosen] = {"option": str(record.config["choices"].get(chosen)), **figures}
            with ledger.charge("measure"):
                measure_network(
                    record,
                    cfg,
                    network,
                    data,
                    run.artefact,
                    fit.trainer.strategy.root_device,
                    lambda: artefact.dense(description),
                )
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


@dataclass
class Trained:
    """What the training leaves in memory."""

    data: DataModule
    network: nn.Module
    module: pl.LightningModule
    techniques: dict[str, Technique]
    description: artefact.Description
    fit: Fit
    flops: StepFlops | None
    adapters: dict[str, Any]
    strategy: dict[str, Any]  # what its strategy did, for the record


def train(
    cfg: DictConfig,
    run: Run,
    ledger: Ledger,
    group: ranks.Group | None,
    steps: StepCounter | None = None,
    heartbeat: Heartbeat | None = None,
    loggers: Sequence[Logger] = (),
) -> Trained:
    """Build and fit: what every rank of a job does alike. Rank 0 has `steps`, `heartbeat` and `loggers`, and alone
    writes into the run's record and folder."""
    pl.seed_everything(cfg.seed, workers=False, verbose=False)
    data = build_data(cfg)
    data.prepare_data()
    data.setup("fit")
    network, adapters = build_network(cfg, data)
    flops = count_step(network, data)
    set_threads(cfg, flops, group)
    module = build_module(cfg, network, data)
    techniques = build_techniques(cfg)
    for technique in techniques.values():
        technique.prepare(network)
    description = describe(cfg, data)

    fit = build_fit(cfg, run, ledger, steps, description, techniques, list(loggers), network, group)
    if fit.budget is not None and flops is not None:
        fit.budget.flops_per_sample = flops.step / data.batch_size
    # before a checkpoint is loaded: Lightning would load one in 64 bits into 32
    module = fit.trainer.precision_plugin.convert_module(module)  # type: ignore[assignment]
    check_monitors(cfg, module, data, fit.trainer)
    if steps is not None and heartbeat is not None:
        run.record.data = keep_data(run, data)
        set_fingerprint(run.record, cfg, data, fit.trainer)
        run.note(device=run.record.fingerprint.device, threads=run.record.fingerprint.threads)
        start_from(run, fit, module, steps)
        heartbeat.step = lambda: fit.trainer.global_step
    continue_from = run.last_checkpoint if run.resumed else None
    with recomputed(network, bool(cfg.strategy.activation_checkpointing)):
        if group is not None:
            group.meet(cfg, run, fit.trainer.strategy.root_device)
        with leaving_with_a_checkpoint(fit.checkpoints), lightning_in_one_line():
            fit.trainer.fit(module, datamodule=data, ckpt_path=continue_from, weights_only=True)
    if fit.trainer.interrupted:
        raise KeyboardInterrupt
    figures = getattr(fit.trainer.strategy, "figures", None)
    did = figures() if figures is not None else {}
    return Trained(data, network, module, techniques, description, fit, flops, adapters, did)


def follow(cfg: DictConfig, run: Run, group: ranks.Group) -> None:
    """The part of a rank that is not the first."""
    with quiet_lightning(), precision.products(cfg):
        train(cfg, run, Ledger(), group)


def gather_weights(run: Run, trained: Trained) -> nn.Module:
    """The network with all its weights. Where ranks had parts of them, it is read from the last checkpoint, and the
    checkpoints become plain files."""
    if not getattr(trained.fit.trainer.strategy, "shares_out", False):
        return trained.network
    from frugal.strategy.shards import consolidate

    for checkpoint in (run.last_checkpoint, run.best_checkpoint):
        if checkpoint.is_file():
            consolidate(checkpoint)
    network, _ = artefact.load(run.last_checkpoint)
    trained.module.network = network
    return network


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


def keep_data(run: Run, data: DataModule) -> dict[str, Any]:
    """What the data module found, for the record; of text, its tokenizer is kept beside the run."""
    tokenizer = data.state_dict().get("tokenizer")
    if tokenizer is not None:
        write_atomic(run.folder / TOKENIZER, json.dumps(tokenizer, ensure_ascii=False) + "\n")
    found = data.figures()
    left_out: dict[str, Any] = {key: found[key] for key in ("dropped", "cleaning") if key in found}
    for name, count in flatten(left_out).items():
        _, *where, what = name.split(".")
        if count:
            log.info("%s: %s%s", what.replace("_", " ").capitalize(), f"{count:,}", f" in {where[0]}" if where else "")
    return found


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


def compress(module: pl.LightningModule, techniques: dict[str, Technique], data: DataModule) -> nn.Module:
    """Merge adapters, then let each technique finish its work on the network, in the order of the stages."""
    network: nn.Module = module.network.cpu().eval()  # type: ignore[union-attr]
    merge(network)
    for technique in techniques.values():
        network = technique.finalize(network, calibration(data))
    return network


def weigh_compilation(fit: Fit, data: DataModule, ledger: Ledger) -> dict[str, Any]:
    """What `compile=` cost and saved; nothing where it was not chosen."""
    if fit.compiled is None:
        return {}
    fit.compiled.take_off()
    batch = next(iter(data.calibration_batches(data.batch_size)))
    batch = fit.trainer.precision_plugin.convert_input(batch).to(fit.trainer.strategy.root_device)
    with fit.trainer.precision_plugin.forward_context():
        return fit.compiled.figures(batch, ledger.seconds()["compile"])


def calibration(data: DataModule, samples: int = 512) -> list[Tensor]:
    """Training inputs as the network takes them; texts all of the greatest length, since a file may take no other."""
    longest = int(data.dims().get("max_length") or 0)
    batches = list(data.calibration_batches(samples))
    return [F.pad(batch, (0, longest - batch.shape[1])) if longest else batch for batch in batches]


_TRUE = {torch.bfloat16: "bf16-true", torch.float16: "16-true", torch.float64: "64-true"}


def test(cfg: DictConfig, module: pl.LightningModule, network: nn.Module, data: DataModule, record: Any) -> None:
    """Test the network as it was read back from disk, by the same LightningModule's `test_step`."""
    module.network = network
    # A network that was written in another dtype than fp32 is tested in that, whatever the settings of an evaluation.
    dtype = artefact.floating_dtype(network.parameters())
    arguments = trainer_arguments(cfg) | {"devices": 1, "num_nodes": 1}
    arguments |= {"enable_checkpointing": False, "detect_anomaly": False}
    if dtype in _TRUE:
        arguments.pop("plugins", None)
        arguments["precision"] = _TRUE[dtype]
    trainer = pl.Trainer(**arguments, callbacks=[Progress()], logger=False)
    with lightning_in_one_line():
        # the last validation was of other weights, or of weights before they were compressed
        if (cfg.run.weights == "best" or record.techniques) and "val" in data.splits:
            (figures,) = trainer.validate(module, datamodule=data, verbose=False)
            record.quality.update({name: float(value) for name, value in figures.items()})
        figures = trainer.test(module, datamodule=data, verbose=False)[0] if cfg.run.test else {}
    record.quality.update({name: float(value) for name, value in figures.items()})


def keep_confusion(run: Run, module: pl.LightningModule, data: DataModule) -> None:
    """Write what a classifier took for what on the test set; `frugal report` draws it."""
    counts = getattr(module, "confusion", None)
    if counts is None:
        return
    names = data.class_names or [str(label) for label in range(len(counts))]
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    cells = [cell_text(name) for name in names]  # a spreadsheet would run a name that looks like a formula
    table.writerow(["true", *cells])
    table.writerows([name, *row] for name, row in zip(cells, counts.tolist(), strict=True))
    write_atomic(run.folder / CONFUSION, buffer.getvalue())


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
@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's tips and hardware lines would bury what Frugal says; its warnings that matter stay."""
    names = (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
        "lightning.fabric.utilities.seed",
        "torch.onnx",  # speaks of torchvision at each export
        "torch.distributed.tensor._redistribute",  # of two gathers in a row, for a checkpoint
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
                ".*Total length of `list` across ranks is zero.*",  # no validation split
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
