"""`strategy=tensor_parallel`: each rank computes a part of every wide layer, on the same batch (Shoeybi et al. 2019).

A network says in `parallel_plan(ranks)` what becomes of which of its modules:

    columns     a Linear whose outputs are shared out: each rank has some of its units
    columns*3   three such matrices one upon the other, as queries, keys and values in one
    rows        a Linear that takes what `columns` left, and sums its outputs over ranks
    summed      a module with the same weights on all ranks, for a rank's own units only: its gradients are summed

What the plan leaves out is whole on every rank and computed by each alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.func import functional_call

from frugal.errors import RefusedError, SettingsError
from frugal.strategy.sharded import Sharded
from frugal.strategy.shards import rows_of_ranks


class TensorParallel(Sharded):
    """All ranks share each layer out and see the same batches.

    Args:
        checkpoint: `sharded` or `full`, see `Sharded`.
        activation_checkpointing: forget the activations of each block and compute them again.
        timeout_s: seconds after which a rank that waits for the others gives up.
    """

    option = "tensor_parallel"

    def __init__(
        self,
        checkpoint: Literal["sharded", "full"] = "sharded",
        activation_checkpointing: bool = False,
        timeout_s: float = 1800.0,
    ) -> None:
        super().__init__(1, "auto", checkpoint)

    def share_out(self, network: nn.Module, mesh: DeviceMesh) -> None:
        self.stacked = parallelize(network, mesh["tensor_parallel"], self.option, self.prefix_of(network))

    def prefix_of(self, network: nn.Module) -> str:
        """What the LightningModule puts before the names of the network's parameters."""
        return "" if network is self.lightning_module else "network."


def parallelize(network: nn.Module, mesh: DeviceMesh, option: str, prefix: str = "") -> dict[str, tuple[int, int]]:
    """Share the network's layers out as its plan says.

    Returns of each parameter that is several matrices how many, and over how many ranks, by name. Raises RefusedError
    where the network has no plan, SettingsError where its sizes do not divide by the ranks.
    """
    plan_of: Callable[[int], dict[str, str]] | None = getattr(network, "parallel_plan", None)
    if plan_of is None:
        raise RefusedError(
            f"strategy={option}: {type(network).__name__} does not say how its layers are shared out (it has no "
            "parallel_plan, see docs/strategies.md); choose strategy=fsdp or ddp"
        )
    ranks = mesh.size()
    stacked: dict[str, tuple[int, int]] = {}
    for name, style in plan_of(ranks).items():
        module = network.get_submodule(name)
        if style == "summed":
            _sum_gradients(module, mesh.get_group())
            continue
        if not isinstance(module, nn.Linear):
            raise RefusedError(f"strategy={option}: {name} is a {type(module).__name__}, and only a Linear has {style}")
        parts = int(style.partition("*")[2] or 1)
        size = (module.in_features if style == "rows" else module.out_features) // parts
        if size % ranks:
            raise SettingsError(f"strategy={option}: the {size} units of {name} do not divide by {ranks} ranks")
        if parts > 1:
            _reorder(module, parts, ranks)
            stacked |= {f"{prefix}{name}.{key}": (parts, ranks) for key, _ in module.named_parameters()}
        parallelize_module(module, mesh, RowwiseParallel() if style == "rows" else ColwiseParallel())
    return stacked


@torch.no_grad()
def _reorder(module: nn.Linear, parts: int, ranks: int) -> None:
    """Put what a rank gets of each part together, so that a plain cut gives each its own."""
    order = rows_of_ranks(module.out_features, parts, ranks)
    for parameter in module.parameters():
        parameter.copy_(parameter[order])


def _sum_gradients(module: nn.Module, group: dist.ProcessGroup) -> None:
    forward = module.forward

    def summed(*inputs: Any) -> Any:
        # through the parameters as they are now: FSDP puts others in their place
        own = {name: _Summed.apply(parameter, group) for name, parameter in module.named_parameters(recurse=False)}
        module.forward = forward
        try:
            return functional_call(module, own, inputs)
        finally:
            module.forward = summed

    module.forward = summed


class _Summed(torch.autograd.Function):
    """The same tensor; its gradient is the sum of all ranks'."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
