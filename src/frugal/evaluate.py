"""`frugal evaluate RUN_OR_CHECKPOINT`: what a run left, tested and measured again, through the same record.

Works from the checkpoint or the artefact alone: it says which network it holds, how its inputs were normalized and on
which data it was trained. Any data option that fits can take that one's place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from frugal import artefact, settings
from frugal.artefact import Description
from frugal.errors import RefusedError
from frugal.folder import Run
from frugal.measure import Ledger
from frugal.recording import measure_network, record_time, set_fingerprint
from frugal.train import build_data, build_loggers, close, quiet_lightning, set_threads, tell, test


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
            set_threads(cfg)
            path = artefact.find(Path(str(cfg.source)).expanduser())
            network, description = artefact.load(path)
            whole = settings_for(cfg, description)
            data = build_data(whole, description.preprocess["state"])
            data.prepare_data()
            data.setup("test")
            refuse_other_data(description, data, path)
            set_fingerprint(record, whole, data)
            record.config = {**settings.plain(whole), "choices": record.config["choices"]}
            module = settings.instantiate(
                {key: value for key, value in description.model.items() if key != "network"}, "model", network=network
            )
            ledger.base("other")
            # Written anew, so that the size is that of the network alone, also where a checkpoint was given.
            artefact.write(network, description, run.artefact)
            network, _ = artefact.load(run.artefact)
            with ledger.charge("test"):
                test(whole, module, network, data, record)
            with ledger.charge("measure"):
                measure_network(record, whole, network, data, run.artefact, torch.device("cpu"))
        for name in ("throughput.samples_per_s", "compute.mfu", "memory.peak_private_bytes"):
            record.absent[name] = "an evaluation does not train"
        record.energy.reason = "an evaluation does not train"
        record_time(record, ledger)
        record.status = "completed"
        run.save()
        tell(loggers, record, run.artefact)
    finally:
        close(loggers)


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
