"""When something happens in training: at an optimizer step (300), after a share of the run ("30%") or after epochs
("2ep"). Torch-free: a wrong value is refused before anything heavy is imported.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from frugal.errors import SettingsError

_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*(%|ep)?")


@dataclass(frozen=True)
class Steps:
    """`key` is the setting that it came from, for messages; a share is kept as 0 to 1."""

    amount: float
    unit: Literal["steps", "share", "epochs"]
    key: str = "steps"

    @classmethod
    def parse(cls, value: int | str, key: str = "steps") -> Steps:
        """Of 300, "300", "30%" or "2ep". Raises SettingsError."""
        match = _FORM.fullmatch(str(value).strip()) if isinstance(value, int | str) else None
        if match is None or isinstance(value, bool):
            raise SettingsError(f"{key}={value}: needs a step (300), a share of the run (30%) or epochs (2ep)")
        amount, unit = float(match[1]), match[2]
        if unit == "%":
            if amount > 100:
                raise SettingsError(f"{key}={value}: is more than the whole run")
            return cls(amount / 100, "share", key)
        if unit == "ep":
            return cls(amount, "epochs", key)
        if amount != int(amount):
            raise SettingsError(f"{key}={value}: steps are whole numbers; a share of the run is written {value}%")
        return cls(int(amount), "steps", key)

    def __str__(self) -> str:
        number = f"{self.amount * 100:g}%" if self.unit == "share" else f"{self.amount:g}"
        return number + ("ep" if self.unit == "epochs" else "")

    def resolve(self, trainer: Any) -> int:
        """The optimizer step, once a Trainer has its data (from `on_train_start` on). Raises SettingsError where a run
        without end has no share, or data without length no epochs."""
        if self.unit == "steps":
            return int(self.amount)
        if self.unit == "share":
            total = trainer.estimated_stepping_batches
            if not math.isfinite(total):
                raise SettingsError(
                    f"{self.key}={self}: a share of a run of unknown length; give a step, or set trainer.max_epochs, "
                    "trainer.max_steps, budget.samples or budget.flops"
                )
            return round(self.amount * total)
        batches = trainer.num_training_batches
        if not math.isfinite(batches):
            raise SettingsError(f"{self.key}={self}: an epoch of this data has no end; give a step instead")
        return round(self.amount * math.ceil(batches / trainer.accumulate_grad_batches))
