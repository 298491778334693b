"""The sentence at the end of a run: right for runs that were made slow on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from frugal import record
from frugal.measure import Ledger, TimeLedger, diagnose


@pytest.mark.parametrize(
    ("sleeps", "says"),
    [
        ({"data": 0.03}, ("waiting for data", "data.workers=2")),
        ({"step": 0.03}, ("the training step",)),
        ({"logger": 0.03}, ("logging", "trainer.log_every_n_steps")),
        ({"validation": 0.3}, ("validation", "trainer.check_val_every_n_epoch")),
        ({"checkpoint": 0.5}, ("checkpoints", "run.checkpoint_every_s")),
    ],
)
def test_runs_made_slow_on_purpose(fit: Callable[..., Any], sleeps: dict[str, float], says: tuple[str, ...]) -> None:
    base = type(fit([], epochs=1, batches=1).module)

    class Logging(base):  # type: ignore[misc, valid-type]
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.log("train/x", 1.0)
            return super().training_step(batch, batch_idx)

    meter = TimeLedger(Ledger())
    fit([meter], sleeps=sleeps, epochs=2, batches=20, checkpoint=True, module=Logging)
    sentence = diagnose(meter.figures())
    for words in says:
        assert words in sentence, sentence
    assert sentence.count(". ") == 0
    assert sentence.endswith(".")


def test_startup_is_named_when_it_is_most_of_the_run() -> None:
    assert "starting up" in diagnose({"startup": 6.0, "train_step": 2.0, "test": 0.1})
    assert "starting up" not in diagnose({"startup": 6.0, "train_step": 8.0, "test": 0.1})


def test_shares_are_of_the_fit() -> None:
    assert diagnose({"startup": 5.0, "data_wait": 3.8, "train_step": 6.2}).startswith("38 % of the training time")


def test_what_is_done_already_is_not_advised() -> None:
    ledger = {"data_wait": 5.0, "train_step": 5.0}
    assert "data.workers=8 or a larger batch (data.batch_size=128)" in diagnose(
        ledger, hints={"data.workers": 4, "data.batch_size": 64}
    )
    assert "no worker" in diagnose(ledger, hints={"data.workers": 0})
    logging = {"callbacks": 5.0, "train_step": 5.0}
    assert "logger=csv" in diagnose(logging, hints={"logger": "wandb"})
    assert "logger=csv" not in diagnose(logging, hints={"choices.logger": "csv"})
    busy = {"train_step": 9.0}
    assert "precision=bf16" in diagnose(busy, hints={"device": "cuda", "precision.mode": "32-true"})
    assert "precision" not in diagnose(busy, hints={"device": "cuda", "precision.mode": "bf16-mixed"})


def test_lost_work_and_measuring_are_named() -> None:
    assert "cut off" in diagnose({"lost": 50.0, "train_step": 20.0})
    assert "measure=none" in diagnose({"measure": 50.0, "train_step": 20.0})
    measured = diagnose({"measure": 50.0, "train_step": 20.0}, hints={"measure.latency": "quick"})
    assert "measure=none" in measured and "measure=quick" not in measured


SECOND = {"run.checkpoint_every_s": 60.0, "trainer.check_val_every_n_epoch": 1}


@pytest.mark.parametrize(
    ("hints", "says", "not_says"),
    [
        ({"trainer.max_epochs": 1}, "try run.checkpoint_every_s=240", "check_val"),
        ({"trainer.max_epochs": 1, "run.checkpoint_every_steps": 5}, "try run.checkpoint_every_steps=20", "_every_s="),
        ({"trainer.max_epochs": 50, "run.checkpoint_every_steps": 5}, "run.checkpoint_every_steps=20", "check_val"),
        # 50 validations beside two writings by the clock: the best one is what costs
        ({"trainer.max_epochs": 50}, "perhaps try trainer.check_val_every_n_epoch=2", "checkpoint_every"),
        ({"trainer.max_epochs": 50, "run.checkpoint_every_s": 0.1}, "try run.checkpoint_every_s=0.4", "check_val"),
        ({"trainer.max_epochs": -1}, "try run.checkpoint_every_s=240", "check_val"),
    ],
)
def test_the_advice_on_checkpoints_names_the_key_that_writes_them(
    hints: dict[str, Any], says: str, not_says: str
) -> None:
    sentence = diagnose({"checkpoint": 4.0, "train_step": 6.0}, hints={**SECOND, **hints})
    assert says in sentence and not_says not in sentence, sentence
    assert sentence.count(". ") == 0 and sentence.endswith(".")


def test_the_advice_on_lost_work_names_the_key_that_saves_it() -> None:
    ledger = {"lost": 50.0, "train_step": 20.0}
    assert "run.checkpoint_every_s=15" in diagnose(ledger, hints=SECOND)
    assert "run.checkpoint_every_steps=10" in diagnose(ledger, hints={**SECOND, "run.checkpoint_every_steps": 40})


def test_a_healthy_run_states_its_rate_and_nothing_is_no_crash() -> None:
    sentence = diagnose({"train_step": 9.0, "callbacks": 1.0}, record.Throughput(samples_per_s=12345.6))
    assert sentence.startswith("90 % of the training time went to the training step at 12,346 samples/s")
    assert diagnose({}) == "No time was recorded."
    assert diagnose({"test": 1.0}) == "No training was recorded."
