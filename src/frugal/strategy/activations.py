"""`strategy.activation_checkpointing`: a block's activations are forgotten, and computed again in the backward pass
(Chen et al. 2016)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint

from frugal.errors import RefusedError


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The parts that take their turn as one: the members of its lists of modules, as a transformer's layers."""
    for module in network.modules():
        if isinstance(module, nn.ModuleList):
            yield from (member for member in module if any(True for _ in member.parameters()))


@contextlib.contextmanager
def recomputed(network: nn.Module, wanted: bool = True) -> Iterator[None]:
    """While this is open, the network's blocks keep only what goes into them. Draws are repeated as they were.

    Raises RefusedError for a network without blocks.
    """
    found = list(blocks(network)) if wanted else []
    if wanted and not found:
        raise RefusedError(
            f"strategy.activation_checkpointing=true: {type(network).__name__} has no list of blocks to compute again"
        )
    for block in found:
        # on the instance: names of parameters stay, which a wrapper would change
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in found:
            del block.forward
