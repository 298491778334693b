"""`pruning=random`: weights drawn by lot, once; what every other way of pruning has to beat."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from frugal.pruning.base import Densities, MaskPruning, Scope
from frugal.pruning.masks import masks_of
from frugal.steps import Steps


class RandomPruning(MaskPruning):
    """Keeps what the lots say.

    Args (others: `MaskPruning`):
        at: when, as a step, a share of the run ("30%") or epochs ("2ep").
        seed: of the lots.
    """

    def __init__(
        self,
        density: float = 0.1,
        densities: Densities | None = None,
        scope: Scope = "layer",
        at: int | str = 0,
        exclude: list[str] | tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(density, densities, scope, exclude)
        self.at, self.seed = Steps.parse(at, "pruning.at"), seed

    def events(self, trainer: Trainer) -> list[int]:
        return [self.at.resolve(trainer)]

    def scores(self, network: nn.Module) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        return {name: torch.rand(mask.mask.shape, generator=draw) for name, mask in masks_of(network).items()}
