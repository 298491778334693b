"""Randomness that a resume repeats: every draw in training is a function of seed, micro-batch and rank.

The rank is that among processes with batches of their own: ranks that share one network's layers out draw alike.

No generator's state is saved. Before each micro-batch all generators are seeded anew, so that dropout and
augmentation after a resume draw what they would have drawn. Works in any Lightning project:
`Trainer(callbacks=[ExactRandomness(seed=0)])`.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer

from frugal.measure.meter import Lean

_MASK = (1 << 64) - 1


def mix(seed: int, batch: int, rank: int) -> int:
    """A 64-bit seed from three numbers (the finalizer of SplitMix64), so that neighbours share no stream."""
    value = (seed * 0x9E3779B97F4A7C15 + batch * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class ExactRandomness(Lean):
    """Seeds torch, numpy and random before each micro-batch.

    Args:
        seed: the run's seed; zero is a seed like any other.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._rank = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rank = (trainer.distributed_sampler_kwargs or {}).get("rank", 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        value = mix(self.seed, trainer.fit_loop.epoch_loop.total_batch_idx, self._rank)
        # torch.manual_seed also looks for accelerators and costs forty times as much
        torch.default_generator.manual_seed(value)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed_all(value)
        random.seed(value)
        np.random.seed(value & 0xFFFFFFFF)
