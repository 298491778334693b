"""LeNet-5 as Caffe has it, the convolutional network of the pruning papers: 431,080 parameters on MNIST.

Caffe, `examples/mnist/lenet_train_test.prototxt`: convolution 20 5x5, max-pool 2, convolution 50 5x5, max-pool 2,
fully connected 500, ReLU, fully connected 10. There is no activation after a convolution, only after the hidden layer.
Weights start as Caffe's "xavier" filler has them, uniform with variance 1/fan_in; biases start at 0.
"""

from __future__ import annotations

import math

from torch import Tensor, channels_last, nn

from frugal.errors import SettingsError
from frugal.models.activations import Activation, activation_module


class LeNet5(nn.Module):
    """(B, C, H, W) -> (B, classes); H and W at least 16. `activation` is that of the hidden layer.

    `channels_last` says how tensors lie in memory up to the hidden layer, and nothing about what is computed. On a CPU
    the poolings are then several times as fast: a step at batch 128 took 24.4 instead of 40.7 ms.
    """

    def __init__(
        self,
        input_shape: list[int] | tuple[int, ...],
        classes: int,
        activation: Activation = "relu",
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 16:
            raise SettingsError(
                f"model=lenet5 takes images of at least 16x16, not {list(input_shape)}; take model=simple_net"
            )
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 20, kernel_size=5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(50 * _pooled(_pooled(height)) * _pooled(_pooled(width)), 500)
        self.activation = activation_module(activation)
        self.fc2 = nn.Linear(500, classes)
        self.channels_last = channels_last
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2):
            bound = math.sqrt(3 / layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:
            x = x.to(memory_format=channels_last)
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(x))
        return self.fc2(self.activation(self.fc1(self.flatten(x))))


def _pooled(size: int) -> int:
    """Side of an image after a 5x5 convolution without padding and a 2x2 pooling."""
    return (size - 4) // 2
