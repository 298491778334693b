"""`quantization=rate`: training minimizes the loss plus what the coder will spend on the weights, in one.

Weights are whole numbers times a step, in each forward pass, with a straight-through gradient. To a weight's gradient
comes `bits_weight` times the derivative of its cost in bits, by an adaptive model as an entropy coder has it: whether a
weight is zero depends on how many of its row and of its column are, then come sign and magnitude. Between two whole
numbers the cost is taken as linear. So zeros, which units live and how finely weights are rounded are all found by
training; a weight that went to zero may come back.

Rate-distortion optimized training in the manner of Ballé et al. 2017 and Oktay et al. 2020; learnt steps as in Esser
et al. 2020, "Learned step size quantization", here as a logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from frugal.coding import cosine
from frugal.coding.encoding import Encoding
from frugal.errors import RunError, SettingsError
from frugal.pruning.masks import per_layer
from frugal.quantization.fake import QuantizedTraining, Quantizer, Target, whole

LN2 = math.log(2)
SIZE = 0.05  # root mean square that is assumed of weights that are all zero when quantization begins


class Rate(QuantizedTraining):
    """Training for the smallest file at a loss.

    Args:
        bits_weight: nats of mean loss that one bit of the file is worth. ln 2 / training samples is the exchange rate
            of the minimum description length; more gives smaller files.
        begin: from which optimizer step on: a number, a share of the run as "10%", or epochs as "1ep".
        largest: weights are whole numbers from minus this to this, times the step.
        step: a layer's first step, as a multiple of the root mean square of its weights at `begin`.
        learn_step: whether steps are trained with the weights.
        refresh: optimizer steps from one count of zeros to the next.
        biases: whether the layers' biases are quantized and counted too; as floats they would be most of a small file.
        units: by layer, patterns of module paths: only so many of a layer's units (rows) are ever used.
        waves: module paths or patterns of layers whose inputs are square images of one channel: the whole numbers are
            of cosine waves (`frugal.coding.cosine`), of which smooth weights take few, and not of pixels.
        exclude: module paths or shell patterns of layers that stay as they are.
        embeddings: whether embeddings are quantized too.
    """

    def __init__(
        self,
        bits_weight: float = 1e-5,
        begin: int | str = "10%",
        largest: int = 15,
        step: float = 2.0,
        learn_step: bool = True,
        refresh: int = 60,
        biases: bool = True,
        units: dict[str, int] | None = None,
        waves: list[str] | tuple[str, ...] = (),
        exclude: list[str] | tuple[str, ...] = (),
        embeddings: bool = False,
    ) -> None:
        super().__init__(begin, exclude, embeddings)
        for key, value, least in (("largest", largest, 1), ("refresh", refresh, 1)):
            if value < least:
                raise SettingsError(f"quantization.{key}={value}: the least value is {least}")
        if not (bits_weight >= 0 and math.isfinite(bits_weight)):
            raise SettingsError(f"quantization.bits_weight={bits_weight}: needs to be 0 or above")
        if not (step > 0 and math.isfinite(step)):
            raise SettingsError(f"quantization.step={step}: needs to be above 0")
        for pattern, value in (units or {}).items():
            if type(value) is not int or value < 1:
                raise SettingsError(f"quantization.units={units}: {pattern} needs a whole number of 1 or more")
        self.bits_weight, self.largest, self.step, self.learn_step = bits_weight, largest, step, learn_step
        self.refresh, self.biases, self.units, self.waves = refresh, biases, units or {}, list(waves)
        self._units: dict[str, int] = {}
        self._waves: set[str] = set()
        self._bits = 0.0

    def targets(self, network: nn.Module) -> list[Target]:
        weights = super().targets(network)
        units = per_layer(self.units, [target.layer for target in weights], 0, "quantization.units")
        self._units = {layer: int(number) for layer, number in units.items()}
        flags = per_layer(dict.fromkeys(self.waves, 1), list(units), 0, "quantization.waves")
        self._waves = {layer for layer, flag in flags.items() if flag}
        for target in weights:
            if target.layer in self._waves and cosine.side(target.leaf[0].numel()) is None:
                raise SettingsError(
                    f"quantization.waves={self.waves}: {target.layer} has {target.leaf[0].numel()} inputs, which are no"
                    " square image"
                )
        biases = [Target(target.layer, target.module, "bias") for target in weights] if self.biases else []
        return [*weights, *(target for target in biases if getattr(target.module, "bias", None) is not None)]

    def make(self, target: Target) -> PricedWeights:
        leaf = target.leaf.detach()
        units = self._units[target.layer] or len(leaf)
        waves = target.name == "weight" and target.layer in self._waves
        if waves and parametrize.is_parametrized(target.module, target.name):
            raise SettingsError(f"quantization.waves={self.waves}: {target.layer} is pruned; waves have no such zeros")
        return PricedWeights(leaf, self.largest, self.step, self.learn_step, units, waves)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Once an optimizer step, after all that it accumulates and before gradients are clipped."""
        if self.first_step is None or trainer.global_step < self.first_step:
            return
        again = (trainer.global_step - self.first_step) % self.refresh == 0
        for target in self._targets:
            quantizer, weight, leaf = target.quantizer, target.unquantized(), target.leaf
            assert isinstance(quantizer, PricedWeights)
            if again:
                quantizer.count(weight)
            by_weight, by_step = quantizer.derivatives(weight)
            if leaf.grad is not None:
                leaf.grad[: len(by_weight)].add_(by_weight, alpha=self.bits_weight)
            if quantizer.log_step.grad is not None:
                quantizer.log_step.grad.add_(by_step, alpha=self.bits_weight)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step <= (self.first_step or 0):
            return
        bits = self._estimate((target.quantizer, target.unquantized()) for target in self._targets)
        pl_module.log("quantization/bytes", bits / 8, sync_dist=True, batch_size=1)

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        network = super().finalize(network, batches)
        self._bits = self._estimate((self.quantizers.get(t.plain), t.unquantized()) for t in self.targets(network))
        return network

    def figures(self) -> dict[str, Any]:
        """`estimated_bytes` is what the model of the training expects; the file says what they are."""
        return {"bits_weight": self.bits_weight, "estimated_bytes": round(self._bits / 8), **super().figures()}

    def _estimate(self, priced: Iterable[tuple[Quantizer | None, Tensor]]) -> float:
        total = 0.0
        for quantizer, weight in priced:
            assert isinstance(quantizer, PricedWeights)
            total += quantizer.bits(weight)
        return total


