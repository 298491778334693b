"""The meters stay out of the training step, and the package loads without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import frugal.measure
from frugal.measure import Energy, Ledger, Memory, Meter, Throughput, TimeLedger, TimeToTarget

STEP_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_test_batch_start",
    "on_test_batch_end",
)


@pytest.mark.parametrize(
    ("meter", "hooks"),
    [
        (TimeLedger(Ledger()), []),
        (Throughput(), ["on_train_batch_end"]),
        (Memory(), []),
        (Energy(), []),
        (TimeToTarget("x", 1.0), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hooks_that_run_every_batch(meter: Meter, hooks: list[str]) -> None:
    assert [name for name in STEP_HOOKS if callable(getattr(meter, name))] == hooks


def test_all_meters_together_do_not_change_the_training(fit: Callable[..., Any]) -> None:
    import torch

    def weights(meters: list[Any]) -> torch.Tensor:
        torch.manual_seed(0)
        return fit(meters, epochs=2).module.network.weight.detach()

    meters = [TimeLedger(Ledger()), Throughput(), Memory(), Energy(), TimeToTarget("val/loss", 0.0, "min")]
    assert torch.equal(weights([]), weights(meters))


def test_the_clock_needs_no_torch_and_all_names_load() -> None:
    code = "import sys; from frugal.measure import Ledger, Heartbeat, diagnose; assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    for name in frugal.measure.__all__:
        assert getattr(frugal.measure, name) is not None
    with pytest.raises(AttributeError, match="speedometer"):
        frugal.measure.speedometer  # noqa: B018
