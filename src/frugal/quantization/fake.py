"""What the quantizations of weights share: which weights, whole numbers times a scale, and their part in training.

A scale belongs to a whole weight, to each output channel (row), or to each group of consecutive inputs within a row;
of a convolution's weight (O, I, ...) the inputs are all that follows O. Whole numbers are symmetric about 0, so that a
pruned weight stays 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from frugal.coding.encoding import Encoding, attach
from frugal.errors import RefusedError, RunError, SettingsError
from frugal.pruning.base import network_of
from frugal.pruning.masks import LAYERS, original, prunable
from frugal.steps import Steps
from frugal.technique import Technique

CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)  # of the largest weight, tried by clip="mse"
Clip = Literal["max", "mse"]


# --------------------------------------------------------------------------------------------------- which weights
def quantizable(network: nn.Module, exclude: Iterable[str] = (), embeddings: bool = False) -> dict[str, nn.Module]:
    """The layers whose `weight` is quantized, by module path: those that can be pruned, and embeddings where that is
    asked for. A weight that two modules share stays as it is. Raises SettingsError for a pattern without a layer."""
    if not embeddings:
        return prunable(network, exclude, "quantization.exclude")
    owners = Counter(id(parameter) for module in network.modules() for parameter in module._parameters.values())
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (*LAYERS, nn.Embedding)) and (p := original(module)) is not None and owners[id(p)] == 1
    }
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise SettingsError(f"quantization.exclude: no layer is called {pattern}; there are {', '.join(found)}")
    return {name: layer for name, layer in found.items() if not any(fnmatchcase(name, p) for p in exclude)}


def kept(network: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """Names of the parameters of two dimensions and more that are not the weights of `layers`."""
    chosen = {id(original(module)) for module in layers.values()}
    return [
        name.replace(".parametrizations.", ".").removesuffix(".original")
        for name, parameter in network.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in chosen
    ]


def parameter(layer: str, name: str = "weight") -> str:
    """The plain name of a layer's parameter; the network itself may be the layer."""
    return f"{layer}.{name}" if layer else name


# --------------------------------------------------------------------------------------- whole numbers times a scale
def groups_of(inputs: int, group: int | None) -> int:
    """How many groups a row of `inputs` falls into: equal ones, as near to `group` inputs as they can be; None: one."""
    if group is None or group >= inputs:
        return 1
    sizes = [size for size in range(1, inputs + 1) if inputs % size == 0]
    return inputs // min(sizes, key=lambda size: max(size / group, group / size))


