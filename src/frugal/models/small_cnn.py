"""SmallCNN: three 3x3 convolutions with BatchNorm, 16, 32 and 64 channels wide, for images of any size from 8x8 on."""

from __future__ import annotations

from torch import Tensor, channels_last, nn

from frugal.errors import SettingsError

LEAST = 8  # pixels of a side: each of the three poolings halves it


class SmallCNN(nn.Module):
    """(B, C, H, W) -> (B, classes); H and W at least 8.

    Each stage is a convolution, a max-pooling by 2, BatchNorm and ReLU; a linear layer reads what is left. Pooling
    comes first and leaves a quarter of the values to the two others: that halves the time of a training step on a CPU.
    Tensors are kept channels-last, in which the convolutions of a CPU and of tensor cores are fastest.

    Args:
        widths: channels of the three convolutions.
    """

    def __init__(
        self,
        input_shape: list[int] | tuple[int, ...],
        classes: int,
        widths: list[int] | tuple[int, ...] = (16, 32, 64),
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < LEAST:
            raise SettingsError(
                f"model=small_cnn takes images of at least {LEAST}x{LEAST}, not {list(input_shape)};"
                " take model=simple_net"
            )
        if len(widths) != 3 or min(widths) < 1:
            raise SettingsError(f"model.network.widths={list(widths)}: needs three numbers, each at least 1")
        channels, height, width = input_shape
        stages: list[nn.Module] = []
        for outputs in widths:
            # no bias: BatchNorm takes the mean away
            stages += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2)]
            stages += [nn.BatchNorm2d(outputs), nn.ReLU()]
            channels = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels * (height // 8) * (width // 8), classes)
        self.to(memory_format=channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x.contiguous(memory_format=channels_last)).flatten(1))
