"""`MaskPruning`: what the options that mask single weights share. A subclass says when, by which scores, and how far.

Works in any Lightning project: `Trainer(callbacks=[GradualPruning(density=0.1)])`. The network is `pl_module.network`,
or the module itself where it has none.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from frugal.errors import RunError, SettingsError
from frugal.pruning.masks import (
    Mask,
    add_masks,
    count_of,
    largest,
    masked_weight,
    masks_of,
    original,
    per_layer,
    prunable,
    remove_masks,
    weight_of,
)
from frugal.technique import Technique

Scope = Literal["layer", "global"]
Densities = dict[str, float] | list[float]


def network_of(pl_module: LightningModule) -> nn.Module:
    network = getattr(pl_module, "network", None)
    return network if isinstance(network, nn.Module) else pl_module


def training_batches(trainer: Trainer, pl_module: LightningModule, samples: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first training batches as a step would get them, the last one cut to make up `samples`. Only before the first
    step: a loader may know one pass at a time."""
    loader: Any = trainer.train_dataloader
    for batch in loader:
        moved: Any = pl_module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch))
        x, y = trainer.strategy.batch_to_device(moved, dataloader_idx=0)
        yield x[:samples], y[:samples]
        samples -= len(x)
        if samples <= 0:
            return


class MaskPruning(Technique):
    """Prunes at some steps of training, each time to fewer weights; nothing pruned comes back.

    Exactly round(density * weights) are kept. An event at step s happens after s optimizer steps. Where no training
    took place `finalize` prunes to the final density at once, if the scores can do without training.

    Args:
        density: share of the prunable weights that is kept in the end, above 0 and at most 1.
        densities: by layer, with patterns or as a list in the network's order; others have `density`.
        scope: weights compete within their layer, or all of them with each other.
        exclude: layers to leave alone, as paths or shell patterns.
    """

    after_training = True  # whether the scores can be had without training
    ends = "pruning.at"  # the setting that says when the last event is

    def __init__(
        self,
        density: float = 0.1,
        densities: Mapping[str, float] | Sequence[float] | None = None,
        scope: Scope = "layer",
        exclude: Iterable[str] = (),
    ) -> None:
        check_density("pruning.density", density)
        if scope not in get_args(Scope):
            raise SettingsError(f"pruning.scope={scope}: choose layer or global")
        if densities is not None and scope == "global":
            raise SettingsError("pruning.densities: are of layers, but pruning.scope=global has one for all")
        for value in densities.values() if isinstance(densities, Mapping) else densities or ():
            check_density("pruning.densities", value)
        self.density, self.densities, self.scope, self.exclude = density, densities, scope, list(exclude)
        self.pruned_at: list[int] = []  # one entry for each event that has happened
        self._events: list[int] = []
        self._kept: dict[str, Tensor] = {}
        self._step = -1
        self._figures: dict[str, Any] = {}

    # ------------------------------------------------------------------------------------------- what a subclass says
    @abstractmethod
    def events(self, trainer: Trainer) -> list[int]:
        """The steps at which to prune, in order."""

    def density_at(self, event: int, density: float) -> float:
        """What is kept after an event of a layer (or of all) whose final density is given."""
        return density

    def scores(self, network: nn.Module) -> dict[str, Tensor]:
        """What is kept are the weights with the largest scores; by default magnitudes."""
        return {name: masked_weight(network.get_submodule(name)).abs() for name in masks_of(network)}

    def pruned(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After each event, with `pruned_at` brought up to date."""

    # ----------------------------------------------------------------------------------------------------- a technique
    def prepare(self, network: nn.Module) -> None:
        layers = list(prunable(network, self.exclude))
        if not layers:
            raise SettingsError(f"pruning: {type(network).__name__} has no linear or convolutional layer to prune")
        self._densities(layers)
        self.add_masks(network)

    def add_masks(self, network: nn.Module) -> None:
        add_masks(network, self.exclude)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # in a user's own Trainer nobody else calls it
            self.prepare(network_of(pl_module))

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        if not self.pruned_at:
            if not self.after_training:
                raise RunError(f"pruning: {type(self).__name__} scores weights in training, and there was none")
            self.prepare(network)
            self.prune(network, None)
        for name, mask in masks_of(network).items():
            if name in self._kept:  # an average of weights may hold the mask of its last update
                mask.mask &= self._kept[name].to(mask.mask.device)
        self._figures = self._count(network)
        remove_masks(network)
        return network

    def figures(self) -> dict[str, Any]:
        return self._figures

    def state_dict(self) -> dict[str, Any]:
        return {"pruned_at": list(self.pruned_at)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pruned_at = list(state_dict["pruned_at"])

    # --------------------------------------------------------------------------------------------------------- training
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(network_of(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._events = self.events(trainer)
        total = trainer.estimated_stepping_batches
        if self._events and self._events[-1] > total:
            raise SettingsError(f"{self.ends}: is step {self._events[-1]}, but the run has {int(total)} steps")
        self._step = trainer.global_step
        self._act(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._step:  # not an accumulating micro-batch
            self._step = trainer.global_step
            self._act(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("pruning/sparsity", 1 - self._total_density(network_of(pl_module)), sync_dist=True, batch_size=1)

    def _act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        while len(self.pruned_at) < len(self._events) and self._events[len(self.pruned_at)] <= trainer.global_step:
            self.prune(network_of(pl_module), len(self.pruned_at))
            self.pruned_at.append(trainer.global_step)
            self._keep(network_of(pl_module))
            self.pruned(trainer, pl_module)

    @torch.no_grad()
    def prune(self, network: nn.Module, event: int | None) -> None:
        """To the density of an event; None: to the final one."""
        masks, scores = masks_of(network), self.scores(network)
        finals = self._densities(list(masks))
        if event is not None:
            finals = {name: self.density_at(event, density) for name, density in finals.items()}
        # Below every score of a kept weight, so that nothing comes back.
        ranked = {name: torch.where(mask.mask, scores[name].to(mask.mask.device), -1) for name, mask in masks.items()}
        if self.scope == "layer":
            kept = {name: largest(rank, count_of(rank.numel(), finals[name])) for name, rank in ranked.items()}
        else:
            together = torch.cat([rank.flatten().cpu() for rank in ranked.values()])
            chosen = largest(together, count_of(together.numel(), next(iter(finals.values()))))
            parts = chosen.split([rank.numel() for rank in ranked.values()])
            kept = {name: part.view(masks[name].mask.shape) for (name, part) in zip(ranked, parts, strict=True)}
        for name, mask in masks.items():
            set_mask(network.get_submodule(name), mask, kept[name].to(mask.mask.device) & mask.mask)

    def _densities(self, layers: list[str]) -> dict[str, float]:
        return per_layer(self.densities, layers, self.density, "pruning.densities")

    def _keep(self, network: nn.Module) -> None:
        self._kept = {name: mask.mask.clone() for name, mask in masks_of(network).items()}

    # --------------------------------------------------------------------------------------------- counted from weights
    def _weights(self, network: nn.Module) -> dict[str, Tensor]:
        names = masks_of(network) or prunable(network, self.exclude)
        return {name: weight_of(network.get_submodule(name)).detach() for name in names}

    def _total_density(self, network: nn.Module) -> float:
        weights = self._weights(network).values()
        return sum(int(torch.count_nonzero(weight)) for weight in weights) / sum(weight.numel() for weight in weights)

    def _count(self, network: nn.Module) -> dict[str, Any]:
        return {
            "density": self._total_density(network),
            "layers": {
                name: int(torch.count_nonzero(weight)) / weight.numel()
                for name, weight in self._weights(network).items()
            },
            "prunings": max(1, len(self.pruned_at)),
            "first_pruned_at": self.pruned_at[0] if self.pruned_at else None,  # None: after training
            "last_pruned_at": self.pruned_at[-1] if self.pruned_at else None,
            "status": "masked",
        }


@torch.no_grad()
def set_mask(layer: nn.Module, mask: Mask, kept: Tensor) -> None:
    """The values beneath what is pruned become zero as well, so that nobody takes them for weights."""
    mask.mask.copy_(kept)
    weight = original(layer)
    assert weight is not None
    weight.mul_(kept)


def check_density(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1 or math.isnan(value):
        raise SettingsError(f"{key}={value}: a density is the share that is kept, above 0 and at most 1")
