"""How much two networks differ on the same samples: the drop and how far it may be chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from frugal import artefact, compose
from frugal.build import build_data
from frugal.errors import RunError
from frugal.models.language_model import IGNORED
from frugal.models.module import full_precision
from frugal.train import quiet_lightning


class Judge:
    """Compares networks with one of them on validation data, sample by sample.

    Args:
        words: settings that say the data, as for `frugal train`.
        reference: the file of the network to compare with.
    """

    def __init__(self, words: Sequence[str], reference: Path) -> None:
        cfg, _ = compose.compose("train", words)
        self.task = str(cfg.data.task)
        with quiet_lightning():
            self._data = build_data(cfg)
            self._data.prepare_data()
            self._data.setup("fit")
        if "val" not in self._data.splits:
            raise RunError(
                "compress: the run has no validation data, on which choices are made; train it with"
                " data.val_fraction=0.1"
            )
        self._reference = self.scores(reference)

    @property
    def samples(self) -> int:
        return len(self._reference)

    def drop(self, file: Path) -> tuple[float, float]:
        """What the network of this file loses, and the standard error of that; less than 0 where it is better."""
        return difference(self._reference, self.scores(file), whole=self.task.endswith("classification"))

    @torch.inference_mode()
    def scores(self, file: Path) -> Tensor:
        """Of each sample (N,), more is better: whether it is right; of a regression minus the squared error, of running
        text minus a block's nats, such that the mean is minus the loss."""
        network, _ = artefact.load(file)
        dtype = artefact.floating_dtype(network.parameters())
        network.eval()
        found = []
        for x, y in self._batches():
            if dtype is not None and x.is_floating_point():
                x = x.to(dtype)
            found.append(self._of_batch(full_precision(network(x)), y))
        scores = torch.cat(found).double()
        if self.task == "language_modeling":  # rows of nats and of tokens
            scores = -scores[:, 0] / scores[:, 1].mean()
        return scores

    def _of_batch(self, output: Tensor, y: Tensor) -> Tensor:
        if self.task == "regression":
            facts = self._data.facts()
            target = (y.double() - facts.get("target_mean", 0.0)) / facts.get("target_std", 1.0)
            return -(output.squeeze(1) - target).square()
        if self.task == "language_modeling":
            nats = F.cross_entropy(output.flatten(0, 1), y.flatten(), reduction="none", ignore_index=IGNORED)
            return torch.stack([nats.view(y.shape).double().sum(1), (y != IGNORED).double().sum(1)], 1)
        return (output.argmax(1) == y).double()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        loaders = self._data.val_dataloader()
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            for batch in loader:
                yield self._data.on_after_batch_transfer(batch, 0)


def difference(reference: Tensor, other: Tensor, whole: bool) -> tuple[float, float]:
    """Mean of reference - other over samples (N,), and its standard error from the differences of single samples.

    Args:
        whole: differences are -1, 0 and 1; then one more is counted than there are, so that a small split without any
            is not taken for certain.
    """
    each = reference - other
    mean, n = float(each.mean()), len(each)
    squares = float((each - mean).square().sum()) + (1.0 if whole else 0.0)
    return mean, math.sqrt(squares / n / max(1, n - 1))
