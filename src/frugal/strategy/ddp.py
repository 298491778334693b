"""`strategy=ddp`: each rank has the whole network and its part of a batch, gradients are averaged (Li et al. 2020)."""

# Annotations as objects, not as text: torch reads those of the hook.
from typing import Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from frugal.strategy.weighted import Weighted


class DDP(Weighted, DDPStrategy):
    """Lightning's DDP, and its communication in half the bytes on any device.

    Args:
        communicate: the dtype in which gradients travel and are summed: that of the parameters, or `bf16`.
        find_unused_parameters: look in each step for parameters that took no part, which costs time; without,
            such a step is an error. torch then leaves its buckets as they are: without, it makes them anew after the
            first step of a process, and more than two ranks sum in another order before and after that.
        bucket_mb: gradients travel in buckets of so many megabytes, while the backward pass goes on.
        activation_checkpointing: forget the activations of each block and compute them again.
        timeout_s: seconds after which a rank that waits for the others gives up.
    """

    def __init__(
        self,
        communicate: Literal["full", "bf16"] = "full",
        find_unused_parameters: bool = False,
        bucket_mb: float = 25.0,
        activation_checkpointing: bool = False,
        timeout_s: float = 1800.0,
    ) -> None:
        super().__init__(
            find_unused_parameters=find_unused_parameters, bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True
        )
        self.communicate = communicate

    def _register_ddp_hooks(self) -> None:
        """Lightning registers them on CUDA only; gloo takes them too."""
        if self.communicate == "bf16":
            assert isinstance(self.model, DistributedDataParallel)
            self.model.register_comm_hook(None, _in_bf16)


def _in_bf16(state: None, bucket: dist.GradBucket) -> Future[Tensor]:
    """The mean over ranks, sent and summed in bf16: torch's own hook, which it keeps from gloo by its name."""
    whole = bucket.buffer()
    half = whole.to(torch.bfloat16).div_(dist.get_world_size())
    done: Future[list[Tensor]] = dist.all_reduce(half, async_op=True).get_future()
    return done.then(lambda reduced: whole.copy_(reduced.value()[0]))
