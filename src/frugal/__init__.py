"""Frugal: train on images and text with efficiency techniques chosen by name, and get proof of what each cost and
saved."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from frugal.compression.plain import Compressed
    from frugal.record import Record
    from frugal.technique import Technique

__version__ = "0.1.0"
__all__ = ["__version__", "compress", "run"]


def run(overrides: Sequence[str] = (), verb: str = "train") -> Record:
    """Do the job of `frugal train OVERRIDES` in this process and return its record.

    Raises `frugal.errors.FrugalError` for bad input; what breaks while training raises as it is, after the
    record was written with status `failed`.
    """
    from frugal.job import run_overrides

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # in a notebook, of a bar that is not drawn
        return run_overrides(list(overrides), verb)


def compress(
    network: nn.Module,
    data: Any,
    *techniques: str | Technique,
    file: str | Path = "model",
    epochs: int = 0,
    optimizer: Callable[[Any], Any] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    metric: Any = None,
    validation: Any = None,
) -> Compressed:
    """Compress any torch network with data of your own, write it, and read it back; the network given stays as it is.

        small = frugal.compress(network, data, "quantization=weight_int8", "coding=entropy", metric="accuracy")

    Args:
        data: a LightningDataModule, or batches (x, y) that can be gone through more than once, as a DataLoader is.
        techniques: settings as on the command line, of `distillation=`, `pruning=`, `quantization=`, `coding=` and
            `deploy=`, or `Technique` objects. Without any: `quantization=weight_int8`. With
            `distillation=` and no teacher the network itself teaches.
        file: what to write; its suffix is that of the format.
        epochs: of training with the techniques; 0: they act on the network as it is.
        optimizer: makes an optimizer from parameters; None: Adam at 1e-4.
        loss: (output, y) -> mean loss; None: cross entropy.
        metric: of the network before and after: "accuracy", a torchmetrics metric, or a function (output, y) -> mean of
            a batch. On `validation`, by default the data module's validation batches.
        validation: batches (x, y).

    Raises FrugalError for what cannot be done.
    """
    from frugal.compression.plain import compress as work

    return work(network, data, techniques, file, epochs, optimizer, loss, metric, validation)
