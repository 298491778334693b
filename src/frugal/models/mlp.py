"""MLP: a perceptron with hidden layers of any number and width, for any number of outputs."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from frugal.errors import SettingsError
from frugal.models.activations import Activation, activation_module


class MLP(nn.Module):
    """Flattens its input, (B, *input_shape) -> (B, outputs); torch's own initialization."""

    def __init__(
        self,
        input_shape: list[int] | tuple[int, ...],
        outputs: int,
        hidden: list[int] | tuple[int, ...] = (64, 64),
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden, outputs]
        if min(widths) < 1:
            raise SettingsError(f"model.network.hidden={list(hidden)}: each width must be at least 1")
        layers: list[nn.Module] = [nn.Flatten()]
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            if i > 0:
                layers.append(activation_module(activation))
            layers.append(nn.Linear(fan_in, fan_out))
        self.layers = nn.Sequential(*layers)

    def parallel_plan(self, ranks: int) -> dict[str, str]:
        """How `strategy=tensor_parallel` shares the layers out: by pairs, so that one sum serves two; a last layer
        without another after it is whole on each rank."""
        linear = [f"layers.{i}" for i, layer in enumerate(self.layers) if isinstance(layer, nn.Linear)]
        plan: dict[str, str] = {}
        for first, second in zip(linear[::2], linear[1::2], strict=False):
            plan |= {first: "columns", second: "rows"}
        return plan

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
