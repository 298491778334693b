"""`strategy=fsdp`: each rank keeps a part of every weight, gradient and optimizer state (FSDP2, Zhao et al. 2023).

A block's weights are gathered when its turn comes, and forgotten after it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

from frugal.errors import RefusedError
from frugal.strategy.activations import blocks
from frugal.strategy.sharded import Sharded


class FSDP(Sharded):
    """As many parts as ranks.

    Args:
        reshard_after_forward: forget gathered weights after the forward pass too, and gather them again for the
            backward: less memory, half as much more communication.
        cpu_offload: keep the parts, and the optimizer's work, in the host's memory; on CUDA.
        checkpoint: `sharded` or `full`, see `Sharded`.
        activation_checkpointing: forget the activations of each block and compute them again.
        timeout_s: seconds after which a rank that waits for the others gives up.
    """

    option = "fsdp"

    def __init__(
        self,
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
        checkpoint: Literal["sharded", "full"] = "sharded",
        activation_checkpointing: bool = False,
        timeout_s: float = 1800.0,
    ) -> None:
        super().__init__(checkpoint=checkpoint)
        self.reshard_after_forward, self.cpu_offload = reshard_after_forward, cpu_offload

    def share_out(self, network: nn.Module, mesh: DeviceMesh) -> None:
        shard(network, mesh["data_parallel"], self.reshard_after_forward, self.cpu_offload, self.root_device)


def shard(
    network: nn.Module, mesh: DeviceMesh, reshard_after_forward: bool, cpu_offload: bool, device: torch.device
) -> None:
    """Block by block, then what is left in the network itself."""
    if cpu_offload and device.type != "cuda":
        raise RefusedError(
            f"strategy.cpu_offload=true: on a {device.type} the weights are in the host's memory already"
        )
    further: dict[str, Any] = {"offload_policy": CPUOffloadPolicy()} if cpu_offload else {}
    for parameter in network.parameters():
        if not parameter.is_contiguous():  # channels-last, which FSDP2 does not take
            parameter.data = parameter.data.contiguous()
    for block in blocks(network):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward, **further)
    fully_shard(network, mesh=mesh, **further)
