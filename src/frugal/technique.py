"""How a technique plugs in, and the one place that says in which order techniques act.

A technique is a Lightning callback with three things more, all optional. In a user's own Trainer it works alone:

    pruning = GradualPruning(density=0.1)
    Trainer(callbacks=[pruning]).fit(module, data)
    network = pruning.finalize(module.network, data.train_dataloader())

What a technique needs of other settings, or cannot stand, its option file says under `needs` and `excludes`
(see `settings.check_rules`), so that a combination without meaning is refused before torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from frugal import settings
from frugal.measure.meter import Lean

# The config groups that hold techniques, in the order in which `prepare` and `finalize` are called.
# selection chooses data, distillation changes the loss, the others change the network or how it is written.
STAGES = settings.TECHNIQUES


class Technique(Lean):
    """Base of everything that a config group in `STAGES` names. Per-batch hooks cost nothing unless a subclass
    defines them."""

    stage: str | None = None  # the group that chose it; None in a Trainer of the user's own

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint: by its stage too, so that two of one class keep apart."""
        return f"{self.stage}/{super().state_key}" if self.stage else super().state_key

    def prepare(self, network: nn.Module) -> None:
        """Before training, on the network as built: masks, observers, a teacher. Must be safe to call on a resume."""

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        """After training: bake masks in, convert, shrink. `batches` are preprocessed training inputs, for
        calibration."""
        return network

    def figures(self) -> dict[str, Any]:
        """What was really applied, for `record.techniques`; plain values. May hold `status`:
        `dense`, `masked`, `simulated` or `converted`."""
        return {}
