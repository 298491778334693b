"""LeNet-300-100, the perceptron of the pruning papers: 266,610 parameters on MNIST.

LeCun et al. 1998, "Gradient-based learning applied to document recognition"; as in Han et al. 2015 and after.
"""

from __future__ import annotations

from frugal.models.activations import Activation
from frugal.models.simple_net import SimpleNet


class LeNet300100(SimpleNet):
    """(B, *input_shape) -> (B, classes)."""

    def __init__(self, input_shape: list[int] | tuple[int, ...], classes: int, activation: Activation = "relu") -> None:
        super().__init__(input_shape, classes, hidden=(300, 100), activation=activation)
