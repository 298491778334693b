"""`distillation=hidden`: what layers of the teacher give, matched by layers of the student through a learnt projection.

Romero et al. 2015, "FitNets: hints for thin deep nets".
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from frugal.distillation.base import IGNORED, Distillation
from frugal.errors import SettingsError
from frugal.pruning.base import network_of

Distance = Literal["mse", "cosine"]
LAST = "the last linear layer's input"


class Hidden(Distillation):
    """loss + weight * mean distance between the projected features of the student and the teacher's.

    Features (B, D), (B, T, D) and (B, C, H, W) are matched place by place where both have the same places; otherwise
    all of a sample is one feature. The projections are linear, trained by the run's optimizer, and gone afterwards.

    Args:
        layers: modules of the student and the teacher's that they match, as {layers.4: layers.6}. None: what goes into
            the last linear layer of each.
        weight: of the teacher's part, 0 or more.
        distance: "mse", the mean squared difference, or "cosine", 1 - cosine.
        seed: of the projections' first values.
    """

    per_sample = ("classification", "regression")  # of texts features have other lengths

    def __init__(
        self,
        teacher: str | None = None,
        teacher_model: str | None = None,
        teacher_epochs: int = 5,
        teacher_overrides: list[str] | tuple[str, ...] = (),
        cache: bool = False,
        layers: dict[str, str] | None = None,
        weight: float = 1.0,
        distance: Distance = "mse",
        seed: int = 0,
    ) -> None:
        super().__init__(teacher, teacher_model, teacher_epochs, teacher_overrides, cache)
        if not (weight >= 0 and math.isfinite(weight)):
            raise SettingsError(f"distillation.weight={weight}: is 0 or above")
        self.pairs = dict(layers or {LAST: LAST})
        self.weight, self.distance, self.seed = weight, distance, seed
        self.projections: list[Projection] = []
        self._own: list[Tap] = []
        self._its: list[Tap] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The projections become the LightningModule's, so that its optimizer trains them."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        assert self.teacher is not None
        student, teacher = network_of(pl_module), self.teacher.network
        x = _example(trainer, pl_module)
        own = _features(student, list(self.pairs), x, "student")
        its = _features(teacher, list(self.pairs.values()), x, "teacher")
        draw = torch.Generator().manual_seed(self.seed)
        self.projections = []
        for student_features, teacher_features in zip(own, its, strict=True):
            one, other = aligned(student_features, teacher_features)
            self.projections.append(Projection(one.shape[-1], other.shape[-1], draw))
        pl_module.add_module("projections", nn.ModuleList(self.projections))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.teacher is not None
        self._own = [Tap(network_of(pl_module), name, "student") for name in self.pairs]
        self._its = [Tap(self.teacher.network, name, "teacher") for name in self.pairs.values()]
        super().on_train_start(trainer, pl_module)

    def ask(self, x: Tensor) -> list[Tensor]:
        assert self.teacher is not None
        self.teacher(x)
        return [tap.take() for tap in self._its]

    def loss(self, criterion: Any, output: Tensor, target: Tensor, said: list[Tensor]) -> Tensor:
        total = criterion(output, target)
        for projection, own, its in zip(self.projections, self._own, said, strict=True):
            one, other = aligned(own.take(), its)
            total = total + self.weight * distance(projection(one), other.to(one.dtype), target, self.distance)
        return total

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for tap in (*self._own, *self._its):
            tap.remove()
        self._own, self._its = [], []
        super().on_train_end(trainer, pl_module)

    def figures(self) -> dict[str, Any]:
        return {
            "layers": self.pairs,
            "weight": self.weight,
            "projection_parameters": sum(projection.weight.numel() for projection in self.projections),
            **super().figures(),
        }

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "projections": [p.weight.detach().clone() for p in self.projections]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning calls it after `setup`."""
        super().load_state_dict(state_dict)
        with torch.no_grad():
            for projection, weight in zip(self.projections, state_dict["projections"], strict=True):
                projection.weight.copy_(weight)


class Projection(nn.Linear):
    """A linear map without a bias that is in no state: its values are the callback's, so that what a checkpoint holds
    of the module is what the module has without a teacher."""

    def __init__(self, inputs: int, outputs: int, draw: torch.Generator) -> None:
        super().__init__(inputs, outputs, bias=False)
        with torch.no_grad():
            self.weight.uniform_(-1, 1, generator=draw).div_(math.sqrt(inputs))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, *args: Any) -> None:
        pass


class Tap:
    """Keeps what a module gave last; of the last linear layer, what it was given."""

    def __init__(self, network: nn.Module, name: str, whose: str) -> None:
        self._found: Tensor | None = None
        if name == LAST:
            linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
            if not linear:
                raise SettingsError(f"distillation.layers: the {whose} has no linear layer; name modules of both")
            self.remove = linear[-1].register_forward_pre_hook(lambda module, args: self._keep(args[0])).remove
        else:
            modules = dict(network.named_modules())
            if name not in modules:
                shown = ", ".join(key for key in modules if key)
                raise SettingsError(f"distillation.layers: the {whose} has no module {name}; it has {shown}")
            self.remove = modules[name].register_forward_hook(lambda module, args, out: self._keep(out)).remove

    def _keep(self, found: Any) -> None:
        self._found = found

    def take(self) -> Tensor:
        found, self._found = self._found, None
        if not isinstance(found, Tensor):
            raise SettingsError(f"distillation.layers: a module gave a {type(found).__name__}, not a tensor")
        return found


def aligned(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Features with their places before them, (B, ..., D), the same places in both; else (B, D)."""
    one, other = (x.movedim(1, -1) if x.ndim > 3 else x for x in (one, other))  # channels of images last
    if one.shape[:-1] == other.shape[:-1]:
        return one, other
    return one.flatten(1), other.flatten(1)


def distance(one: Tensor, other: Tensor, target: Tensor, kind: Distance) -> Tensor:
    """Mean over places; those whose target is ignored count nothing, where there is a target for each place."""
    if kind == "mse":
        found = (one - other).square().mean(-1)
    else:
        found = 1 - F.cosine_similarity(one, other, dim=-1)
    if found.ndim > 1 and found.numel() == target.numel():
        found = found.flatten() * (target.flatten() != IGNORED)
    return found.mean()


def _example(trainer: Trainer, pl_module: LightningModule) -> Tensor:
    """Two samples, from which the features' sizes are taken."""
    data: Any = getattr(trainer, "datamodule", None)
    if data is not None and hasattr(data, "calibration_batches"):
        return next(iter(data.calibration_batches(2)))
    if isinstance(pl_module.example_input_array, Tensor):
        return pl_module.example_input_array
    raise SettingsError("distillation=hidden: needs a sample to size its projections; set `example_input_array`")


@torch.no_grad()
def _features(network: nn.Module, names: list[str], x: Tensor, whose: str) -> list[Tensor]:
    """What `network` gives at these modules for a sample; its state stays as it is."""
    taps = [Tap(network, name, whose) for name in names]
    training = network.training
    example = next(network.parameters())
    try:
        network.eval()(x.to(example.device, example.dtype if x.is_floating_point() else x.dtype))
        return [tap.take() for tap in taps]
    finally:
        network.train(training)
        for tap in taps:
            tap.remove()
