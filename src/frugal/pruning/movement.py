"""`pruning=movement`: in fine-tuning, the weights stay that move away from zero, not the large ones (Sanh et al. 2020,
"Movement Pruning: Adaptive Sparsity by Fine-Tuning")."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from frugal.errors import SettingsError
from frugal.pruning.base import Densities, MaskPruning, Scope, network_of, set_mask
from frugal.pruning.masks import Mask, add_mask, count_of, largest, masks_of, original, prunable
from frugal.steps import Steps

Method = Literal["top_v", "soft"]


class ScoredMask(Mask):
    """A mask with a score for each weight, whose gradient takes the mask for the score itself: dL/dS = dL/dW W."""

    scores: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__(like)
        self.register_buffer("scores", torch.zeros_like(like))

    def forward(self, weight: Tensor) -> Tensor:
        return _StraightThrough.apply(weight, self.scores, self.mask)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        context.save_for_backward(weight, mask)
        return torch.where(mask, weight, 0)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, mask = context.saved_tensors
        (gradient,) = gradients
        return torch.where(mask, gradient, 0), gradient * weight, None


class MovementPruning(MaskPruning):
    """Scores start at 0 and are learnt by Adam beside the network; a weight may come back until `end`, then the mask is
    fixed.

    `top_v` keeps the v largest scores; v falls from all to `density` by the cubic schedule of Zhu and Gupta. `soft`
    keeps scores S with sigmoid(S) above a threshold that rises likewise from 0 to `threshold`, and adds `penalty`
    times the mean sigmoid(S) to the loss, so that the density is found and not set.

    Args (others: `MaskPruning`):
        begin, end, every: when the mask is chosen anew, as in `GradualPruning`; the paper's `every` is 1.
        score_lr: learning rate of the scores; the paper's 0.01.
        threshold: of `soft`.
        penalty: of `soft`; the more, the fewer weights stay.
    """

    after_training = False
    ends = "pruning.end"

    def __init__(
        self,
        density: float = 0.1,
        densities: Densities | None = None,
        scope: Scope = "layer",
        method: Method = "top_v",
        begin: int | str = "10%",
        end: int | str = "70%",
        every: int | str = 10,
        score_lr: float = 0.01,
        threshold: float = 0.1,
        penalty: float = 100.0,
        exclude: list[str] | tuple[str, ...] = (),
    ) -> None:
        super().__init__(density, densities, scope, exclude)
        if method not in get_args(Method):
            raise SettingsError(f"pruning.method={method}: choose top_v or soft")
        if not 0 < threshold < 0.5:
            raise SettingsError(f"pruning.threshold={threshold}: above 0, and below 0.5 where all scores begin")
        if not score_lr > 0 or penalty < 0:
            raise SettingsError(f"pruning.score_lr={score_lr} needs to be above 0, pruning.penalty={penalty} 0 or more")
        self.method, self.threshold, self.penalty, self.score_lr = method, threshold, penalty, score_lr
        self.begin, self.end = Steps.parse(begin, "pruning.begin"), Steps.parse(end, "pruning.end")
        self.every = Steps.parse(every, "pruning.every")
        self._adam: torch.optim.Adam | None = None
        self._adam_state: dict[str, Any] | None = None

    def add_masks(self, network: nn.Module) -> None:
        there = masks_of(network)
        for name, layer in prunable(network, self.exclude).items():
            if name not in there:
                add_mask(layer, ScoredMask(original(layer)))  # type: ignore[arg-type]

    def events(self, trainer: Trainer) -> list[int]:
        begin, end = self.begin.resolve(trainer), self.end.resolve(trainer)
        if end <= begin:
            raise SettingsError(f"pruning.end={self.end}: is step {end}, but pruning.begin={self.begin} is {begin}")
        return [*range(begin, end, max(1, self.every.resolve(trainer))), end]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        masks = _scored(network_of(pl_module))
        for mask in masks:  # a buffer: Frugal's own optimizer, not the network's, moves it
            mask.scores = mask.scores.detach().requires_grad_()
        self._adam = torch.optim.Adam([mask.scores for mask in masks], lr=self.score_lr)
        if self._adam_state is not None:
            self._adam.load_state_dict(self._adam_state)
        super().on_train_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._adam is not None:
            self._adam_state = self._adam.state_dict()
            self._adam = None
        for mask in _scored(network_of(pl_module)):
            mask.scores = mask.scores.detach()

    def _act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        masks = _scored(network_of(pl_module))
        if self._adam is not None and masks[0].scores.grad is not None:
            if len(self.pruned_at) < len(self._events):
                if self.method == "soft":
                    self._add_penalty(masks)
                self._adam.step()
            self._adam.zero_grad()
        super()._act(trainer, pl_module)

    def _add_penalty(self, masks: list[ScoredMask]) -> None:
        total = sum(mask.scores.numel() for mask in masks)
        for mask in masks:
            live = mask.scores.detach().sigmoid()
            mask.scores.grad += self.penalty / total * live * (1 - live)  # type: ignore[operator]

    @torch.no_grad()
    def prune(self, network: nn.Module, event: int | None) -> None:
        assert event is not None
        left = (1 - event / max(1, len(self._events) - 1)) ** 3
        masks = {name: mask for name, mask in masks_of(network).items() if isinstance(mask, ScoredMask)}
        scores = {name: mask.scores.detach() for name, mask in masks.items()}
        if self.method == "soft":
            kept = {name: score.sigmoid() > self.threshold * (1 - left) for name, score in scores.items()}
        elif self.scope == "global":
            together = torch.cat([score.flatten().cpu() for score in scores.values()])
            count = count_of(together.numel(), self.density + (1 - self.density) * left)
            parts = largest(together, count).split([score.numel() for score in scores.values()])
            kept = {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}
        else:
            finals = self._densities(list(masks))
            kept = {
                name: largest(score, count_of(score.numel(), finals[name] + (1 - finals[name]) * left))
                for name, score in scores.items()
            }
        last = event == len(self._events) - 1
        for name, mask in masks.items():
            if last:
                set_mask(network.get_submodule(name), mask, kept[name].to(mask.mask.device))
            else:  # the value beneath stays: the weight may come back
                mask.mask.copy_(kept[name])

    def _count(self, network: nn.Module) -> dict[str, Any]:
        return super()._count(network) | {"method": self.method}

    def state_dict(self) -> dict[str, Any]:
        adam = self._adam.state_dict() if self._adam is not None else self._adam_state
        return super().state_dict() | {"adam": adam}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._adam_state = state_dict["adam"]


def _scored(network: nn.Module) -> list[ScoredMask]:
    return [module for module in network.modules() if isinstance(module, ScoredMask)]
