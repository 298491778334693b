"""`frugal.compress`: techniques on any torch network, with data of one's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frugal import artefact, settings
from frugal.artefact import Description
from frugal.build import build_techniques
from frugal.callbacks.progress import Progress
from frugal.coding.coder import CodingTechnique
from frugal.compose import compose
from frugal.distillation.base import Distillation
from frugal.distillation.teacher import Teacher
from frugal.errors import SettingsError
from frugal.measure import size_figures, sparsity_figures
from frugal.record import Record, Size, Sparsity
from frugal.recording import status_of
from frugal.technique import STAGES, Technique
from frugal.train import quiet_lightning

CALIBRATION = 512  # samples
DEFAULT = ("quantization=weight_int8",)
ITSELF = "the network itself"
PLACE = "pruning"  # of a technique that does not say where it acts


@dataclass
class Compressed:
    """What `frugal.compress` leaves.

    `network` is the file, read back; `quality` has the metric `before` and `after`, where one was given; `techniques`
    says what each really did.
    """

    network: nn.Module
    file: Path
    size: Size
    sparsity: Sparsity
    status: str
    quality: dict[str, float] = field(default_factory=dict)
    techniques: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        size = self.size
        lines = [f"{self.file}: {size.file_bytes:,} bytes, {size.compression_ratio:.3g} times smaller, {self.status}"]
        lines += [f"{name}: {value:.4g}" for name, value in self.quality.items()]
        return "\n".join(lines)


def compress(
    network: nn.Module,
    data: Any,
    techniques: Sequence[str | Technique],
    file: str | Path,
    epochs: int,
    optimizer: Callable[[Any], Any] | None,
    loss: Callable[[Any, Any], Any] | None,
    metric: Any,
    validation: Any,
) -> Compressed:
    """See `frugal.compress`."""
    if not isinstance(network, nn.Module):
        raise SettingsError(f"network: is a {type(network).__name__}, not a torch.nn.Module")
    if isinstance(network, pl.LightningModule):
        raise SettingsError("network: give the nn.Module that a LightningModule trains, as module.network")
    if epochs < 0:
        raise SettingsError(f"epochs={epochs}: is 0 or more")
    chosen = chosen_techniques(techniques or DEFAULT)
    batches = Batches(data, validation)
    measured = _metric(metric, batches)
    small = copy.deepcopy(network)
    with quiet_lightning():
        for technique in chosen.values():
            if isinstance(technique, Distillation):
                _teach(technique, network, epochs)
            technique.prepare(small)
        if epochs:
            _train(small, batches, list(chosen.values()), epochs, optimizer, loss)
        small = small.cpu().eval()
        for technique in chosen.values():
            small = technique.finalize(small, batches.inputs(CALIBRATION))
        coding = chosen.get("coding")
        assert coding is None or isinstance(coding, CodingTechnique)
        target = Path(file).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        written = artefact.write(small, DESCRIBES_NOTHING, target, coding)
        small = load(written, network)
    done = {stage: technique.figures() for stage, technique in chosen.items()}
    return Compressed(
        network=small,
        file=written,
        size=size_figures(small, written, network),
        sparsity=sparsity_figures(small),
        status=str(status_of(Record(techniques=done), small)),
        quality={} if measured is None else {"before": measured(network), "after": measured(small)},
        techniques=done,
    )


# The file of a plain network does not say how to build it: whoever reads it has one like it.
DESCRIBES_NOTHING = Description(
    model={}, dims={}, task="", preprocess={}, data={}, tokenizer={}, state={"preprocess": {}}
)


def load(file: str | Path, like: nn.Module) -> nn.Module:
    """The network of a file that `frugal.compress` wrote. `like` is one as it was before, whatever its weights; it
    stays as it is. Raises RunError where the file holds another network."""
    return artefact.load(Path(file), like)[0]


def chosen_techniques(given: Sequence[str | Technique]) -> dict[str, Technique]:
    """By stage, in the order in which they act. Raises SettingsError for what is no technique, and for pairs without
    meaning."""
    words = [word for word in given if isinstance(word, str)]
    found: dict[str, Technique] = {}
    for word in words:
        if word.partition("=")[0].split(".")[0] not in STAGES:
            raise SettingsError(f"{word}: is none of {', '.join(f'{stage}=' for stage in STAGES)}")
    if words:
        if any(word.startswith("distillation=") for word in words) and not any(".teacher" in word for word in words):
            words.append(f'distillation.teacher="{ITSELF}"')
        cfg, choices = compose("train", words)
        settings.check_targets(cfg)
        settings.check_rules(cfg, choices)
        for stage in STAGES:
            settings.check_node(cfg.get(stage), stage)
        found = build_techniques(cfg)
    for technique in given:
        if isinstance(technique, str):
            continue
        if not isinstance(technique, Technique):
            raise SettingsError(f"techniques: a {type(technique).__name__} is no technique and no setting")
        stage = technique.stage or next((s for s in STAGES if s in type(technique).__module__.split(".")), PLACE)
        if stage in found:
            raise SettingsError(f"techniques: two of {stage}")
        found[stage] = technique
    return {stage: found[stage] for stage in sorted(found, key=STAGES.index)}


def _teach(technique: Distillation, network: nn.Module, epochs: int) -> None:
    if not epochs:
        raise SettingsError("distillation: acts in training; set epochs")
    if technique.source == ITSELF:
        technique.teacher = Teacher(copy.deepcopy(network), {"source": ITSELF})


# ------------------------------------------------------------------------------------------------------- the data
class Batches:
    """What is trained, calibrated and validated on: a data module's batches, or those that were given."""

    def __init__(self, data: Any, validation: Any) -> None:
        self.module = data if isinstance(data, pl.LightningDataModule) else None
        if self.module is not None:
            self.module.prepare_data()
            self.module.setup("fit")
        self._training, self._validation = data, validation
        for name, batches in (("data", data), ("validation", validation)):
            if batches is not None and not isinstance(batches, pl.LightningDataModule):
                _check(name, batches)

    def training(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._ready(self._training if self.module is None else self.module.train_dataloader())

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        loaders = self._validation
        if loaders is None:
            loaders = self.module.val_dataloader() if self.module is not None else None
        if loaders is None or (isinstance(loaders, list) and not loaders):
            raise SettingsError("metric: there are no validation batches; give them as validation=")
        yield from self._ready(loaders)

    def inputs(self, samples: int) -> list[Tensor]:
        """Training inputs, at least two of them where there are so many."""
        found: list[Tensor] = []
        for x, _ in self.training():
            found.append(x[:samples].cpu())
            samples -= len(x)
            if samples <= 0:
                break
        return found

    def _ready(self, batches: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """As the data module's own hooks leave them."""
        for batch in batches:
            if self.module is not None:
                batch = self.module.on_after_batch_transfer(self.module.on_before_batch_transfer(batch, 0), 0)
            if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Tensor):
                raise SettingsError("data: its batches are no pairs (x, y) of tensors")
            yield batch[0], batch[1]


def _check(name: str, batches: Any) -> None:
    if not isinstance(batches, Iterable) or iter(batches) is batches:
        raise SettingsError(
            f"{name}: is a {type(batches).__name__}; give a LightningDataModule, a DataLoader, or a list of (x, y)"
        )


def _metric(metric: Any, batches: Batches) -> Callable[[nn.Module], float] | None:
    if metric is None:
        return None
    if isinstance(metric, str) and metric != "accuracy":
        raise SettingsError(f'metric={metric}: is "accuracy", a torchmetrics metric, or a function (output, y) -> mean')
    next(batches.validation())  # before anything is trained

    @torch.no_grad()
    def measured(network: nn.Module) -> float:
        training = network.training
        network.eval()
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        total, count = 0.0, 0
        for x, y in batches.validation():
            output, y = network(x.to(device)).cpu(), y.cpu()
            if hasattr(metric, "update"):
                metric.update(output, y)
                continue
            value = (output.argmax(1) == y).float().mean() if metric == "accuracy" else metric(output, y)
            total, count = total + float(value) * len(x), count + len(x)
        network.train(training)
        if hasattr(metric, "update"):
            found = float(metric.compute())
            metric.reset()
            return found
        return total / count

    return measured


# ---------------------------------------------------------------------------------------------------- the training
class _Training(pl.LightningModule):
    """A plain network as Lightning trains it; techniques know `network` and `criterion`."""

    def __init__(self, network: nn.Module, criterion: Any, optimizer: Any, example: Tensor) -> None:
        super().__init__()
        self.network, self.criterion, self.example_input_array = network, criterion, example
        self._optimizer = optimizer
        self.last_loss: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.criterion(self.network(x), y)
        self.last_loss = loss.detach()
        return loss

    def configure_optimizers(self) -> Any:
        return self._optimizer([p for p in self.parameters() if p.requires_grad])


def _train(
    network: nn.Module, batches: Batches, techniques: Sequence[Technique], epochs: int, optimizer: Any, loss: Any
) -> None:
    example = batches.inputs(2)[0][:2]
    module = _Training(network, loss or F.cross_entropy, optimizer or _adam, example)
    trainer = pl.Trainer(
        max_epochs=epochs,
        devices=1,
        callbacks=[*techniques, Progress()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    if batches.module is not None:
        trainer.fit(module, datamodule=batches.module)
        batches.module.trainer = None
    else:
        trainer.fit(module, batches._training)
    if trainer.interrupted:
        raise KeyboardInterrupt


def _adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-4)
