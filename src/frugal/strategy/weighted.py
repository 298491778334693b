"""What strategies of several ranks share: the mean over ranks is the mean over the samples of the global batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from frugal.measure.meter import Lean


class Weighted(Strategy):
    """Weighs each rank's loss by its share of the batch.

    Gradients are averaged over ranks, each the mean over its own samples. In an epoch's last batch, which may not
    divide by the ranks, those means are of unequal numbers; `DataModule.weight` says by how much a rank's counts more.
    Works with any LightningModule, and multiplies nothing where all shares are equal.
    """

    def figures(self) -> dict[str, Any]:
        """What was done, for the record: how many ranks, and of the network how many parameters each side of their mesh
        shares out, and how many values rank 0 had."""
        module = self.lightning_module
        parameters = list(module.parameters()) if module is not None else []
        cut: Counter[str] = Counter()
        for parameter in parameters:
            if isinstance(parameter, DTensor):
                names = parameter.device_mesh.mesh_dim_names or ()
                placements = zip(names, parameter.placements, strict=True)
                cut.update(name for name, placed in placements if not placed.is_replicate())
        values = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
        return {"ranks": dist.get_world_size(), "shared_out": dict(cut), "values_a_rank": values}

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        module = self.lightning_module
        data = getattr(module.trainer, "datamodule", None) if module is not None else None
        weight = data.weight() if data is not None and hasattr(data, "weight") else 1.0
        loss = closure_loss if weight == 1.0 else closure_loss * weight
        return super().backward(loss, optimizer, *args, **kwargs)


class SameBuffers(Lean, Callback):
    """Before a validation all ranks take rank 0's buffers, such as statistics of batch normalization: each rank has
    its own, of its own part of the batches."""

    @torch.no_grad()
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            for buffer in pl_module.buffers():
                dist.broadcast(buffer, src=0)
