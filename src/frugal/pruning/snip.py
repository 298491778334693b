"""`pruning=snip`: before the first step, the weights go on which the loss hardly depends (Lee et al. 2019, "SNIP:
Single-shot network pruning based on connection sensitivity")."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from frugal.errors import SettingsError
from frugal.pruning.base import Densities, MaskPruning, Scope, network_of, training_batches
from frugal.pruning.masks import masked_weight, masks_of, original


class SnipPruning(MaskPruning):
    """Scores |g w|, g the gradient of the mean loss over the first training samples. The paper compares all weights
    with each other, so `scope` is global by default.

    Args (others: `MaskPruning`):
        samples: how many training samples to take the gradient over; the paper takes 100.
    """

    after_training = False

    def __init__(
        self,
        density: float = 0.1,
        densities: Densities | None = None,
        scope: Scope = "global",
        samples: int = 100,
        exclude: list[str] | tuple[str, ...] = (),
    ) -> None:
        super().__init__(density, densities, scope, exclude)
        if samples < 1:
            raise SettingsError(f"pruning.samples={samples}: needs to be 1 or more")
        self.samples = samples
        self._scores: dict[str, Tensor] = {}

    def events(self, trainer: Trainer) -> list[int]:
        return [0]

    def _act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.pruned_at:
            self._scores = sensitivity(trainer, pl_module, self.samples)
        super()._act(trainer, pl_module)
        self._scores = {}

    def scores(self, network: nn.Module) -> dict[str, Tensor]:
        return self._scores


def sensitivity(trainer: Trainer, pl_module: LightningModule, samples: int) -> dict[str, Tensor]:
    """|g w| of each masked layer's weight. Leaves the network's buffers and all generators as they were."""
    criterion = getattr(pl_module, "criterion", None)
    if criterion is None:
        raise SettingsError(
            f"pruning=snip: {type(pl_module).__name__} has no `criterion`, (output, target) -> mean loss"
        )
    network = network_of(pl_module)
    layers = {name: network.get_submodule(name) for name in masks_of(network)}
    weights: list[nn.Parameter] = [original(layer) for layer in layers.values()]  # type: ignore[misc]
    if not all(weight.requires_grad for weight in weights):
        raise SettingsError("pruning=snip: the weights are frozen and have no gradient")
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    gradients, seen = [torch.zeros_like(weight) for weight in weights], 0
    devices = [pl_module.device] if pl_module.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        for x, y in training_batches(trainer, pl_module, samples):
            with trainer.precision_plugin.forward_context():
                output = network(x)
            if y.ndim > 1 and y.shape == output.shape[:-1]:  # a class for each place of a text
                output, y = output.flatten(0, -2), y.flatten()
            loss = criterion(output if output.dtype == torch.float64 else output.float(), y)
            parts = torch.autograd.grad(loss, weights)
            for gradient, part in zip(gradients, parts, strict=True):
                gradient += part * len(x)
            seen += len(x)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
    return {
        name: (gradient / seen * masked_weight(layer)).abs()
        for (name, layer), gradient in zip(layers.items(), gradients, strict=True)
    }
