"""`quantization=qat_int8`: training with weights, and with activations where that is asked for, that are rounded to
whole numbers of 8 bits in each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from frugal.errors import SettingsError
from frugal.pruning.masks import LAYERS
from frugal.quantization.fake import FakeQuantizedTraining, StraightThrough, quantizable
from frugal.steps import Steps
from frugal.technique import Technique

SLOWLY = 0.01  # of a range's way to that of the batch, in each step
LEVELS = 255  # steps between the smallest and the largest code
INPUT = "quantized_input"  # the child of a layer that rounds what goes into it


class QATInt8(FakeQuantizedTraining):
    """Quantization-aware training (Jacob et al. 2018): each step computes with code * scale, and the gradient goes to
    the weight as if it had not been rounded. Codes are from -127 to 127; the kernels stay fp32's.

    With `activations` so does what goes into each of these layers, by 256 whole numbers and one range a layer, which
    follows the extremes of the training batches by a running average. Products of two activations, as in attention,
    stay as they are. The artefact keeps the ranges and computes with them; int8 kernels come with
    `frugal compress RUN quantization=static_int8`.

    Args:
        begin: from which optimizer step on: a number, a share of the run as "30%", or epochs as "2ep".
        group: consecutive inputs that share a scale; a row falls into equal groups as near to this as they can be.
            None: each row has one scale.
        activations: whether the layers' inputs are rounded too.
        freeze: the step from which their ranges stay, like `begin`.
        exclude: module paths or shell patterns of layers that stay as they are.
        embeddings: whether embeddings are quantized too.
    """

    largest = 127

    def __init__(
        self,
        begin: int | str = "50%",
        group: int | None = None,
        activations: bool = False,
        freeze: int | str = "90%",
        exclude: list[str] | tuple[str, ...] = (),
        embeddings: bool = False,
    ) -> None:
        super().__init__(begin, group, exclude, embeddings)
        self.activations, self.freeze = activations, Steps.parse(freeze, "quantization.freeze")
        self.inputs: dict[str, QuantizedInput] = {}  # by layer

    def prepare(self, network: nn.Module) -> None:
        super().prepare(network)
        if self.activations:
            self.inputs = quantize_inputs(self._with_inputs(network))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        first, last = self.begin.resolve(trainer), self.freeze.resolve(trainer)
        if self.activations and last < first:
            raise SettingsError(
                f"quantization.freeze={self.freeze}: is step {last}, but quantization.begin={self.begin} is {first}"
            )
        super().on_train_start(trainer, pl_module)

    def start(self, trainer: Trainer) -> None:
        super().start(trainer)
        if not self.activations:
            return
        last = self.freeze.resolve(trainer)
        for found in self.inputs.values():
            found.active.fill_(True)

        def freeze(trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
            if trainer.global_step >= last:
                self.on_train_batch_start = None
                for found in self.inputs.values():
                    found.frozen.fill_(True)

        self.on_train_batch_start = freeze

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        network = super().finalize(network, batches)
        if not self.activations:
            return network
        self.inputs = quantize_inputs(self._with_inputs(network))
        if not all(bool(found.active) for found in self.inputs.values()):  # the run ended before: as the samples say
            _calibrate(network, self.inputs.values(), batches)
        node = {"_target_": "frugal.quantization.qat_int8.QuantizedInputs", "layers": list(self.inputs)}
        network.frugal_techniques = {"quantization": node}  # type: ignore[assignment]
        self._figures["activations"] = {
            name: [float(found.low), float(found.high)] for name, found in self.inputs.items()
        }
        return network

    def _with_inputs(self, network: nn.Module) -> dict[str, nn.Module]:
        """Of the layers that are quantized those that take numbers; an embedding takes tokens."""
        layers = quantizable(network, self.exclude, self.embeddings)
        return {name: layer for name, layer in layers.items() if isinstance(layer, LAYERS)}


class QuantizedInputs(Technique):
    """What an artefact of `activations=true` says of itself: that the inputs of these layers are rounded."""

    def __init__(self, layers: list[str] | tuple[str, ...]) -> None:
        super().__init__()
        self.layers = list(layers)

    def prepare(self, network: nn.Module) -> None:
        quantize_inputs({name: network.get_submodule(name) for name in self.layers})


class QuantizedInput(nn.Module):
    """x -> (code - zero) * step of 256 codes, by the range `low` to `high`, which holds 0; 0 itself is exact.

    Does nothing until `active`. In training the range follows the batches until `frozen`, the first at once.
    """

    low: Tensor
    high: Tensor
    active: Tensor
    frozen: Tensor
    seen: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        for name in ("low", "high"):
            self.register_buffer(name, torch.zeros((), device=like.device))
        for name in ("active", "frozen", "seen"):
            self.register_buffer(name, torch.zeros((), dtype=torch.bool, device=like.device))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.observe(x)
        step = (self.high - self.low) / LEVELS
        step = torch.where(step > 0, step, 1)
        zero = (-self.low / step).round()
        inside = x.float().clamp(-zero * step, (LEVELS - zero) * step)  # no gradient from beyond the range
        codes = (inside.detach() / step + zero).round()
        return torch.where(self.active, StraightThrough.apply(inside, (codes - zero) * step).to(x.dtype), x)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        low, high = x.detach().float().aminmax()
        follows = torch.where(self.seen, torch.where(self.frozen, 0.0, SLOWLY), 1.0) * self.active
        self.low.lerp_(low.clamp(max=0).to(self.low), follows.to(self.low))
        self.high.lerp_(high.clamp(min=0).to(self.high), follows.to(self.high))
        self.seen |= self.active


def quantize_inputs(layers: Mapping[str, nn.Module]) -> dict[str, QuantizedInput]:
    """Let each layer round what goes into it; what is there stays."""
    for layer in layers.values():
        if not isinstance(getattr(layer, INPUT, None), QuantizedInput):
            layer.add_module(INPUT, QuantizedInput(next(layer.parameters())))
            layer.register_forward_pre_hook(_rounded)
    return {name: getattr(layer, INPUT) for name, layer in layers.items()}


def remove_inputs(network: nn.Module) -> nn.Module:
    """Let inputs come as they are again."""
    for layer in network.modules():
        if isinstance(getattr(layer, INPUT, None), QuantizedInput):
            delattr(layer, INPUT)
            for number, hook in list(layer._forward_pre_hooks.items()):
                if hook is _rounded:
                    del layer._forward_pre_hooks[number]
    return network


def _rounded(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (getattr(layer, INPUT)(given[0]), *given[1:])


@torch.no_grad()
def _calibrate(network: nn.Module, inputs: Iterable[QuantizedInput], batches: Iterable[Tensor]) -> None:
    inputs = list(inputs)
    for found in inputs:
        found.train()
        found.active.fill_(True)
    for x in batches:
        network(x)
    for found in inputs:
        found.eval()
