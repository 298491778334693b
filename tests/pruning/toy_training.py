"""A small training in a plain Lightning Trainer: no part of Frugal but the technique under test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

BATCH, SAMPLES = 8, 64


class Toy(pl.LightningModule):
    """A user's own module, with the two things that techniques ask for: `network` and `criterion`."""

    def __init__(self, network: nn.Module, optimizer: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.network, self.criterion = network, F.cross_entropy
        self.make = optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01))
        self.rates: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.criterion(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


def perceptron(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))


def samples() -> TensorDataset:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 8, generator=draw)
    return TensorDataset(x, x[:, :4].argmax(1))


class Until(pl.Callback):
    """Checkpoints after `step` optimizer steps and stops, as a kill would."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def fit(
    module: pl.LightningModule,
    *callbacks: pl.Callback,
    epochs: int = 2,
    resume: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    """Epochs of eight steps, in order, so that a resume at an epoch's end sees the same batches."""
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(samples(), batch_size=BATCH), ckpt_path=resume, weights_only=True)
    return trainer
