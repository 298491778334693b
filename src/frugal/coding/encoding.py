"""How a weight's floats follow from whole numbers: what quantization leaves and a coder writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frugal.coding import cosine
from frugal.errors import RunError
from frugal.measure.size import plain_weights


@dataclass
class Encoding:
    """A weight as whole numbers.

    Args:
        codes: int32, in the weight's shape. Code 0 is exactly 0.0, whatever the scale or the table.
        scale: float32; () for the tensor, (O,) by output channel (the first dimension), or (O, groups) for groups of
            consecutive inputs, all of one size. None: 1.
        table: float32 (K,); code i >= 1 stands for table[i - 1]. None: a code stands for itself.
        waves: whether the numbers of a row are of waves, which together make its pixels (`frugal.coding.cosine`); the
            pixels are whole numbers then, and the scale is of them: 2^-24 of that of the waves.
    """

    codes: Tensor
    scale: Tensor | None = None
    table: Tensor | None = None
    waves: bool = False

    def fault(self) -> str | None:
        """What no weight follows from, or None."""
        shape = tuple(self.codes.shape)
        if self.codes.dtype != torch.int32:
            return f"codes are {self.codes.dtype}, not int32"
        for name, values in (("scale", self.scale), ("table", self.table)):
            if values is not None and values.dtype != torch.float32:
                return f"its {name} is {values.dtype}, not float32"
        if self.scale is not None and self.scale.ndim:
            if self.scale.ndim > 2 or not shape or len(self.scale) != shape[0]:
                return f"a scale of shape {tuple(self.scale.shape)} does not fit codes of shape {shape}"
            inputs = self.codes.numel() // max(1, shape[0])
            if self.scale.ndim == 2 and (not self.scale.shape[1] or inputs % self.scale.shape[1]):
                return f"{inputs} inputs are not {self.scale.shape[1]} groups of one size"
        if self.table is not None:
            if self.table.ndim != 1:
                return f"its table has {self.table.ndim} dimensions"
            if self.codes.numel() and not 0 <= int(self.codes.min()) <= int(self.codes.max()) <= len(self.table):
                return f"codes are not from 0 to {len(self.table)}, its table's length"
        if self.waves:
            if self.table is not None or (self.scale is not None and self.scale.ndim > 1):
                return "numbers of waves have neither a table nor groups"
            if len(shape) < 2 or not self.codes.numel() or cosine.side(self.codes[0].numel()) is None:
                return f"codes of shape {shape} are no rows of square images"
        return None

    def decode(self) -> Tensor:
        """The weight, float32: one product of floats at most for each, which IEEE 754 rounds alike everywhere."""
        if self.waves:
            values = cosine.to_pixels(self.codes).to(torch.float32)  # rounded to nearest where they have more bits
        elif self.table is None:
            values = self.codes.to(torch.float32)
        else:
            values = torch.cat([self.table.new_zeros(1), self.table])[self.codes.long()]
        if self.scale is not None and self.scale.ndim:
            groups = self.scale.reshape(len(self.scale), -1, 1)
            values = (values.reshape(*groups.shape[:2], -1) * groups).reshape(self.codes.shape)
        elif self.scale is not None:
            values = values * self.scale
        zero = values == 0 if self.waves else self.codes == 0
        return torch.where(zero, torch.zeros_like(values), values)  # not -0.0, nor 0 times infinity

    def matches(self, weight: Tensor) -> bool:
        """Whether the weight is this one's, bit for bit; a zero's sign is not looked at."""
        return weight.shape == self.codes.shape and torch.equal(self.decode().to(weight.dtype), weight)


def attach(network: nn.Module, encodings: Mapping[str, Encoding]) -> None:
    """Say of parameters, by their plain names, which whole numbers they are; adds to what was attached before."""
    network.frugal_encodings = {**getattr(network, "frugal_encodings", {}), **encodings}  # type: ignore[assignment]


def encodings_of(network: nn.Module) -> dict[str, Encoding]:
    """What was attached, each checked against the weight as it acts. Raises RunError with the name that differs."""
    encodings: dict[str, Encoding] = getattr(network, "frugal_encodings", {})
    if encodings:
        weights = plain_weights(network)
        for name, encoding in encodings.items():
            check(name, encoding, weights.get(name))
    return dict(encodings)


def check(name: str, encoding: Encoding, weight: Tensor | None) -> None:
    """Raises RunError unless the weight follows from the encoding."""
    if weight is None:
        raise RunError(f"{name}: has codes, but the network has no such parameter")
    fault = encoding.fault()
    if fault is None and not encoding.matches(weight.detach().cpu()):
        fault = "the weights are not those that its codes stand for"
    if fault is not None:
        raise RunError(f"{name}: cannot be coded ({fault})")
