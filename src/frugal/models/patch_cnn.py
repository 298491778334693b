"""`PatchCNN`: a small CNN whose first layer is not trained: its filters are principal components of image patches.

Filters taken from patch statistics need no backward pass and are good before the first step. Jordan 2024 ("94 % on
CIFAR-10 in 3.29 seconds on a single GPU") freezes a whitening layer in the same way, each filter with both signs.
`PatchClassifier` takes them from the training split.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, channels_last, nn
from torch.nn import functional as F

from frugal.errors import SettingsError
from frugal.models.classifier import Classifier
from frugal.models.module import Batch, MakeOptimizer, MakeSchedule


class PatchCNN(nn.Module):
    """(B, C, H, W) -> (B, classes).

    The first layer is a strided convolution with the first principal components of patches, each with both signs, and
    ReLU. Three 3x3 convolutions with BatchNorm and ReLU follow, the first without padding, the first and the third with
    a max-pooling by 2, and a linear layer. Tensors are kept channels-last. The filters are a buffer: random until
    `fit`, and never trained.

    Args:
        filters: components; the first layer has twice as many channels.
        patch: side of a patch, in pixels.
        stride: pixels from one patch to the next.
        widths: channels of the three convolutions.
    """

    filters: Tensor
    fitted: Tensor

    def __init__(
        self,
        input_shape: list[int] | tuple[int, ...],
        classes: int,
        filters: int = 16,
        patch: int = 5,
        stride: int = 2,
        widths: list[int] | tuple[int, ...] = (32, 64, 64),
    ) -> None:
        super().__init__()
        _check(input_shape, filters, patch, stride, widths)
        channels, height, width = input_shape
        self.stride = stride
        self.register_buffer("filters", torch.randn(filters, channels, patch, patch) / patch)
        self.register_buffer("fitted", torch.tensor(False))
        first, second, third = widths
        # No bias: BatchNorm takes the mean away. Pooling comes before it and leaves it a quarter of the values.
        self.layers = nn.Sequential(
            nn.Conv2d(2 * filters, first, 3, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(inplace=True),
            nn.Conv2d(second, third, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(third),
            nn.ReLU(inplace=True),
        )
        left = [_left(side, patch, stride) for side in (height, width)]
        self.head = nn.Linear(third * left[0] * left[1], classes)
        self.to(memory_format=channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.first_layer(x)).flatten(1))

    def first_layer(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2 * filters, H', W'), nowhere negative."""
        both = torch.cat((self.filters, -self.filters))
        return F.conv2d(x.contiguous(memory_format=channels_last), both, stride=self.stride).relu_()

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take as filters the first principal components of these images' patches, (N, C, H, W) each.

        Patches are taken as they are, not centred: the layer sees them so. Components have length 1.
        """
        count, channels, patch, _ = self.filters.shape
        size = channels * patch * patch
        moments = torch.zeros(size, size, dtype=torch.float64)
        for x in batches:
            patches = F.unfold(x.float(), patch, stride=self.stride).transpose(1, 2).reshape(-1, size)
            moments += (patches.T @ patches).double().cpu()
        directions = torch.linalg.eigh(moments).eigenvectors.flip(1)[:, :count]  # by falling eigenvalue, in columns
        self.filters.copy_(directions.T.reshape(self.filters.shape))
        self.fitted.fill_(True)


class PatchClassifier(Classifier):
    """A `Classifier` that fits the first layer of a `PatchCNN` to `fit_samples` training images in its first step.

    So that work is part of the training time. A network that was fitted before, because training resumes or goes on
    from other weights, keeps its filters: the rest was learned behind them.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer | None = None,
        schedule: MakeSchedule | None = None,
        label_smoothing: float = 0.0,
        fit_samples: int = 2000,
    ) -> None:
        super().__init__(network, optimizer, schedule, label_smoothing)
        if fit_samples < 1:
            raise SettingsError(f"model.fit_samples={fit_samples}: the first layer needs at least one image")
        self.fit_samples = fit_samples
        self._to_fit = False

    def on_train_start(self) -> None:
        super().on_train_start()
        self._to_fit = isinstance(self.network, PatchCNN) and not bool(self.network.fitted)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self._to_fit:
            self._to_fit = False
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            cast(PatchCNN, self.network).fit(_training_images(data, self.fit_samples))
        return super().training_step(batch, batch_idx)


def _training_images(data: object, samples: int) -> Iterable[Tensor]:
    calibration = getattr(data, "calibration_batches", None)
    if calibration is None:
        raise SettingsError(
            "model=patch_cnn takes its first layer from a data module's training images (calibration_batches), and"
            " there are none to read; call network.fit(batches) before the training"
        )
    return calibration(samples)


def _left(side: int, patch: int, stride: int) -> int:
    """Side of what the last pooling leaves of an image."""
    patches = (side - patch) // stride + 1
    return (patches - 2) // 2 // 2


def _check(
    input_shape: list[int] | tuple[int, ...],
    filters: int,
    patch: int,
    stride: int,
    widths: list[int] | tuple[int, ...],
) -> None:
    def refuse(key: str, value: Any, why: str) -> None:
        raise SettingsError(f"model.network.{key}={value}: {why}")

    if patch < 1:
        refuse("patch", patch, "must be at least 1 pixel")
    if stride < 1:
        refuse("stride", stride, "must be at least 1 pixel")
    if len(widths) != 3 or min(widths) < 1:
        refuse("widths", list(widths), "needs three numbers, each at least 1")
    least = patch + 5 * stride  # 6 patches: 4 after the convolution without padding, 2 and 1 after the poolings
    if len(input_shape) != 3 or min(input_shape[1:]) < least:
        raise SettingsError(
            f"model=patch_cnn takes images of at least {least}x{least} (by model.network.patch={patch} and"
            f" stride={stride}), not {list(input_shape)}; take model=small_cnn, or a smaller patch and stride"
        )
    most = input_shape[0] * patch * patch
    if not 1 <= filters <= most:
        refuse("filters", filters, f"patches of {most} numbers have 1 to {most} components")
