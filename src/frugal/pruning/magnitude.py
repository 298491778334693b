"""`pruning=magnitude`: the smallest weights go, once, and training goes on with what is left (Han et al. 2015)."""

from __future__ import annotations

from lightning.pytorch import Trainer

from frugal.pruning.base import Densities, MaskPruning, Scope
from frugal.steps import Steps


class MagnitudePruning(MaskPruning):
    """Keeps the largest magnitudes.

    Args (others: `MaskPruning`):
        at: when, as a step, a share of the run ("30%") or epochs ("2ep").
    """

    def __init__(
        self,
        density: float = 0.1,
        densities: Densities | None = None,
        scope: Scope = "layer",
        at: int | str = "50%",
        exclude: list[str] | tuple[str, ...] = (),
    ) -> None:
        super().__init__(density, densities, scope, exclude)
        self.at = Steps.parse(at, "pruning.at")

    def events(self, trainer: Trainer) -> list[int]:
        return [self.at.resolve(trainer)]
