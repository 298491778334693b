"""`pruning=lottery`: train, prune the smallest weights, set the others back, train again (Frankle and
Carbin 2019, "The Lottery Ticket Hypothesis"; rewinding to a later step as Frankle et al. 2020)."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from frugal.errors import SettingsError
from frugal.optim.schedules import RunSchedule
from frugal.pruning.base import Densities, MaskPruning, Scope, network_of, set_mask
from frugal.pruning.masks import Mask, masks_of
from frugal.steps import Steps

Control = Literal["ticket", "reinitialized", "random_mask"]


class LotteryPruning(MaskPruning):
    """One run is `rounds` + 1 trainings of equal length. After each but the last, density^(k/rounds) is kept, all
    weights, biases and buffers are set back, the optimizer forgets, and the learning rate begins anew.

    Frankle and Carbin prune 20 % a round and the output layer by half that: `density` 0.8^rounds, and 0.9^rounds for
    the output layer in `densities`.

    Args (others: `MaskPruning`):
        rounds: how often is pruned.
        rewind: the step of the first training that weights are set back to, from 0 to the end of that training.
        control: what the last training starts from, to compare with. `ticket`: the weights of `rewind` where the
            largest were found. `reinitialized`: other first values at the same places, a layer's own in another order,
            which are draws as good as the first. `random_mask`: the weights of `rewind`, each layer's places by lot.
        seed: of the controls' lots.
    """

    after_training = False

    def __init__(
        self,
        density: float = 0.1,
        densities: Densities | None = None,
        scope: Scope = "layer",
        rounds: int = 3,
        rewind: int | str = 0,
        control: Control = "ticket",
        exclude: list[str] | tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(density, densities, scope, exclude)
        if rounds < 1:
            raise SettingsError(f"pruning.rounds={rounds}: needs to be 1 or more")
        if control not in get_args(Control):
            raise SettingsError(f"pruning.control={control}: choose {', '.join(get_args(Control))}")
        self.rounds, self.control, self.seed = rounds, control, seed
        self.rewind = Steps.parse(rewind, "pruning.rewind")
        if control == "reinitialized" and self.rewind.amount > 0:
            raise SettingsError("pruning.control=reinitialized: has no trained values; set pruning.rewind=0")
        self._rewind_step = 0
        self._weights_then: dict[str, Tensor] | None = None
        # Of the first step: optimizers' settings by group, schedules' states.
        self._first: dict[str, list[Any]] = {}

    def events(self, trainer: Trainer) -> list[int]:
        total = trainer.estimated_stepping_batches
        if total < self.rounds + 1 or total == float("inf"):
            raise SettingsError(f"pruning.rounds={self.rounds}: {total} steps cannot be parted into {self.rounds + 1}")
        length = int(total) // (self.rounds + 1)
        self._rewind_step = self.rewind.resolve(trainer)
        if self._rewind_step >= length:
            raise SettingsError(
                f"pruning.rewind={self.rewind}: is step {self._rewind_step}, but the first training has {length} steps"
            )
        return [k * length for k in range(1, self.rounds + 1)]

    def density_at(self, event: int, density: float) -> float:
        return density ** ((event + 1) / self.rounds)

    def rewinds_until(self, trainer: Trainer) -> int:
        """The step at which weights are set back for the last time."""
        return self.events(trainer)[-1]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        length = self.events(trainer)[0]
        _shorten_schedules(trainer, pl_module, length)
        if not self._first:
            self._first = {
                "groups": [
                    [{key: value for key, value in group.items() if key != "params"} for group in o.param_groups]
                    for o in trainer.optimizers
                ],
                "schedules": [copy.deepcopy(c.scheduler.state_dict()) for c in trainer.lr_scheduler_configs],
            }
        super().on_train_start(trainer, pl_module)

    def _act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._weights_then is None and trainer.global_step == self._rewind_step:
            network = network_of(pl_module)
            masks = {f"{name}.mask" for name, module in network.named_modules() if isinstance(module, Mask)}
            self._weights_then = {n: value.clone() for n, value in network.state_dict().items() if n not in masks}
        super()._act(trainer, pl_module)

    @torch.no_grad()
    def pruned(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network, last = network_of(pl_module), len(self.pruned_at) == self.rounds
        masks, then = masks_of(network), self._weights_then
        assert then is not None
        draw = torch.Generator().manual_seed(self.seed)
        if last and self.control == "reinitialized":
            weights = dict(network.named_parameters())
            then = {name: _shuffled(value, draw) if name in weights else value for name, value in then.items()}
        for name, value in network.state_dict().items():
            if name in then:
                value.copy_(then[name])
        for name, mask in masks.items():
            kept = mask.mask
            if last and self.control == "random_mask":
                kept = _shuffled(kept, draw)
            set_mask(network.get_submodule(name), mask, kept.clone())
        self._keep(network)
        for optimizer, groups in zip(trainer.optimizers, self._first["groups"], strict=True):
            optimizer.state.clear()
            for group, first in zip(optimizer.param_groups, groups, strict=True):
                group.update(copy.deepcopy(first))
        for config, state in zip(trainer.lr_scheduler_configs, self._first["schedules"], strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(state))

    def _count(self, network: nn.Module) -> dict[str, Any]:
        return super()._count(network) | {"control": self.control, "rewound_to": self._rewind_step}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "weights_then": self._weights_then,
            "first": self._first,
            "rewind_step": self._rewind_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._weights_then, self._first = state_dict["weights_then"], state_dict["first"]
        self._rewind_step = state_dict["rewind_step"]


def _shuffled(values: Tensor, draw: torch.Generator) -> Tensor:
    order = torch.randperm(values.numel(), generator=draw).to(values.device)
    return values.flatten()[order].view(values.shape)


def _shorten_schedules(trainer: Trainer, pl_module: LightningModule, length: int) -> None:
    """Frugal's schedules know the length of the run: they are made anew for one of a training's length, at the place
    where they stand. Others are restarted as they are."""
    make = getattr(pl_module, "_schedule", None)
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if make is None or not isinstance(schedule, RunSchedule):
            continue
        for group in schedule.optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        config.scheduler = make(schedule.optimizer, length)
        config.scheduler.load_state_dict(schedule.state_dict())
