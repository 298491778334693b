"""`Regressor`: any network that maps a batch to one number a sample, by squared error."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frugal.errors import SettingsError
from frugal.models.module import Batch, MakeOptimizer, MakeSchedule, Module, full_precision


class Regressor(Module):
    """Trains `network`, (B, ...) -> (B, 1), by mean squared error on normalized targets.

    The network predicts (y - target_mean) / target_std, as its inputs are normalized too, so that one learning rate
    suits house prices and blood pressures. `loss` is the mean squared error of that; `mse`, `rmse` and `mae` are in the
    targets' own units, and `r2` is 1 - MSE / variance of the targets of the split that is evaluated.
    A callback may replace `criterion`, (normalized prediction, normalized target) -> mean loss, to change what is
    trained.
    """

    # means of targets and of their squares are there for r2 alone
    sums: ClassVar[tuple[str, ...]] = ("loss", "mae", "_target", "_target_square")

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer | None = None,
        schedule: MakeSchedule | None = None,
        target_mean: float = 0.0,
        target_std: float = 1.0,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        if not target_std > 0:
            raise SettingsError(f"model.target_std={target_std}: a deviation is above 0")
        self.target_mean, self.target_std = target_mean, target_std
        self.criterion = F.mse_loss

    def logged_metrics(self) -> list[str]:
        further = [f"{stage}/{name}" for stage in ("train", "val", "test") for name in ("mse", "rmse")]
        return super().logged_metrics() + further + ["val/r2", "test/r2"]

    def training_loss(self, batch: Batch) -> tuple[Tensor, int | Tensor, dict[str, Tensor]]:
        predicted, target = self._compared(batch)
        loss = self.criterion(predicted, target)
        with torch.no_grad():
            sums = self._sums(predicted, target)
        return loss, len(target), sums

    def evaluation_sums(self, batch: Batch) -> tuple[int | Tensor, dict[str, Tensor]]:
        predicted, target = self._compared(batch)
        exact = self._normalized(batch[1])  # of a large mean float32 would leave the square no digits
        further = {"_target": exact.sum(), "_target_square": exact.square().sum()}
        return len(target), self._sums(predicted, target) | further

    def derived(self, stage: str, means: dict[str, Tensor]) -> dict[str, Tensor]:
        mse = means["loss"] * self.target_std**2
        found = {"mse": mse, "rmse": mse.sqrt()}
        variance = means["_target_square"] - means["_target"].square()
        # of equal targets there is nothing to explain
        if stage != "train" and variance > 1e-13 * means["_target_square"]:
            found["r2"] = 1 - means["loss"] / variance
        return found

    def _compared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        x, y = batch
        predicted = full_precision(self.network(x))
        if predicted.shape != (len(y), 1):
            raise SettingsError(
                f"model.network: gives {tuple(predicted.shape)} for {len(y)} samples; a regression wants one each"
            )
        return predicted.squeeze(1), self._normalized(y).to(predicted.dtype)

    def _normalized(self, y: Tensor) -> Tensor:
        """In double precision, where there is any: a large mean would take the targets' digits."""
        return ((y.double() if y.device.type != "mps" else y) - self.target_mean) / self.target_std

    def _sums(self, predicted: Tensor, target: Tensor) -> dict[str, Any]:
        error = predicted.detach() - target
        return {"loss": error.square().sum(), "mae": error.abs().sum() * self.target_std}
