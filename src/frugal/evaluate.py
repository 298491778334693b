"""`frugal evaluate RUN_OR_CHECKPOINT`: what a run left, tested and measured again, through the same record.

Works from the checkpoint or the artefact alone: it says which network it holds, how its inputs were normalized and on
which data it was trained. Any data option that fits can take that one's place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf

from frugal import artefact, settings
from frugal.absent import explain_absent
from frugal.artefact import Description, crafted
from frugal.build import build_data, build_loggers, count_step, set_threads
from frugal.errors import RefusedError
from frugal.folder import Run
from frugal.measure import Ledger
from frugal.paths import FORMATS, find_weights
from frugal.record import write_atomic
from frugal.recording import measure_network, record_time, set_fingerprint
from frugal.train import close, keep_confusion, keep_data, quiet_lightning, tell, test


def check(cfg: DictConfig) -> None:
    """Check the nodes against their targets' signatures. Raises SettingsError."""
    if cfg.get("data"):
        settings.check_node(cfg.data, "data", {"preprocess", "tokenizer", "curriculum", "seed"})
    for name, node in (cfg.logger or {}).items():
        settings.check_node(node, f"logger.{name}", {"folder"})


def execute(cfg: DictConfig, run: Run, ledger: Ledger) -> None:
    record = run.record
    loggers = build_loggers(cfg, run)
    try:
        with quiet_lightning():
            path = find_weights(Path(str(cfg.source)))
            network, description = artefact.load(path)
            whole = settings_for(cfg, description, path)
            if whole.data.get("task") != description.task:
                raise RefusedError(f"{path}: was trained for {description.task}, data.task is {whole.data.get('task')}")
            with crafted(path):
                data = build_data(whole, description.state)
            data.prepare_data()
            data.setup("test")
            record.data = keep_data(run, data)
            refuse_other_data(description, data, path)
            set_threads(whole, count_step(artefact.dense(description), data))  # as in training, so that the two compare
            set_fingerprint(record, whole, data)
            record.config = {**settings.plain(whole), "choices": record.config["choices"]}
            with crafted(path):
                model = {key: value for key, value in description.model.items() if key != "network"}
                offered = {**data.facts(), "block_size": data.dims().get("block_size")}
                module = settings.instantiate(model, "model", offered, network=network)
                if not isinstance(module, LightningModule):
                    raise TypeError(f"{description.model['_target_']} is no LightningModule")
            ledger.base("other")
            with ledger.charge("compress"):
                if path.suffix in FORMATS:  # the very file
                    copied = run.artefact.with_suffix(path.suffix)
                    write_atomic(copied, path.read_bytes())
                else:  # so that the size is that of the network alone
                    artefact.write(network, description, run.artefact)
                network, description = artefact.load(run.artefact)
            with ledger.charge("test"):
                test(whole, module, network, data, record)
                keep_confusion(run, module, data)
            with ledger.charge("measure"):
                measure_network(
                    record, whole, network, data, run.artefact, torch.device("cpu"), lambda: artefact.dense(description)
                )
        record_time(record, ledger)
        record.status = "completed"
        explain_absent(record, trains=False)
        run.save()
        tell(loggers, record, run.artefact)
    finally:
        close(loggers)


def settings_for(cfg: DictConfig, description: Description, path: Path) -> DictConfig:
    """The evaluation's settings, completed by what the artefact says of itself."""
    whole: Any = OmegaConf.create(settings.plain(cfg))
    whole.preprocess, whole.tokenizer = description.preprocess, description.tokenizer
    whole.model = description.model
    if not whole.get("data"):
        whole.data = description.data
        refill(whole, path)
    elif "test" in source_places(whole) and not whole.data.source.get("test"):
        whole.data.source.test = whole.data.source.path  # another table is tested whole
    return whole


def refill(whole: DictConfig, path: Path) -> None:
    """Put back where the data lie: below `paths.data_dir`, or where the run beside the weights had them."""
    for node, names in ((whole.data.source, source_places(whole)), (whole.data, ("cache",))):
        takes = settings.parameter_names(settings.resolve(node._target_, "data._target_"))
        for name in names:
            if name not in takes or node.get(name) is not None:
                continue
            if name == "root":
                node.root = whole.paths.data_dir
            elif name == "cache":
                node.cache = whole.paths.cache_dir
            else:
                value = OmegaConf.select(config_of(path), f"data.source.{name}")
                if value is not None:
                    node[name] = value


def source_places(whole: DictConfig) -> tuple[str, ...]:
    source: Any = settings.resolve(whole.data.source._target_, "data.source._target_")
    return tuple(source.places)


def config_of(path: Path) -> Any:
    """The configuration of the run that some weights belong to; empty where they lie alone."""
    for folder in (path.parent, path.parent.parent):
        if (folder / "config.yaml").is_file():
            return OmegaConf.load(folder / "config.yaml")
    return OmegaConf.create()


def refuse_other_data(description: Description, data: Any, path: Path) -> None:
    """Raises RefusedError where the network cannot take this data."""
    dims = {key: list(value) if isinstance(value, tuple) else value for key, value in data.dims().items()}
    for key, trained in description.dims.items():
        # shorter blocks suit any network, and one that cannot take longer ones says so itself
        if key not in ("block_size", "max_length") and dims.get(key) != trained:
            raise RefusedError(
                f"{path}: was trained with {key}={trained}, this data has {dims.get(key)}; choose another data="
            )
