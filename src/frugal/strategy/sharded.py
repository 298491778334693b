"""What `fsdp`, `tensor_parallel` and `fsdp_tp` share: a network whose tensors are shared out over ranks.

On Lightning's ModelParallelStrategy, which makes the mesh of ranks. Checkpoints have the plain format of a single
process (whole, or in pieces, see `shards`), so that any strategy on any number of ranks goes on from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer

from frugal.errors import RefusedError
from frugal.strategy import shards
from frugal.strategy.weighted import Weighted


class Sharded(Weighted, ModelParallelStrategy):
    """A subclass says in `share_out` how. `option` is its name on the command line.

    Args:
        data_ranks, tensor_ranks: the mesh; "auto" is what the other leaves of all ranks.
        checkpoint: `sharded`: each rank writes its own pieces; `full`: rank 0 gathers and writes all. A run ends with
            whole ones either way.
    """

    option = "fsdp"
    shares_out = True  # so that the network in memory is a part

    def __init__(
        self,
        data_ranks: int | Literal["auto"] = "auto",
        tensor_ranks: int | Literal["auto"] = 1,
        checkpoint: Literal["sharded", "full"] = "sharded",
    ) -> None:
        super().__init__(data_ranks, tensor_ranks, save_distributed_checkpoint=False)
        self.checkpoint = checkpoint
        # Of parameters whose rows are several matrices: how many, and over how many ranks; by the module's names.
        self.stacked: dict[str, tuple[int, int]] = {}

    def share_out(self, network: nn.Module, mesh: DeviceMesh) -> None:
        """Replace the network's parameters by shared ones, on `mesh` ("data_parallel", "tensor_parallel")."""
        raise NotImplementedError

    def setup_environment(self) -> None:
        ranks = self.cluster_environment.world_size() if self.cluster_environment is not None else 1
        if self._data_parallel_size == "auto":
            assert self._tensor_parallel_size != "auto"
            self._data_parallel_size = ranks // self._tensor_parallel_size
        elif self._tensor_parallel_size == "auto":
            self._tensor_parallel_size = ranks // self._data_parallel_size
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        """As ModelParallelStrategy's, but the network is shared out here, once it is on its device in its precision,
        and not by a hook of the LightningModule."""
        module = self.lightning_module
        assert self.accelerator is not None and module is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(module)
        self.model_to_device()
        network = getattr(module, "network", module)
        self._refuse(module, network)
        self.share_out(network, self.device_mesh)
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if trainer.state.fn == TrainerFn.FITTING:
            _optimizers_to_device(self.optimizers, self.root_device)

    def _refuse(self, module: nn.Module, network: nn.Module) -> None:
        """Raises RefusedError where a part of the training needs whole weights."""
        for name, part in network.named_modules():
            if is_parametrized(part):
                raise RefusedError(
                    f"strategy={self.option}: the weights of {name} are computed from others (masks, fake quantization "
                    "or adapters), and a rank has only a part of them; choose strategy=ddp"
                )
        inside = {id(parameter) for parameter in network.parameters()}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in inside:
                raise RefusedError(
                    f"strategy={self.option}: {name} is trained beside the network, which alone is shared out; "
                    "choose strategy=ddp"
                )

    # -------------------------------------------------------------------------------------------------- checkpoints
    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return {name: self._leaf(name, value) for name, value in self.lightning_module.state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As the optimizer's own, parameters by number; what is kept of a parameter lies as the parameter does."""
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        names = self._names(plain)
        state = plain.state_dict()
        kept = {
            number: {key: self._leaf(names[number], value) for key, value in of_one.items()}
            for number, of_one in state["state"].items()
        }
        return {**state, "state": kept}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        path = Path(filepath)
        if self.checkpoint == "full":
            plain = shards.replace_leaves(checkpoint, lambda leaf: leaf.whole().cpu())
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(plain, path)
            return
        folder = self.broadcast(shards.new_folder(path, int(checkpoint["global_step"])))
        rest, pieces = shards.split(checkpoint, folder, self.device_mesh)
        shards.write(pieces, path.parent / folder / f"rank{self.global_rank}.pt")
        self.barrier()  # the file that names the pieces comes after them
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(rest, path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads all of it, and keeps its part."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=True)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own, found = self.lightning_module.state_dict(), checkpoint["state_dict"]
        for name, value in own.items():
            leaf = self._leaf(name, value)
            if isinstance(leaf, shards.Leaf):
                leaf.tensor.to_local().copy_(leaf.own(found[name]))
            elif isinstance(value, Tensor):
                value.copy_(found[name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            names = self._names(optimizer)
            kept = {}
            for number, of_one in state["state"].items():
                leaf = self._leaf(names[number], parameters[number])
                kept[number] = {
                    key: leaf.like(value)
                    if isinstance(leaf, shards.Leaf) and isinstance(value, Tensor) and value.shape == leaf.tensor.shape
                    else value
                    for key, value in of_one.items()
                }
            # how a step is computed is this process's affair: fused kernels take no shared tensors
            groups = [
                {**there, **{key: own[key] for key in ("fused", "foreach") if key in own}}
                for there, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
            ]
            optimizer.load_state_dict({"state": kept, "param_groups": groups})
            _optimizers_to_device([optimizer], self.root_device)

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Of the optimizer's parameters, in the order in which it numbers them."""
        assert self.lightning_module is not None
        by_id = {id(parameter): name for name, parameter in self.lightning_module.named_parameters()}
        return [by_id[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def _leaf(self, name: str, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        return shards.Leaf(value, *self.stacked.get(name, (1, 1)))


@torch.no_grad()
def clip_norm(parameters: list[nn.Parameter], most: float) -> None:
    """Scale the gradients so that their norm, that of all ranks' pieces together, is at most `most`.

    torch.nn.utils.clip_grad_norm_ refuses parameters some of which are shared out and some not. One reduction, in
    float64; each piece counts once, however many ranks hold it.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return
    world = dist.get_world_size()
    locals_ = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]
    total = torch.zeros((), dtype=torch.float64, device=locals_[0].device)
    for grad, local in zip(grads, locals_, strict=True):
        holders = world
        if isinstance(grad, DTensor):
            for size, placed in zip(grad.device_mesh.shape, grad.placements, strict=True):
                holders //= size if not placed.is_replicate() else 1
        total += local.double().square().sum() / holders
    dist.all_reduce(total)
    scale = (most / (total.sqrt() + 1e-6)).clamp(max=1.0)  # as torch's
    for local in locals_:
        local.mul_(scale.to(local.dtype))
