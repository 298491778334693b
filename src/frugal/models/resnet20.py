"""ResNet-20 for images of 32x32, as its authors trained it on CIFAR-10: 269,722 parameters.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition", 2016, section 4.2: a 3x3 convolution, three stages
of three blocks of two 3x3 convolutions with 16, 32 and 64 channels, mean over the places, linear. Shortcuts have no
parameters (option A): where a stage halves the image, every other place is taken and the new channels are zeros.
Weights start as in He et al. 2015 (normal, fan-in).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frugal.errors import SettingsError


class ResNet20(nn.Module):
    """(B, C, H, W) -> (B, classes), of images of any size from 8x8 on.

    `blocks` a stage makes 6 * blocks + 2 layers: 3 is ResNet-20, 5 is ResNet-32, 9 is ResNet-56. `width` is the first
    stage's number of channels. `channels_last` is the memory format in which convolutions on a CPU are faster.
    """

    def __init__(
        self,
        input_shape: list[int] | tuple[int, ...],
        classes: int,
        blocks: int = 3,
        width: int = 16,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 8:
            raise SettingsError(
                f"model=resnet20 takes images of at least 8x8, not {list(input_shape)}; take another model="
            )
        for key, value in (("blocks", blocks), ("width", width)):
            if value < 1:
                raise SettingsError(f"model.network.{key}={value}: it is 1 or more")
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.conv = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        stages = []
        for stage in range(3):
            channels = width << stage
            first = Block(max(width, channels // 2), channels, stride=1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, *(Block(channels, channels) for _ in range(blocks - 1))))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x.contiguous(memory_format=self.memory_format))))
        return self.head(self.stages(x).mean(dim=(2, 3)))


class Block(nn.Module):
    """Two 3x3 convolutions, each with batch normalization, and a shortcut around them."""

    def __init__(self, fan_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, channels - fan_in
        self.conv1 = nn.Conv2d(fan_in, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(inside + shortcut)
