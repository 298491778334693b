"""`quantization=codebook`: the weights of a layer share a few values, found by k-means and then fine-tuned.

Han et al. 2016, "Deep Compression", section 3: one-dimensional k-means on a trained layer's weights, centroids that
begin evenly between the smallest and the largest, then training of the centroids by the gradients of their weights.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from frugal.coding.encoding import Encoding
from frugal.errors import SettingsError
from frugal.pruning.masks import per_layer
from frugal.quantization.fake import QuantizedTraining, Quantizer, Target

Initialization = Literal["linear", "density"]
Gradient = Literal["sum", "mean"]


class Codebook(QuantizedTraining):
    """From the step `begin` on each layer's weights are `2**bits` shared values, and training moves those.

    Zeros, as pruning leaves them, stay zeros beside the shared values. A run that ends before `begin` is clustered
    after training.

    Args:
        bits: of each layer, 1 to 8: `2**bits` values.
        layer_bits: of single layers: patterns of module paths, the first that fits counts, or a list in the network's
            order.
        begin: when the weights are clustered: an optimizer step, a share of the run as "75%", or epochs as "8ep".
        initialization: where k-means begins: evenly over the range of the weights ("linear"), which keeps the few large
            ones, or over their ranks ("density").
        rounds: of k-means at most. It settles within some hundred; after few that began evenly the values are still
            nearly so, more weights share those near zero, and codes of several lengths take fewer bytes.
        gradient: a shared value's gradient is the sum of its weights' gradients, as in the paper, which asks for a
            smaller learning rate; or their mean, which moves it as far as a weight would have moved.
        exclude: module paths or shell patterns of layers that stay as they are.
        embeddings: whether embeddings are quantized too.
    """

    def __init__(
        self,
        bits: int = 5,
        layer_bits: dict[str, int] | list[int] | None = None,
        begin: int | str = "75%",
        initialization: Initialization = "linear",
        rounds: int = 300,
        gradient: Gradient = "mean",
        exclude: list[str] | tuple[str, ...] = (),
        embeddings: bool = False,
    ) -> None:
        super().__init__(begin, exclude, embeddings)
        given = list(layer_bits.values()) if isinstance(layer_bits, dict) else list(layer_bits or ())
        for key, value in (("bits", bits), *(("layer_bits", value) for value in given)):
            if type(value) is not int or not 1 <= value <= 8:
                raise SettingsError(f"quantization.{key}={value}: a shared value has 1 to 8 bits")
        if rounds < 0:
            raise SettingsError(f"quantization.rounds={rounds}: needs to be 0 or more")
        self.bits, self.layer_bits, self.rounds = bits, layer_bits or None, rounds
        self.initialization, self.gradient = initialization, gradient
        self._bits: dict[str, int] = {}

    def targets(self, network: nn.Module) -> list[Target]:
        found = super().targets(network)
        bits = per_layer(self.layer_bits, [target.layer for target in found], self.bits, "quantization.layer_bits")
        self._bits = {layer: int(number) for layer, number in bits.items()}
        return found

    def make(self, target: Target) -> Quantizer:
        values = 2 ** self._bits[target.layer]
        return SharedValues(target.leaf.detach(), values, self.initialization, self.gradient == "mean", self.rounds)

    def figures(self) -> dict[str, Any]:
        return {"bits": self._bits, **super().figures()}


class SharedValues(Quantizer):
    """weight -> table[code - 1], and 0 where the code is 0 or the weight was pruned since.

    `table` is trained; `codes` stay as k-means set them.
    """

    codes: Tensor

    def __init__(
        self, like: Tensor, values: int, initialization: Initialization, mean: bool, rounds: int = 300
    ) -> None:
        super().__init__()
        self.initialization, self.mean, self.rounds = initialization, mean, rounds
        self.table = nn.Parameter(like.new_zeros(values))
        self.register_buffer("codes", torch.zeros_like(like, dtype=torch.int16))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        table, codes = cluster(weight, len(self.table), self.initialization, self.rounds)
        self.table.copy_(table)
        self.codes.copy_(codes)

    def quantize(self, weight: Tensor) -> Tensor:
        table = PerMember.apply(self.table, self.codes) if self.mean else self.table
        values = torch.cat([table.new_zeros(1), table]).index_select(0, self.codes.flatten().int())
        return torch.where(weight == 0, 0, values.view(self.codes.shape))

    def encoding(self, weight: Tensor) -> Encoding:
        """Only values that are in use, in ascending order; a value that has become 0 is the code 0."""
        table, codes = self.table.detach().float(), self.codes.int()
        if codes.shape != weight.shape:  # units went since: what is left are values of the table
            order = table.argsort()
            nearest = torch.bucketize(weight, (table[order][1:] + table[order][:-1]) / 2)
            codes = order[nearest].int() + 1
        codes = torch.where(weight == 0, 0, codes)
        used = [i for i in codes.unique().tolist() if i and table[i - 1] != 0]
        used.sort(key=lambda i: float(table[i - 1]))
        renumbered = torch.zeros(len(table) + 1, dtype=torch.int32)
        renumbered[used] = torch.arange(1, len(used) + 1, dtype=torch.int32)
        return Encoding(codes=renumbered[codes.long()], scale=None, table=table[[i - 1 for i in used]])


class PerMember(torch.autograd.Function):
    """A table as it is; its gradient is divided by how many weights share each value."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        members = torch.bincount(ctx.saved_tensors[0].flatten().int(), minlength=len(gradient) + 1)[1:]
        return gradient / members.clamp(min=1), None


def cluster(
    weight: Tensor, values: int, initialization: Initialization = "linear", rounds: int = 300
) -> tuple[Tensor, Tensor]:
    """k-means of the weights that are not 0: a table (values,) and the codes, int16 in the weight's shape; 0 is zero.

    Lloyd's rounds until nothing moves, `rounds` at most, in double precision. A centroid in the middle between two
    others' weights takes what is nearest; of two equally near ones the lower. One that nothing is nearest to stays
    where it began. As many different weights as there are values, or fewer, are the table themselves.
    """
    flat = weight.detach().flatten().double().cpu()
    ordered = flat[flat != 0].sort().values
    distinct = ordered.unique()
    few = len(distinct) <= values
    centroids = distinct if few else _lloyd(ordered, _begin(ordered, values, initialization), rounds)
    table = torch.cat([centroids, centroids.new_zeros(values - len(centroids))])
    codes = torch.zeros(flat.shape, dtype=torch.int16)
    if len(centroids):
        nearest = torch.bucketize(flat, (centroids[1:] + centroids[:-1]) / 2)
        codes = torch.where(flat == 0, 0, nearest + 1).to(torch.int16)
    return table.to(weight.dtype).to(weight.device), codes.view(weight.shape).to(weight.device)


def _begin(ordered: Tensor, values: int, initialization: Initialization) -> Tensor:
    if initialization == "linear":
        return torch.linspace(float(ordered[0]), float(ordered[-1]), values, dtype=torch.float64)
    ranks = (torch.arange(values, dtype=torch.float64) + 0.5) / values * len(ordered)
    return ordered[ranks.long()].unique()  # equal weights may fill many ranks


def _lloyd(ordered: Tensor, centroids: Tensor, rounds: int) -> Tensor:
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    for _ in range(rounds):
        # of sorted values a cluster is a stretch: its bounds are the middles between centroids
        bounds = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, right=True)
        bounds = torch.cat([bounds.new_zeros(1), bounds, bounds.new_full((1,), len(ordered))])
        members = bounds.diff()
        means = sums[bounds].diff() / members.clamp(min=1)
        moved = torch.where(members > 0, means, centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids
