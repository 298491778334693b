"""`quantization=qat_int4`: training with weights that are rounded to few whole numbers, -7 to 7 at most, each step."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frugal.coding.encoding import Encoding
from frugal.errors import SettingsError
from frugal.quantization.fake import FakeQuantizedTraining, Quantizer, Target, affine
from frugal.quantization.rate import SIZE, Stepped

Scale = Literal["largest", "learned"]


class QATInt4(FakeQuantizedTraining):
    """Quantization-aware training (Jacob et al. 2018) of weights: each step computes with code * scale, and the
    gradient goes to the weight as if it had not been rounded. The kernels stay fp32's.

    Args:
        begin: from which optimizer step on: a number, a share of the run as "30%", or epochs as "2ep".
        levels: how many whole numbers, as many below 0 as above: 3, 5, ..., 15, which is -7 to 7.
        scale: "largest" takes it from the largest weight of each group; with "learned" a whole weight has one, which is
            trained with it (Esser et al. 2020, "Learned step size quantization") and costs a small file four bytes.
        group: consecutive inputs that share a scale, where that is the largest's; a row falls into equal groups as near
            to this as they can be. None: each row has one scale.
        bias_levels: of the biases of these layers, 3, 5, ..., 255, by a learned scale; None: biases stay floats.
        exclude: module paths or shell patterns of layers that stay as they are.
        embeddings: whether embeddings are quantized too.
    """

    def __init__(
        self,
        begin: int | str = "50%",
        levels: int = 15,
        scale: Scale = "largest",
        group: int | None = 32,
        bias_levels: int | None = None,
        exclude: list[str] | tuple[str, ...] = (),
        embeddings: bool = False,
    ) -> None:
        super().__init__(begin, group, exclude, embeddings)
        for key, value, most in (("levels", levels, 15), ("bias_levels", bias_levels, 255)):
            if value is not None and not (3 <= value <= most and value % 2):
                raise SettingsError(f"quantization.{key}={value}: is an odd number from 3 to {most}")
        if scale not in ("largest", "learned"):
            raise SettingsError(f"quantization.scale={scale}: choose largest or learned")
        self.largest, self.scale, self.bias_levels = levels // 2, scale, bias_levels

    def targets(self, network: nn.Module) -> list[Target]:
        weights = super().targets(network)
        if self.bias_levels is None:
            return weights
        biases = [Target(target.layer, target.module, "bias") for target in weights]
        return [*weights, *(target for target in biases if getattr(target.module, "bias", None) is not None)]

    def make(self, target: Target) -> Quantizer:
        if target.name == "bias":
            assert self.bias_levels is not None
            return LearnedScale(target.leaf.detach(), self.bias_levels // 2)
        if self.scale == "learned":
            return LearnedScale(target.leaf.detach(), self.largest)
        return super().make(target)

    def figures(self) -> dict[str, Any]:
        said = super().figures()
        learned = {"group": None} if self.scale == "learned" else {}
        return {**said, **learned, "scale": self.scale, "bias_levels": self.bias_levels}


class LearnedScale(Quantizer):
    """weight -> round(weight / scale) * scale, cut off at the largest. One scale, of which the logarithm is trained."""

    def __init__(self, like: Tensor, largest: int) -> None:
        super().__init__()
        self.largest = largest
        self.log_scale = nn.Parameter(like.new_zeros(()))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """2 mean|w| / sqrt(largest), as Esser et al. 2020 begin (section 2.1), of the weights that are not pruned."""
        left = weight[weight != 0].abs().double()
        size = 2 * float(left.mean()) / math.sqrt(self.largest) if len(left) else SIZE
        self.log_scale.fill_(math.log(size))

    def forward(self, weight: Tensor) -> Tensor:
        if not weight.is_cpu or torch.compiler.is_compiling():
            return super().forward(weight)
        # To look is free here, and torch.where would take longer than all the rest. Before `begin` the scale has a
        # gradient of zero: fused optimizers and DDP want all or none.
        return self.quantize(weight) if bool(self.active) else weight + 0 * self.log_scale

    def quantize(self, weight: Tensor) -> Tensor:
        return Stepped.apply(weight, self.log_scale, self.largest)

    def encoding(self, weight: Tensor) -> Encoding:
        return affine(weight, self.log_scale.detach().float().exp(), self.largest)
