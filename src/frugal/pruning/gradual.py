"""`pruning=gradual`: the smallest weights go little by little, most of them early (Zhu and Gupta 2017, "To prune, or
not to prune", equation 1)."""

from __future__ import annotations

from lightning.pytorch import Trainer

from frugal.errors import SettingsError
from frugal.pruning.base import Densities, MaskPruning, Scope, check_density
from frugal.steps import Steps


class GradualPruning(MaskPruning):
    """Sparsity s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 at t = t_0, t_0 + dt, ..., t_0 + n dt.

    Args (others: `MaskPruning`):
        begin: t_0, as a step, a share of the run ("30%") or epochs ("2ep").
        end: the last event is the last multiple of `every` after `begin` that is not later than this.
        every: dt.
        initial: density at `begin`, 1 - s_i.
    """

    ends = "pruning.end"

    def __init__(
        self,
        density: float = 0.1,
        densities: Densities | None = None,
        scope: Scope = "layer",
        begin: int | str = "10%",
        end: int | str = "70%",
        every: int | str = "1%",
        initial: float = 1.0,
        exclude: list[str] | tuple[str, ...] = (),
    ) -> None:
        super().__init__(density, densities, scope, exclude)
        check_density("pruning.initial", initial)
        self.begin, self.end = Steps.parse(begin, "pruning.begin"), Steps.parse(end, "pruning.end")
        self.every, self.initial = Steps.parse(every, "pruning.every"), initial
        self._intervals = 1

    def events(self, trainer: Trainer) -> list[int]:
        begin, end = self.begin.resolve(trainer), self.end.resolve(trainer)
        every = max(1, self.every.resolve(trainer))
        if end - begin < every:
            raise SettingsError(
                f"pruning.end={self.end}: from step {begin} to {end} there is no room for pruning.every={self.every}"
            )
        self._intervals = (end - begin) // every
        return [begin + k * every for k in range(self._intervals + 1)]

    def density_at(self, event: int, density: float) -> float:
        return density + (max(self.initial, density) - density) * (1 - event / self._intervals) ** 3
