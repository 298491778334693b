"""`pruning=structured`: whole neurons, channels and attention heads go, and the network really shrinks.

Which weights go together torch-pruning finds out (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"). In
training they are masked, so that a checkpoint has the shapes of the network as built; `finalize` cuts them out.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from frugal.errors import RefusedError, RunError, SettingsError
from frugal.measure.flops import count_flops
from frugal.models.lora import LowRankUpdate
from frugal.pruning.base import Densities, MaskPruning, check_density, network_of, set_mask, training_batches
from frugal.pruning.masks import (
    LAYERS,
    Mask,
    add_masks,
    bake,
    count_of,
    largest,
    masks_of,
    per_layer,
    prunable,
    weight_of,
)
from frugal.steps import Steps

VECTOR = 8  # units: half of a CPU's widest vector of floats
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Removed = dict[str, list[int]]  # by unit group: which of its units


@dataclass
class Units:
    """Neurons or channels of a layer, or the heads of an attention, with all weights that serve each of them alone.

    `rows[layer]` and `columns[layer]`, (units, k), are places on the first and second axis of the layer's weight.
    """

    name: str
    count: int
    rows: dict[str, Tensor]
    columns: dict[str, Tensor]
    heads: bool = False


class StructuredPruning(MaskPruning):
    """Keeps in each layer the units whose weights, before and after them, have the largest norm. Only units go without
    which the network computes what it computes with them masked: not those of the output, nor the width of a residual
    stream under LayerNorm. What is left alone is listed.

    `network.frugal_shapes` says afterwards what has another shape than it was built with; see `reshape`.

    Args:
        density: share of each layer's units that is kept.
        densities: by layer, with patterns or as a list in the network's order; others have `density`.
        heads: share of each attention's heads that is kept.
        macs: share of the multiply-adds of one pass that may be left. Then `density` is the largest that keeps to it,
            the same for all layers, and `heads` stays.
        round_to: of neurons and channels a multiple of this is kept. None: with `macs`, where time is what counts, 8 in
            layers of 16 and more, if that leaves few enough; else 1. Kernels for a CPU's vectors are slow in between.
        at: when units are chosen and masked, as a step, a share of the run ("30%") or epochs ("2ep").
        exclude: layers to leave alone, as paths or shell patterns.
    """

    def __init__(
        self,
        density: float = 0.5,
        densities: Densities | None = None,
        heads: float = 1.0,
        macs: float | None = None,
        round_to: int | None = None,
        at: int | str = "50%",
        exclude: list[str] | tuple[str, ...] = (),
    ) -> None:
        super().__init__(density, densities, exclude=exclude)
        check_density("pruning.heads", heads)
        if macs is not None:
            check_density("pruning.macs", macs)
            if densities is not None:
                raise SettingsError("pruning.macs: chooses the densities itself; leave pruning.densities=null")
        if round_to is not None and round_to < 1:
            raise SettingsError(f"pruning.round_to={round_to}: the least value is 1")
        _torch_pruning()
        self.round_to = round_to
        self.heads, self.macs, self.at = heads, macs, Steps.parse(at, "pruning.at")
        self.removed: Removed = {}
        self._example: Tensor | None = None

    def add_masks(self, network: nn.Module) -> None:
        add_masks(network)  # of excluded layers too: inputs of theirs may go

    def events(self, trainer: Trainer) -> list[int]:
        return [self.at.resolve(trainer)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for module in network_of(pl_module).modules():
            if isinstance(module, parametrize.ParametrizationList) and not _may_be_cut(module):
                raise RefusedError(
                    "pruning=structured cannot be combined with quantization in training by groups of inputs, some of"
                    " which go: set quantization.group=null, or quantize after training"
                )
        if not self.pruned_at and self.at.resolve(trainer) == 0:
            self._example = next(training_batches(trainer, pl_module, 2))[0]
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.pruned_at:
            self._example = batch[0][:2]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @torch.no_grad()
    def prune(self, network: nn.Module, event: int | None) -> None:
        assert self._example is not None
        plain = _plain(network)
        example, self._example = _full(self._example), None
        units = find_units(plain, example, self.exclude)
        if not units:
            raise SettingsError(f"pruning=structured: {type(plain).__name__} has no units that could go")
        self.removed = self._choose(plain, example, units)
        for name, mask in masks_of(network).items():
            kept = torch.ones(mask.mask.shape, dtype=torch.bool)
            for group in units:
                gone = self.removed[group.name]
                if name in group.rows:
                    kept[group.rows[name][gone].flatten()] = False
                if name in group.columns:
                    kept[:, group.columns[name][gone].flatten()] = False
            set_mask(network.get_submodule(name), mask, kept.to(mask.mask.device) & mask.mask)

    def _choose(self, plain: nn.Module, example: Tensor, units: list[Units]) -> Removed:
        names = [group.name for group in units if not group.heads]
        scores = {group.name: importance(plain, group) for group in units}

        def removed(densities: Mapping[str, float], multiple: int | None = self.round_to) -> Removed:
            chosen = {}
            for group in units:
                if group.heads:
                    number = count_of(group.count, self.heads)
                else:
                    number = rounded(count_of(group.count, densities[group.name]), multiple or 1, group.count)
                kept = largest(scores[group.name], number)
                chosen[group.name] = (~kept).nonzero().flatten().tolist()
            return chosen

        if self.macs is None:
            return removed(per_layer(self.densities, names, self.density, "pruning.densities"))
        before = macs(plain, example)
        for multiple in (VECTOR, 1) if self.round_to is None else (self.round_to,):
            low, high = 0.0, 1.0
            for _ in range(10):  # to a thousandth
                middle = (low + high) / 2
                smaller = cut(copy.deepcopy(plain), units, removed(dict.fromkeys(names, middle), multiple))
                if macs(smaller, example) <= self.macs * before:
                    low = middle
                else:
                    high = middle
            if low > 0.0:
                return removed(dict.fromkeys(names, low), multiple)
        least = "one unit" if self.round_to in (None, 1) else f"{self.round_to} units (pruning.round_to)"
        raise RunError(f"pruning.macs={self.macs}: with {least} in each layer more is left; lower pruning.heads too")

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        if self._figures and getattr(network, "frugal_shapes", None):
            return network  # it was cut before
        example = _full(next(iter(batches))[:2])
        if not self.pruned_at:
            self.prepare(network)
            self._example = example
            self.prune(network, None)
        plain = _plain(network)
        units = [group for group in find_units(plain, example, self.exclude) if group.name in self.removed]
        before = macs(plain, example)
        bake(network)
        parameters = sum(p.numel() for p in network.parameters())
        shapes = {name: list(p.shape) for name, p in network.named_parameters()}
        device = next(network.parameters()).device
        network = cut(network, units, self.removed).to(device)
        network.frugal_shapes = changed(network, shapes, units)  # type: ignore[assignment]
        touched = {name for group in units for name in group.rows}
        self._figures = {
            "units": {group.name: [group.count - len(self.removed[group.name]), group.count] for group in units},
            "left_alone": [name for name in prunable(network) if name not in touched],
            "parameters": [sum(p.numel() for p in network.parameters()), parameters],
            "macs": [macs(_plain(network), example), before],
            "prunings": 1,
            "first_pruned_at": self.pruned_at[0] if self.pruned_at else None,
            "status": "converted",
        }
        return network

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"removed": self.removed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.removed = state_dict["removed"]


# ---------------------------------------------------------------------------------------------------------- which units
def find_units(network: nn.Module, example: Tensor, exclude: Iterable[str] = ()) -> list[Units]:
    """All units of a plain network on the CPU that can go, in the network's order. `example` is an input."""
    layers = prunable(network)
    excluded = layers.keys() - prunable(network, exclude).keys()  # their own units stay; their inputs may go
    found: list[Units] = []
    taken: set[str] = set()
    candidates = [*_attention(network, layers), *_coupled(network, example, layers)]
    order = {name: i for i, name in enumerate(layers)}
    for group in sorted(candidates, key=lambda group: order[next(iter(group.rows))]):
        if group.count > 1 and not (taken | excluded) & set(group.rows) and _can_go(network, example, group):
            taken |= set(group.rows)
            found.append(group)
    return found


