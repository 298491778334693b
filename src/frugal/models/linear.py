"""Linear regression: one linear layer with a bias."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Linear(nn.Module):
    """Flattens its input, (B, *input_shape) -> (B, outputs).

    It begins at 0: the squared error is convex, so the start decides only how many steps are needed.
    """

    def __init__(self, input_shape: list[int] | tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.layer = nn.Linear(math.prod(input_shape), outputs)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.flatten(x))
