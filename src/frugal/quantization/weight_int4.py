"""`quantization=weight_int4`: weights as whole numbers from -7 to 7, rounded once after training."""

from __future__ import annotations

from frugal.quantization.fake import Clip, WeightOnly


class WeightInt4(WeightOnly):
    """Weights become code * scale, code from -7 to 7. Values are those of int4; the kernels stay fp32's.

    Args:
        group: consecutive inputs that share a scale; a row falls into equal groups as near to this as they can be.
            None: each row has one scale.
        clip: how a scale is found: the largest weight becomes 7 ("max"), or the squared error is least ("mse").
        exclude: module paths or shell patterns of layers that stay as they are.
        embeddings: whether embeddings are quantized too.
    """

    largest = 7

    def __init__(
        self,
        group: int | None = 32,
        clip: Clip = "mse",
        exclude: list[str] | tuple[str, ...] = (),
        embeddings: bool = False,
    ) -> None:
        super().__init__(group, clip, exclude, embeddings)
