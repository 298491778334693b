"""SimpleNet: a perceptron for classes, 784-256-128-10 on MNIST by default."""

from __future__ import annotations

from frugal.models.activations import Activation
from frugal.models.mlp import MLP


class SimpleNet(MLP):
    """(B, *input_shape) -> (B, classes)."""

    def __init__(
        self,
        input_shape: list[int] | tuple[int, ...],
        classes: int,
        hidden: list[int] | tuple[int, ...] = (256, 128),
        activation: Activation = "relu",
    ) -> None:
        super().__init__(input_shape, classes, hidden, activation)
