"""The share of gradients that float16 flushes to zero: against float16 itself, and through a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import frugal as package
from frugal.measure.gradients import SMALLEST, Float16Flush

pytest_plugins = ("users_home",)


def test_the_bound_is_float16s_own() -> None:
    sizes = torch.tensor([SMALLEST, SMALLEST * 1.001, SMALLEST * 0.999])
    assert (sizes.half() == 0).tolist() == [True, False, True]


def test_shares_by_hand() -> None:
    """Of four gradients that are not zero, 1e-8 is flushed at a scale of 1, none at 8, whose 8e-8 is large enough."""
    module: Any = nn.Linear(5, 1, bias=False)
    module.device = torch.device("cpu")
    logged: dict[str, float] = {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    meter = Float16Flush([1, 8])
    trainer: Any = SimpleNamespace()
    meter.on_train_epoch_start(trainer, module)
    for gradient in ([0, 1e-8, -1, 1, 0], [0, 0, -1e-3, 0, 0]):  # two steps
        module.weight.grad = torch.tensor([gradient], dtype=torch.float32)
        meter.on_before_optimizer_step(trainer, module, None)
    meter.on_train_epoch_end(trainer, module)
    assert logged == {"train/fp16_flushed_1": pytest.approx(1 / 4), "train/fp16_flushed_8": 0}


def test_a_run_has_the_shares_in_its_record(home: Path) -> None:
    words = ["trainer.max_epochs=1", "trainer.limit_train_batches=4", "measure=none", "logger=none"]
    record = package.run([*words, "measure.gradients=true", "measure.loss_scales=[1e-3,65536]"])
    assert record.quality["train/fp16_flushed_0.001"] > record.quality["train/fp16_flushed_65536"] == 0
