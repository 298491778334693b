"""`strategy=fsdp_tp`: ranks in a grid; along one side they share each layer's units, along the other its weights."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from frugal.strategy.fsdp import shard
from frugal.strategy.tensor_parallel import TensorParallel, parallelize


class FSDPTensorParallel(TensorParallel):
    """`tensor_ranks` neighbours compute a layer together, on the same batch; all others see other batches.

    Args:
        tensor_ranks: how many; the best are those of one machine.
        reshard_after_forward: as `FSDP`'s.
        cpu_offload: as `FSDP`'s.
        checkpoint: `sharded` or `full`, see `Sharded`.
        activation_checkpointing: forget the activations of each block and compute them again.
        timeout_s: seconds after which a rank that waits for the others gives up.
    """

    option = "fsdp_tp"

    def __init__(
        self,
        tensor_ranks: int = 2,
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
        checkpoint: Literal["sharded", "full"] = "sharded",
        activation_checkpointing: bool = False,
        timeout_s: float = 1800.0,
    ) -> None:
        super().__init__(checkpoint)
        self._data_parallel_size, self._tensor_parallel_size = "auto", tensor_ranks
        self.reshard_after_forward, self.cpu_offload = reshard_after_forward, cpu_offload

    def share_out(self, network: nn.Module, mesh: DeviceMesh) -> None:
        self.stacked = parallelize(network, mesh["tensor_parallel"], self.option, self.prefix_of(network))
        shard(network, mesh["data_parallel"], self.reshard_after_forward, self.cpu_offload, self.root_device)
