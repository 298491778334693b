"""`LanguageModel`: any network that maps tokens (B, T) to logits (B, T, V) of each next token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frugal.errors import SettingsError
from frugal.models.module import Batch, MakeOptimizer, MakeSchedule, Module, full_precision

IGNORED = -100  # a target where nothing is to be predicted: padding, or the border between two documents


class LanguageModel(Module):
    """Trains `network` to predict the next token by cross entropy, in nats a token.

    A batch is `(x, y)`, both (B, T) int64; targets of -100 count nowhere. `padded` False promises that there are none,
    which saves looking for them. `token_bytes` and `token_characters`, (V,), say what each token stands for, so that
    losses compare between tokenizers: bits per byte and per character are all nats of the evaluated tokens over all
    their bytes or characters, in bits. A sample is a block of `block_size` tokens, also where a
    curriculum cuts blocks in pieces; None: a row of the batch.
    A callback may replace `criterion`, (logits (N, V), y (N,)) -> loss, to change what is trained.
    """

    sums: ClassVar[tuple[str, ...]] = ("loss", "token_accuracy")

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer | None = None,
        schedule: MakeSchedule | None = None,
        label_smoothing: float = 0.0,
        token_bytes: Tensor | None = None,
        token_characters: Tensor | None = None,
        padded: bool = True,
        block_size: int | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        if not 0 <= label_smoothing < 1:
            raise SettingsError(f"model.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.label_smoothing = label_smoothing
        self.criterion: Callable[[Tensor, Tensor], Tensor] = self.mean_loss
        self.padded = padded
        self.block_size = block_size
        units = {"byte": token_bytes, "character": token_characters}
        self._units = {name: sizes for name, sizes in units.items() if sizes is not None}
        self._seen: dict[str, Tensor] = {}  # units of the evaluated tokens so far

    def logged_metrics(self) -> list[str]:
        names = ("perplexity", *(f"bits_per_{unit}" for unit in self._units))
        return super().logged_metrics() + [f"{stage}/{name}" for stage in ("val", "test") for name in names]

    def count_batch(self, batch: Batch) -> tuple[int, int | Tensor | None]:
        y = batch[1]
        samples = y.numel() // self.block_size if self.block_size else len(y)
        return samples, torch.count_nonzero(y != IGNORED) if self.padded else y.numel()

    def training_loss(self, batch: Batch) -> tuple[Tensor, int | Tensor, dict[str, Tensor]]:
        """The sum over the tokens that count, over all places of the batch: where some are padded, micro-batches and
        ranks then weigh each token alike, as one large batch would."""
        x, y = batch
        count = self.count_batch(batch)[1]
        assert count is not None
        logits = full_precision(self.network(x)).flatten(0, 1)
        loss = self.criterion(logits, y.flatten())
        return loss, count, {"loss": loss.detach() * y.numel(), "token_accuracy": _correct(logits, y)}

    def mean_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Of logits (N, V): nats of the tokens that count, over all N places."""
        total = F.cross_entropy(logits, y, reduction="sum", label_smoothing=self.label_smoothing)
        return total / y.numel()

    def evaluation_sums(self, batch: Batch) -> tuple[int | Tensor, dict[str, Tensor]]:
        x, y = batch
        logits = full_precision(self.network(x)).flatten(0, 1)
        for unit, sizes in self._units.items():
            if sizes.device != y.device:
                sizes = self._units[unit] = sizes.to(y.device)
            seen = sizes[y.clamp(min=0)].mul_(y != IGNORED).sum()
            self._seen[unit] = self._seen[unit] + seen if unit in self._seen else seen
        loss = F.cross_entropy(logits, y.flatten(), reduction="sum", ignore_index=IGNORED)
        return torch.count_nonzero(y != IGNORED), {"loss": loss, "token_accuracy": _correct(logits, y)}

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._seen = {}

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._seen = {}

    def derived(self, stage: str, means: dict[str, Tensor]) -> dict[str, Tensor]:
        if stage == "train":
            return {}
        further = {"perplexity": means["loss"].exp()}
        tokens = self._sum_over_ranks(torch.tensor(float(self._eval_means.count), device=self.device))
        for unit, seen in self._seen.items():
            total = self._sum_over_ranks(seen)
            if total > 0:
                further[f"bits_per_{unit}"] = means["loss"] * tokens / total / math.log(2)
        return further


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=-1) == y.flatten()).sum()
