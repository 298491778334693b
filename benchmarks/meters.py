"""What the meters themselves cost: CPU time of a training step with and without them.

    python benchmarks/meters.py

A tiny network under a plain Lightning Trainer, the variants in turn, several rounds; medians of the CPU time per step
(one thread, so that waiting for a core does not count), and what each variant adds to the bare one, round by round.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from frugal.measure import Energy, Memory, Throughput, TimeLedger

STEPS, ROUNDS = 1500, 9


class Tiny(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(16, 4)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.network(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, fused=True)


VARIANTS: dict[str, Callable[[], list[Callback]]] = {
    "bare": list,
    "ledger": lambda: [TimeLedger()],
    "ledger, throughput": lambda: [TimeLedger(), Throughput()],
    "ledger, throughput, memory, energy": lambda: [TimeLedger(), Throughput(), Memory(), Energy()],
    "an empty callback": lambda: [Callback()],
}


def microseconds_per_step(callbacks: list[Callback]) -> float:
    trainer = Trainer(
        max_steps=STEPS, accelerator="cpu", callbacks=callbacks, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    begun = time.process_time()
    trainer.fit(Tiny(), DataLoader([torch.randn(8, 16)] * STEPS, batch_size=None))
    return (time.process_time() - begun) / STEPS * 1e6


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for round_ in range(ROUNDS + 1):
        for name, build in VARIANTS.items():
            value = microseconds_per_step(build())
            if round_:  # the first round warms up
                taken[name].append(value)
    result = {}
    for name, values in taken.items():
        added = statistics.median(v - b for v, b in zip(values, taken["bare"], strict=True))
        result[name] = {"us_per_step": round(statistics.median(values), 1), "us_added": round(added, 1)}
        print(f"{name:36} {result[name]['us_per_step']:8.1f} us a step, {added:+6.1f}")
    path = Path(__file__).parent / "results" / "meters.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