class PricedWeights(Quantizer):
    """weight -> code * step, and what the codes cost by the counts that `count` took.

    A weight (O, ...) has O rows, and columns for all that follows; a bias is one row and has no columns. With `waves` a
    column is a wave, and the codes are of what the weight has of each.
    """

    rows: Tensor  # how many of each row are not zero
    columns: Tensor
    magnitudes: Tensor  # how many are 1, 2, ..., largest

    def __init__(
        self, like: Tensor, largest: int, step: float, learn_step: bool, units: int, waves: bool = False
    ) -> None:
        super().__init__()
        self.largest, self.step, self.units, self.waves = largest, step, units, waves
        self.outlives_units = not waves  # fewer inputs are no image
        self.log_step = nn.Parameter(like.new_zeros(()), requires_grad=learn_step)
        rows, columns = matrix(like[:units]).shape  # a unit that is never used costs nothing
        self.register_buffer("rows", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(columns, dtype=torch.int64))
        self.register_buffer("magnitudes", torch.zeros(largest, dtype=torch.int64))
        self.built = len(like)
        self._price: tuple[Tensor, Tensor, Tensor] | None = None  # of the counts above
        self._priced_at = -1

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        size = float(weight[: self.units].double().square().mean().sqrt())
        self.log_step.fill_(math.log(self.step * (size or SIZE)))

    def quantize(self, weight: Tensor) -> Tensor:
        found = Stepped.apply(self._numbered(weight[: self.units]), self.log_step, self.largest)
        found = cosine.pixels(found) if self.waves else found
        if self.units < len(weight):
            found = torch.cat([found, found.new_zeros(len(weight) - self.units, *weight.shape[1:])])
        return found

    def encoding(self, weight: Tensor) -> Encoding:
        """The whole numbers of the training, and its step as a bfloat16, which takes two bytes of a coded file."""
        scale = self.log_step.detach().float().exp().bfloat16().float()
        if self.waves:
            scale = scale / 4**cosine.BITS
        return Encoding(codes=self._codes(weight).int(), scale=scale, table=None, waves=self.waves)

    @torch.no_grad()
    def count(self, weight: Tensor) -> None:
        """Take the counts that the cost goes by from the weights as they are."""
        for kept, counts in zip((self.rows, self.columns, self.magnitudes), self._counts(weight), strict=True):
            kept.copy_(counts)

    @torch.no_grad()
    def derivatives(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Of all bits, by the weight of the units that are used, and by the logarithm of the step, scaled as its
        gradient is.

        Between codes k and k + 1 the cost is linear; it never falls with the magnitude.
        """
        if self._priced_at != (version := self.rows._version):  # counted anew, or loaded
            self._price, self._priced_at = prices(self.rows, self.columns, self.magnitudes), version
        assert self._price is not None
        zero, nonzero, further = self._price
        step, used = self.log_step.exp(), self._numbered(weight[: self.units])
        u = matrix(used / step)
        size = u.abs()
        rises = torch.cat([further.diff().clamp(min=0), further.new_zeros(1)])  # from k to k + 1, k = 1, 2, ...
        index = size.int().clamp(1, self.largest) - 1
        slope = torch.where(size < 1, (nonzero + further[0] - zero).clamp(min=0), rises[index]) * u.sign()
        by_step = -(slope * u).sum() * step_gradient_scale(used, self.largest)
        by_number = (slope / step).view(used.shape)
        return cosine.pixels(by_number) if self.waves else by_number, by_step

    @torch.no_grad()
    def bits(self, weight: Tensor) -> float:
        """What the weights cost, by their own counts."""
        zero, nonzero, further = prices(*self._counts(weight))
        codes = matrix(self._codes(weight)[: self.units].abs()).long()
        cost = torch.where(codes == 0, zero, nonzero + further[codes.clamp(min=1) - 1])
        return float(cost.double().sum())

    def _numbered(self, weight: Tensor) -> Tensor:
        """What the whole numbers are of: the weights, or their waves."""
        return cosine.coefficients(weight) if self.waves else weight

    def _counts(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = matrix(self._codes(weight)[: self.units].abs())
        magnitudes = torch.bincount(codes.flatten().int(), minlength=self.largest + 1)[1:]
        return (codes > 0).sum(1), (codes > 0).sum(0), magnitudes

    def _codes(self, weight: Tensor) -> Tensor:
        """Whole numbers, as floats. A weight that lost rows since has lost those that are not used."""
        codes = whole(self._numbered(weight.detach()), self.log_step.detach().exp(), self.largest)
        if not codes.isfinite().all():
            raise RunError("quantization=rate: weights became NaN or infinite; the training diverged, lower optim.lr")
        if len(weight) == self.built:
            codes[self.units :] = 0
        return codes


def matrix(weight: Tensor) -> Tensor:
    """(O, ...) as rows and columns; a bias as one row."""
    return weight.flatten(1) if weight.ndim > 1 else weight[None]


def prices(in_rows: Tensor, in_columns: Tensor, magnitudes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bits of a zero and of not being one, both (rows, columns), and bits of a sign and each magnitude (largest,), from
    how many of each row, each column and each magnitude there are.

    The log-odds of a weight are those of its row and of its column together, over those of all.
    """
    rows, columns = len(in_rows), len(in_columns)
    odds = _log_odds(in_rows, columns)[:, None].expand(rows, columns)
    if rows > 1:
        odds = odds + _log_odds(in_columns, rows) - _log_odds(in_rows.sum(), rows * columns)
    smooth = magnitudes.double() + 0.5
    further = 1 - (smooth / smooth.sum()).log2()
    return tuple(part.float() for part in (F.softplus(odds) / LN2, F.softplus(-odds) / LN2, further))  # type: ignore[return-value]


def _log_odds(count: Tensor, of: int) -> Tensor:
    """Of not being zero, with half a weight of either kind added, so that none is impossible."""
    return ((count.double() + 0.5) / (of - count.double() + 0.5)).log()


def step_gradient_scale(weight: Tensor, largest: int) -> float:
    """Esser et al. 2020, section 2.2: so that a step moves at the pace of the weights."""
    return 1 / math.sqrt(weight.numel() * largest)


class Stepped(torch.autograd.Function):
    """round(weight / step) * step, cut off at the largest; gradients for the weight and for the step's logarithm."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, log_step: Tensor, largest: int) -> Tensor:
        step = log_step.exp()
        u = weight / step
        codes = u.round().clamp(-largest, largest)
        ctx.save_for_backward(u, codes, step)
        ctx.largest = largest
        return codes * step

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        u, codes, step = ctx.saved_tensors
        by_weight = gradient * (u.abs() <= ctx.largest)
        by_step = None
        if ctx.needs_input_grad[1]:  # of codes - u inside, of codes outside; torch.where takes thrice as long on a CPU
            moved = (gradient * codes).sum() - (by_weight * u).sum()
            by_step = step * moved * step_gradient_scale(u, ctx.largest)
        return by_weight, by_step, None
