"""`quantization=qat_int4`: training with weights that are rounded to whole numbers from -7 to 7 in each step."""

from __future__ import annotations

from frugal.quantization.fake import FakeQuantizedTraining


class QATInt4(FakeQuantizedTraining):
    """Quantization-aware training (Jacob et al. 2018) of weights: each step computes with code * scale, and the
    gradient goes to the weight as if it had not been rounded. Codes are from -7 to 7; the kernels stay fp32's.

    Args:
        begin: from which optimizer step on: a number, a share of the run as "30%", or epochs as "2ep".
        group: consecutive inputs that share a scale; a row falls into equal groups as near to this as they can be.
            None: each row has one scale.
        exclude: module paths or shell patterns of layers that stay as they are.
        embeddings: whether embeddings are quantized too.
    """

    largest = 7

    def __init__(
        self,
        begin: int | str = "50%",
        group: int | None = 32,
        exclude: list[str] | tuple[str, ...] = (),
        embeddings: bool = False,
    ) -> None:
        super().__init__(begin, group, exclude, embeddings)
