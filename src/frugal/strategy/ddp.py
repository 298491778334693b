"""`strategy=ddp`: each rank holds the whole network and its part of the batch; gradients are averaged (Li et al. 2020)."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
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
            self.model.register_comm_hook(torch.distributed.group.WORLD, bf16_compress_hook)