def _coupled(network: nn.Module, example: Tensor, layers: dict[str, nn.Module]) -> Iterator[Units]:
    """torch-pruning's groups: for each unit of a root layer the places that depend on it, in all layers and norms."""
    tp = _torch_pruning()
    clone = copy.deepcopy(network).train(False).requires_grad_(True)
    of_clone = {module: name for name, module in clone.named_modules()}
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = tp.DependencyGraph().build_dependency(clone, example_inputs=example)
        except Exception as error:  # whatever it stumbles over in code that it does not know
            kind = type(network).__name__
            raise RunError(f"pruning=structured: torch-pruning cannot follow {kind}: {error}") from error
        seen: set[str] = set()
        for root in layers:
            module = clone.get_submodule(root)
            if root in seen or module not in graph.module2node:
                continue
            prune = graph.get_pruner_of_module(module).prune_out_channels
            count = int(weight_of(module).shape[0])
            whole = graph.get_pruning_group(module, prune, list(range(count)))
            rows: dict[str, Tensor] = {}
            columns: dict[str, Tensor] = {}
            for item in whole:
                name = of_clone.get(item.dep.target.module)
                target = item.dep.target.module
                if name is None or not isinstance(target, nn.Module):
                    continue
                places = torch.tensor(item.idxs)
                if len(places) % count:
                    break
                roots = torch.tensor(item.root_idxs)
                if not torch.equal(roots.bincount(minlength=count), torch.full((count,), len(places) // count)):
                    break
                by_unit = places[roots.argsort(stable=True)].view(count, -1)
                if not graph.is_out_channel_pruning_fn(item.dep.handler):
                    columns[name] = by_unit
                elif isinstance(target, LAYERS + NORMS):
                    rows[name] = by_unit
            else:
                seen |= set(rows)
                if all(name in layers or isinstance(clone.get_submodule(name), NORMS) for name in (*rows, *columns)):
                    yield Units(root, count, rows, columns)


def _attention(network: nn.Module, layers: dict[str, nn.Module]) -> Iterator[Units]:
    """Heads of modules like Frugal's: `heads`, a linear `qkv` with three times (heads, size) rows, a linear `out`."""
    for name, module in network.named_modules():
        path = f"{name}." if name else ""
        heads = getattr(module, "heads", None)
        if not isinstance(heads, int) or not {f"{path}qkv", f"{path}out"} <= layers.keys():
            continue
        width = weight_of(module.get_submodule("out")).shape[1]
        places = torch.arange(width).view(heads, -1)
        rows = torch.cat([places, places + width, places + 2 * width], dim=1)
        yield Units(name, heads, {f"{path}qkv": rows}, {f"{path}out": places}, heads=True)


@torch.no_grad()
def _can_go(network: nn.Module, example: Tensor, group: Units) -> bool:
    """Whether the network without the first unit computes what it computes with that unit masked."""
    if not group.columns:
        return False
    masked = copy.deepcopy(network).eval()
    for name, places in group.columns.items():
        weight_of(masked.get_submodule(name))[:, places[0]] = 0
    for name, places in group.rows.items():
        weight = weight_of(masked.get_submodule(name))
        if weight.ndim > 1:
            weight[places[0]] = 0
    try:
        smaller = cut(copy.deepcopy(network).eval(), [group], {group.name: [0]})
        wanted, got = masked(example), smaller(example)
    except (RuntimeError, IndexError, ValueError):  # another shape than the code around it counts on
        return False
    return wanted.shape == got.shape and torch.allclose(wanted, got, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@torch.no_grad()
def importance(network: nn.Module, group: Units) -> Tensor:
    """L2 norm of each unit's weights in all layers of the group, (units,) float64; norm layers do not count."""
    total = torch.zeros(group.count, dtype=torch.float64)
    for places, axis in ((group.rows, 0), (group.columns, 1)):
        for name, by_unit in places.items():
            weight = weight_of(network.get_submodule(name)).detach().double().cpu()
            if weight.ndim > 1:
                squares = weight.square().movedim(axis, 0).flatten(1).sum(1)
                total += squares[by_unit].sum(1)
    return total.sqrt()


def rounded(number: int, multiple: int, most: int) -> int:
    """The nearest multiple, of two the larger; at least one of them, and no more than `most`. Where `most` is less than
    two of them, the number as it is."""
    if most < 2 * multiple:
        return number
    return min(most, max(1, (number + multiple // 2) // multiple) * multiple)


def macs(network: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one sample's pass."""
    pair = torch.cat([example[:1], example[:1]])  # norms of batches, as in training, want more than one
    return count_flops(network, pair).forward // 4


# -------------------------------------------------------------------------------------------------------------- the cut
@torch.no_grad()
def cut(network: nn.Module, units: list[Units], removed: Mapping[str, list[int]]) -> nn.Module:
    """Take the units out of a plain network, in place: weights, biases, statistics, and the modules' own sizes."""
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for group in units:
        gone = removed.get(group.name, [])
        if not gone:
            continue
        for places, into in ((group.rows, rows), (group.columns, columns)):
            for name, by_unit in places.items():
                into[name] = torch.cat([into.get(name, by_unit.new_empty(0)), by_unit[gone].flatten()])
        if group.heads:
            network.get_submodule(group.name).heads = group.count - len(gone)  # type: ignore[assignment]
    for name in {**rows, **columns}:
        module = network.get_submodule(name)
        for axis, places in ((0, rows), (1, columns)):
            if name not in places:
                continue
            kept = torch.ones(weight_of(module).shape[axis], dtype=torch.bool)
            kept[places[name]] = False
            for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if tensor.ndim > axis and (axis == 0 or key == "weight"):
                    part = tensor.detach().index_select(axis, kept.nonzero().flatten().to(tensor.device))
                    _replace(module, key, part)
        _resize(module)
    return network


def changed(network: nn.Module, before: Mapping[str, list[int]], units: list[Units]) -> dict[str, list[int]]:
    """What has another shape than before: weights by their module's path, and attentions as [heads]."""
    shapes = {}
    for name, parameter in network.named_parameters():
        if name.rpartition(".")[2] == "weight" and list(parameter.shape) != before[name]:
            shapes[name.rpartition(".")[0]] = list(parameter.shape)
    for group in units:
        heads = getattr(network.get_submodule(group.name), "heads", None)
        if group.heads and heads != group.count:
            shapes[group.name] = [int(heads)]  # type: ignore[arg-type]
    return shapes


def reshape(network: nn.Module, shapes: Mapping[str, list[int]]) -> nn.Module:
    """Give a network as built the shapes of `frugal_shapes`, in place, before a state is loaded; its values then mean
    nothing. Raises RunError for a module that it does not have."""
    for name, shape in shapes.items():
        try:
            module = network.get_submodule(name)
        except AttributeError:
            raise RunError(f"frugal_shapes: {type(network).__name__} has no {name}") from None
        if "weight" not in module._parameters:
            module.heads = shape[0]  # type: ignore[assignment]
            continue
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.ndim:
                size = shape if key == "weight" else [shape[0]]
                _replace(module, key, torch.zeros(size, dtype=tensor.dtype, device=tensor.device))
        _resize(module)
    network.frugal_shapes = dict(shapes)  # type: ignore[assignment]
    return network


def _replace(module: nn.Module, key: str, value: Tensor) -> None:
    old = module.get_parameter(key) if key in module._parameters else module.get_buffer(key)
    last = old.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous()
    value = value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    if key in module._parameters:
        module._parameters[key] = nn.Parameter(value, requires_grad=old.requires_grad)
    else:
        module._buffers[key] = value


def _resize(module: nn.Module) -> None:
    """A module's sizes, from its weight."""
    size = weight_of(module).shape
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = size[0], size[1]
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.out_channels, module.in_channels = size[0], size[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = size[0]


def _plain(network: nn.Module) -> nn.Module:
    """A copy on the CPU, weights as they act, for evaluation."""
    plain = copy.deepcopy(network).cpu().eval()
    bake(plain)
    return plain.float()


def _full(example: Tensor) -> Tensor:
    example = example.detach().cpu()
    return example.float() if example.is_floating_point() else example


def _may_be_cut(parametrizations: nn.Module) -> bool:
    return all(
        isinstance(part, Mask | LowRankUpdate) or getattr(part, "outlives_units", False)  # a `Quantizer`
        for part in parametrizations.children()
    )


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ModuleNotFoundError:
        raise SettingsError(
            "pruning=structured: needs torch-pruning, an extra: pip install 'frugal-ml[pruning]'"
        ) from None
    return torch_pruning
