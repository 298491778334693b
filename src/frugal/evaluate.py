"""`frugal evaluate RUN_OR_CHECKPOINT`: what a run left, tested and measured again, through the same record.

Works from the checkpoint or the artefact alone: it says which network it holds, how its inputs were normalized and on
which data it was trained. Any data option that fits can take that one's place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf

from frugal import artefact, settings
from frugal.absent import explain_absent
from frugal.artefact import Description
from frugal.build import build_data, build_loggers, count_step, set_threads
from frugal.errors import RefusedError, RunError
from frugal.folder import Run
from frugal.measure import Ledger
from frugal.paths import find_weights
from frugal.recording import measure_network, record_time, set_fingerprint
from frugal.train import close, quiet_lightning, tell, test


def check(cfg: DictConfig) -> None:
    """Check the nodes against their targets' signatures. Raises SettingsError."""
    if cfg.get("data"):
        settings.check_node(cfg.data, "data", {"preprocess", "seed"})
    for name, node in (cfg.logger or {}).items():
        settings.check_node(node, f"logger.{name}", {"folder"})


def execute(cfg: DictConfig, run: Run, ledger: Ledger) -> None:
    record = run.record
    loggers = build_loggers(cfg, run)
    try:
        with quiet_lightning():
            path = find_weights(Path(str(cfg.source)))
            network, description = artefact.load(path)
            whole = settings_for(cfg, description)
            if whole.data.get("task") != description.task:
                raise RefusedError(f"{path}: was trained for {description.task}, data.task is {whole.data.get('task')}")
            with crafted(path):
                data = build_data(whole, description.preprocess["state"])
            data.prepare_data()
            data.setup("test")
            refuse_other_data(description, data, path)
            set_threads(whole, count_step(network, data))  # as in training, so that the two compare
            set_fingerprint(record, whole, data)
            record.config = {**settings.plain(whole), "choices": record.config["choices"]}
            with crafted(path):
                model = {key: value for key, value in description.model.items() if key != "network"}
                module = settings.instantiate(model, "model", network=network)
                if not isinstance(module, LightningModule):
                    raise TypeError(f"{description.model['_target_']} is no LightningModule")
            ledger.base("other")
            with ledger.charge("compress"):
                # Written anew, so that the size is that of the network alone, also where a checkpoint was given.
                artefact.write(network, description, run.artefact)
                network, _ = artefact.load(run.artefact)
            with ledger.charge("test"):
                test(whole, module, network, data, record)
            with ledger.charge("measure"):
                measure_network(record, whole, network, data, run.artefact, torch.device("cpu"))
        record_time(record, ledger)
        record.status = "completed"
        explain_absent(record, trains=False)
        run.save()
        tell(loggers, record, run.artefact)
    finally:
        close(loggers)


@contextlib.contextmanager
def crafted(path: Path) -> Iterator[None]:
    """A file may say of itself whatever it likes: what cannot be built from that is one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path}: describes itself wrongly ({type(error).__name__}: {error})") from None


def settings_for(cfg: DictConfig, description: Description) -> DictConfig:
    """The evaluation's settings, completed by what the artefact says of itself."""
    whole: Any = OmegaConf.create(settings.plain(cfg))
    whole.preprocess = {key: value for key, value in description.preprocess.items() if key != "state"}
    whole.model = description.model
    if not whole.get("data"):
        whole.data = description.data
        target = settings.resolve(whole.data.source._target_, "data.source._target_")
        if "root" in settings.parameter_names(target) and whole.data.source.get("root") is None:
            whole.data.source.root = whole.paths.data_dir
    return whole


def refuse_other_data(description: Description, data: Any, path: Path) -> None:
    """Raises RefusedError where the network cannot take this data."""
    dims = {key: list(value) if isinstance(value, tuple) else value for key, value in data.dims().items()}
    for key, trained in description.dims.items():
        if dims.get(key) != trained:
            raise RefusedError(
                f"{path}: was trained with {key}={trained}, this data has {dims.get(key)}; choose another data="
            )
