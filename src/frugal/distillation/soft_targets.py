"""`distillation=soft_targets`: the teacher's probabilities beside the labels.

Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network".
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from frugal.distillation.base import IGNORED, Distillation
from frugal.errors import SettingsError


class SoftTargets(Distillation):
    """(1 - weight) * loss + weight * T^2 * KL(teacher || student), both softened by the temperature T.

    T^2 keeps the gradients of the soft part at their size whatever T is (section 2). In language models it is the mean
    over all places, where those without a target count nothing, as in the loss itself.

    Args:
        temperature: logits are divided by it before the softmax; more of it shows more of what is unlikely.
        weight: of the teacher's part, 0 to 1.
    """

    def __init__(
        self,
        teacher: str | None = None,
        teacher_model: str | None = None,
        teacher_epochs: int = 5,
        teacher_overrides: list[str] | tuple[str, ...] = (),
        cache: bool = False,
        temperature: float = 4.0,
        weight: float = 0.9,
    ) -> None:
        super().__init__(teacher, teacher_model, teacher_epochs, teacher_overrides, cache)
        if not (temperature > 0 and math.isfinite(temperature)):
            raise SettingsError(f"distillation.temperature={temperature}: needs to be above 0")
        if not 0 <= weight <= 1:
            raise SettingsError(f"distillation.weight={weight}: is 0 to 1")
        self.temperature, self.weight = temperature, weight

    def ask(self, x: Tensor) -> list[Tensor]:
        assert self.teacher is not None
        return [self.teacher(x)]

    def loss(self, criterion: Any, output: Tensor, target: Tensor, said: list[Tensor]) -> Tensor:
        teacher = said[0].to(output.dtype).flatten(0, -2)
        if teacher.shape != output.shape:
            raise SettingsError(
                f"distillation.teacher: gives logits {tuple(teacher.shape)}, the student {tuple(output.shape)}"
            )
        soft = divergence(output, teacher, target, self.temperature)
        return (1 - self.weight) * criterion(output, target) + self.weight * self.temperature**2 * soft

    def figures(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "weight": self.weight, **super().figures()}


def divergence(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Mean of KL(teacher || student) in nats, from logits (N, V) at a temperature; 0 where a target is ignored."""
    of_teacher = F.log_softmax(teacher / temperature, dim=-1)
    of_student = F.log_softmax(student / temperature, dim=-1)
    found = (of_teacher.exp() * (of_teacher - of_student)).sum(-1)
    return (found * (target != IGNORED)).sum() / target.numel()