def scales(weight: Tensor, largest: int, group: int | None = None, clip: Clip = "max") -> Tensor:
    """The scale by which each row's, or group's, largest weight becomes `largest`: (O,), or (O, groups).

    `clip="mse"` also tries smaller ones, which cut the largest weights off, and takes that of the least squared error.
    Where there are only zeros, as in an empty row after pruning, the scale is 1.
    """
    rows = weight.detach().float().flatten(1)
    groups = groups_of(rows.shape[1], group)
    parts = rows.unflatten(1, (groups, -1))
    top = parts.abs().amax(2, keepdim=True)
    best = _positive(top / largest)
    if clip == "mse":
        error = torch.full_like(best, torch.inf)
        for share in CLIPS:
            scale = _positive(top * share / largest)
            found = (whole(parts, scale, largest) * scale - parts).square().sum(2, keepdim=True)
            best, error = torch.where(found < error, scale, best), torch.minimum(found, error)
    best = best.squeeze(2)
    return best if groups > 1 else best.squeeze(1)


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def whole(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    """Whole numbers, as floats, from -largest to largest; halves go to the even one."""
    return (weight / scale).round().clamp(-largest, largest)


def spread(scale: Tensor, shape: torch.Size) -> Tensor:
    """A scale, () or (O,) or (O, groups), for each weight of that shape: ready to be multiplied with it."""
    if scale.ndim == 0:
        return scale
    if scale.ndim == 1:
        return scale.view(-1, *[1] * (len(shape) - 1))
    inputs = shape[1:].numel()
    return scale.repeat_interleave(inputs // scale.shape[1], dim=1).view(shape)


class StraightThrough(torch.autograd.Function):
    """Gives the quantized weight, and to the weight all of its gradient (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, quantized: Tensor) -> Tensor:
        return quantized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


# ------------------------------------------------------------------------------------------------ after the training
class WeightOnly(Technique):
    """Base: weights rounded once, after training."""

    largest: int

    def __init__(self, group: int | None, clip: Clip, exclude: list[str] | tuple[str, ...], embeddings: bool) -> None:
        super().__init__()
        check_group(group)
        self.group, self.clip, self.exclude, self.embeddings = group, clip, list(exclude), embeddings
        self._figures: dict[str, Any] = {}

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        layers = quantizable(network, self.exclude, self.embeddings)
        self._figures = figures_of(network, layers)
        targets = [Target(name, module) for name, module in layers.items()]
        encodings = {}
        for target in targets:
            weight = _sound(target.plain, getattr(target.module, target.name))
            scale = scales(weight, self.largest, self.group, self.clip)
            encodings[target.plain] = affine(weight, scale, self.largest)
        settle(network, targets, encodings)
        return network

    def figures(self) -> dict[str, Any]:
        return {"levels": 2 * self.largest + 1, "group": self.group, **self._figures, "status": "simulated"}


def affine(weight: Tensor, scale: Tensor, largest: int) -> Encoding:
    codes = whole(weight.detach().float(), spread(scale, weight.shape), largest).int()
    return Encoding(codes=codes, scale=scale, table=None)


def settle(network: nn.Module, targets: Iterable[Target], encodings: Mapping[str, Encoding]) -> None:
    """Make the parameters plain again, with the values that their encodings say, and keep those with the network."""
    # files hold them row by row, whatever memory format the weight has
    encodings = {name: replace(found, codes=found.codes.contiguous()) for name, found in encodings.items()}
    for target in targets:
        if parametrize.is_parametrized(target.module, target.name):
            parametrize.remove_parametrizations(target.module, target.name, leave_parametrized=True)
        with torch.no_grad():
            getattr(target.module, target.name).copy_(encodings[target.plain].decode())
    attach(network, encodings)


def figures_of(network: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, Any]:
    return {"layers": list(layers), "not_quantized": kept(network, layers)}


def check_group(group: int | None) -> None:
    if group is not None and group < 1:
        raise SettingsError(f"quantization.group={group}: needs to be 1 or more inputs, or null for whole rows")


def _sound(name: str, weight: Tensor) -> Tensor:
    if not bool(weight.isfinite().all()):
        raise RunError(f"{name}: has NaN or infinite values, which no whole number stands for; the training diverged")
    return weight.detach().float()


# ----------------------------------------------------------------------------------------------- during the training
class Quantizer(nn.Module, ABC):
    """A parametrization of a weight that does nothing until `active`: a buffer, so that it goes with the state."""

    active: Tensor
    follows_masks = True
    outlives_units = True  # whether the values stay what they are when rows and columns are cut out of the weight

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("active", torch.tensor(False))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.active, self.quantize(weight), weight)

    @abstractmethod
    def quantize(self, weight: Tensor) -> Tensor:
        """The weight with quantized values; gradients go where they should."""

    def start(self, weight: Tensor) -> None:
        """Called once, when quantization begins: what is to be taken from the weights as they are then."""

    @abstractmethod
    def encoding(self, weight: Tensor) -> Encoding:
        """How the quantized values follow from whole numbers. `weight` may be quantized already."""


@dataclass(frozen=True)
class Target:
    """A parameter to quantize: `module.<name>`, of the layer at this path."""

    layer: str
    module: nn.Module
    name: str = "weight"

    @property
    def plain(self) -> str:
        return parameter(self.layer, self.name)

    @property
    def quantizer(self) -> Quantizer | None:
        steps = self._steps()
        return next((step for step in steps if isinstance(step, Quantizer)), None) if steps is not None else None

    @property
    def leaf(self) -> Tensor:
        """The parameter itself, below its parametrizations."""
        steps = self._steps()
        return getattr(self.module, self.name) if steps is None else steps.original

    @torch.no_grad()
    def unquantized(self) -> Tensor:
        """As it comes to its quantizer: masked. Where that was taken off, as it acts."""
        if self.quantizer is None:
            return getattr(self.module, self.name).detach()
        weight = self.leaf.detach()
        for step in self._steps():  # type: ignore[union-attr]
            if isinstance(step, Quantizer):
                break
            weight = step(weight)
        return weight

    def _steps(self) -> parametrize.ParametrizationList | None:
        parametrized = parametrize.is_parametrized(self.module, self.name)
        return self.module.parametrizations[self.name] if parametrized else None  # type: ignore[index, return-value]


class QuantizedTraining(Technique):
    """Base: a `Quantizer` on each weight, after its mask, from the step `begin` on.

    A run that ends before `begin` is quantized after training.
    """

    def __init__(self, begin: int | str, exclude: list[str] | tuple[str, ...], embeddings: bool) -> None:
        super().__init__()
        self.begin = Steps.parse(begin, "quantization.begin")
        self.exclude, self.embeddings = list(exclude), embeddings
        self.quantizers: dict[str, Quantizer] = {}  # by the parameter's plain name; outlives its parametrization
        self.first_step: int | None = None
        self._targets: list[Target] = []  # of the network in training
        self._figures: dict[str, Any] = {}

    @abstractmethod
    def make(self, target: Target) -> Quantizer:
        """The quantizer of a parameter."""

    def targets(self, network: nn.Module) -> list[Target]:
        layers = quantizable(network, self.exclude, self.embeddings)
        return [Target(name, module) for name, module in layers.items()]

    def prepare(self, network: nn.Module) -> None:
        self.quantizers = {}
        for target in self.targets(network):
            if (found := target.quantizer) is None:
                found = self.make(target).to(target.leaf.device)
                parametrize.register_parametrization(target.module, target.name, found)
            self.quantizers[target.plain] = found

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # in a user's own Trainer nobody else calls it
            self.prepare(network_of(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._targets = self.targets(network_of(pl_module))
        first = self.first_step = self.begin.resolve(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if first < (last := getattr(callback, "rewinds_until", lambda _: 0)(trainer)):
                raise RefusedError(
                    f"quantization.begin={self.begin}: is step {first}, and pruning=lottery sets weights back until"
                    f" step {last}, quantized ones too; begin then or later"
                )
        if trainer.global_step >= first:
            self.start(trainer)
            return

        def wait(trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
            if trainer.global_step >= first:
                self.on_train_batch_start = None
                self.start(trainer)

        self.on_train_batch_start = wait

    def start(self, trainer: Trainer) -> None:
        """Begin to quantize what does not yet: after a resume, nothing."""
        for target in self._targets:
            quantizer = target.quantizer
            if quantizer is None or bool(quantizer.active):
                continue
            quantizer.start(target.unquantized())
            quantizer.active.fill_(True)
            # What optimizers remember is from when these did nothing. Not taken away: fused ones want all or none.
            for optimizer in trainer.optimizers:
                for trained in quantizer.parameters():
                    for remembered in optimizer.state.get(trained, {}).values():
                        if isinstance(remembered, Tensor):
                            remembered.zero_()

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        targets = self.targets(network)
        self._figures = figures_of(network, quantizable(network, self.exclude, self.embeddings))
        encodings = {}
        for target in targets:
            # a finished network that was not trained with this has none
            quantizer = target.quantizer or self.quantizers.get(target.plain) or self.make(target)
            self.quantizers[target.plain] = quantizer
            weight = _sound(target.plain, target.unquantized()).cpu()
            if not bool(quantizer.active):
                quantizer.start(weight)
                quantizer.active.fill_(True)
            encodings[target.plain] = quantizer.cpu().encoding(weight)
        settle(network, targets, encodings)
        return network

    def figures(self) -> dict[str, Any]:
        return {"begin_step": self.first_step, **self._figures, "status": "simulated"}


class FakeQuantizer(Quantizer):
    """Whole numbers by scales that follow the weights; the gradient goes straight through (Jacob et al. 2018)."""

    def __init__(self, largest: int, group: int | None) -> None:
        super().__init__()
        self.largest, self.group = largest, group
        self.outlives_units = group is None  # other groups would be other scales

    def quantize(self, weight: Tensor) -> Tensor:
        scale = spread(scales(weight, self.largest, self.group), weight.shape)
        return StraightThrough.apply(weight, whole(weight.detach(), scale, self.largest) * scale)

    def encoding(self, weight: Tensor) -> Encoding:
        return affine(weight, scales(weight, self.largest, self.group), self.largest)


class FakeQuantizedTraining(QuantizedTraining):
    """Base of `qat_int8` and `qat_int4`."""

    largest: int

    def __init__(
        self, begin: int | str, group: int | None, exclude: list[str] | tuple[str, ...], embeddings: bool
    ) -> None:
        super().__init__(begin, exclude, embeddings)
        check_group(group)
        self.group = group

    def make(self, target: Target) -> Quantizer:
        return FakeQuantizer(self.largest, self.group)

    def figures(self) -> dict[str, Any]:
        return {"levels": 2 * self.largest + 1, "group": self.group, **super().figures()}
