"""A teacher: the network of a finished run, or one that is trained here and now, and what it cost.

It is never part of the student, of its LightningModule or of a checkpoint: whoever continues a run needs it again.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from frugal import settings
from frugal.errors import RunError, SettingsError
from frugal.measure.time_ledger import TimeLedger

TRAINING = ("compile", "warmup", "data_wait", "train_step", "callbacks", "validation", "checkpoint")  # of a ledger
AGREE = ("input_shape", "classes", "outputs", "vocabulary")  # what teacher and student must have alike


@dataclass
class Teacher:
    """`network` maps what `adapt` makes of the student's inputs; `figures` are plain values, its cost among them."""

    network: nn.Module
    figures: dict[str, Any] = field(default_factory=dict)
    adapt: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)
        self.figures["parameters"] = sum(parameter.numel() for parameter in self.network.parameters())

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self.network(x if self.adapt is None else self.adapt(x))


# --------------------------------------------------------------------------------------------------- of a finished run
def load_teacher(source: str, data: Any | None) -> Teacher:
    """The network of a run, a checkpoint or an artefact. Raises SettingsError where it was not made for such `data`."""
    from frugal import artefact

    key = f"distillation.teacher={source}"
    try:
        network, description = artefact.load(artefact.find_weights(Path(source)))
    except RunError as error:
        raise SettingsError(f"distillation.teacher: {error}") from None
    adapt = None
    if data is not None and hasattr(data, "dims"):
        dims = data.dims()
        for name in AGREE:
            own, its = dims.get(name), description.dims.get(name)
            if (list(own) if isinstance(own, tuple) else own) != its:
                raise SettingsError(f"{key}: was trained for {name}={its}, and this data has {own}")
        if description.state.get("tokenizer") != data.state_dict().get("tokenizer"):
            raise SettingsError(f"{key}: was trained with another tokenizer than this data is encoded with")
        adapt = _rescaling(description, data)
    return Teacher(network, {"source": str(source), "training_s": _training_s(Path(source))}, adapt)


def _rescaling(description: Any, data: Any) -> Callable[[Tensor], Tensor] | None:
    """From inputs as the student's data normalizes them to inputs as the teacher knows them; None where both are the
    same. Both are affine in the stored values: what becomes of 0 and of 1 tells them."""
    splits = getattr(data, "splits", {})
    if data.tokenizer is not None or "train" not in splits:
        return None
    theirs = settings.instantiate(description.preprocess, "preprocess")
    theirs.load_state_dict(description.state["preprocess"])
    probe = torch.zeros_like(splits["train"][0][:1])

    def affine(preprocess: Any) -> tuple[Tensor, Tensor]:
        offset = preprocess(probe, False).double()
        return preprocess(torch.ones_like(probe), False).double() - offset, offset

    (scale, offset), (its_scale, its_offset) = affine(data.preprocess), affine(theirs)
    factor = its_scale / scale
    shift = its_offset - offset * factor
    if torch.allclose(factor, torch.ones_like(factor), rtol=1e-5) and float(shift.abs().max()) < 1e-5:
        return None
    factor, shift = factor.float(), shift.float()
    return lambda x: x * factor.to(x) + shift.to(x)


def _training_s(source: Path) -> float | None:
    """Seconds that a run's record says for training, validation in it; None without a record."""
    for folder in (source, *source.parents[:2]):
        file = folder / "record.json"
        if file.is_file():
            with contextlib.suppress(ValueError, AttributeError):
                ledger_s = json.loads(file.read_text())["time"]["ledger_s"]
                return round(sum(ledger_s.get(bucket, 0.0) for bucket in TRAINING), 3)
    return None


# ------------------------------------------------------------------------------------------------ trained on the spot
def train_teacher(trainer: pl.Trainer, option: str, epochs: int, overrides: list[str]) -> Teacher:
    """Train the network of `model=option`, with the optimizer that it brings, on the data that `trainer` is about to
    train on. A function of the settings and the data's seed. The time is charged to the ledger's `distillation`."""
    data: Any = getattr(trainer, "datamodule", None)
    if data is None or not hasattr(data, "dims"):
        raise SettingsError(
            f"distillation.teacher_model={option}: needs one of Frugal's data modules; elsewhere name a trained"
            " network, distillation.teacher=RUN"
        )
    begun = time.monotonic()
    with charge_of(trainer), torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(int(data.seed))
        module, nested = _fit(trainer, data, option, epochs, overrides)
    seen = {name: float(value) for name, value in nested.callback_metrics.items() if name.startswith("val/")}
    figures = {"source": f"model={option}", "epochs": epochs, "training_s": round(time.monotonic() - begun, 3), **seen}
    return Teacher(module.network.cpu(), figures)


def _fit(trainer: pl.Trainer, data: Any, option: str, epochs: int, overrides: list[str]) -> tuple[Any, pl.Trainer]:
    from frugal import console
    from frugal.build import build_module, build_network
    from frugal.callbacks.exact import ExactRandomness
    from frugal.callbacks.progress import Progress
    from frugal.compose import compose

    console.say(f"Training the teacher, {option}")
    cfg, _ = compose("train", [f"model={option}", *overrides])
    settings.check_targets(cfg)
    task, wanted = data.source.task, (cfg.model.get("needs") or {}).get("data.task")
    if wanted is not None and task not in wanted:
        raise SettingsError(f"distillation.teacher_model={option}: needs data.task to be {' or '.join(wanted)}")
    own = copy.copy(data)  # a Trainer takes its data module for its own
    own.trainer, own._train_loader = None, None
    network, _ = build_network(cfg, own)
    module: Any = build_module(cfg, network, own)
    nested = pl.Trainer(
        accelerator="cpu" if trainer.strategy.root_device.type == "cpu" else "auto",
        devices=1,
        precision=trainer.precision,
        max_epochs=epochs,
        limit_train_batches=trainer.limit_train_batches,
        limit_val_batches=trainer.limit_val_batches,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        callbacks=[ExactRandomness(int(data.seed)), Progress()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    nested.fit(module, datamodule=own)
    if nested.interrupted:
        raise KeyboardInterrupt
    return module, nested


def charge_of(trainer: Any) -> contextlib.AbstractContextManager[None]:
    """Charges the ledger's `distillation`, as often as it is entered; nothing where there is no ledger."""
    meter = next((callback for callback in trainer.callbacks if isinstance(callback, TimeLedger)), None)
    return contextlib.nullcontext() if meter is None else meter.ledger.charge("distillation")
