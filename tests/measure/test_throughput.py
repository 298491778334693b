"""Throughput against planted sleeps: what it counts, what it leaves out, and that validation does not move it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from frugal.errors import SettingsError
from frugal.measure import Ledger, Throughput, TimeLedger, TimeToTarget

BATCH = 8


def test_samples_per_second_is_batches_over_planted_time(fit: Callable[..., Any]) -> None:
    meter = Throughput(warmup_steps=4)
    run = fit([meter], sleeps={"step": 0.01, "data": 0.01}, epochs=2, batches=30)
    figures = meter.figures()
    slept_per_step = sum(run.sleeps.spent.values()) / 60
    assert figures.steps_counted == 56
    # Never faster than the sleeps alone allow; waiting for data is inside.
    assert 0.5 * BATCH / slept_per_step < figures.samples_per_s <= 1.05 * BATCH / slept_per_step
    assert figures.samples_per_s_p10 <= figures.samples_per_s_median <= figures.samples_per_s_p90
    assert figures.tokens_per_s is None
    assert "tokens" in meter.absent["throughput.tokens_per_s"]
    assert meter.last_samples_per_s is not None


def test_validation_logging_inside_it_and_checkpoints_do_not_move_it(fit: Callable[..., Any]) -> None:
    sleeps = {"step": 0.01, "validation": 0.03, "validation_data": 0.02, "checkpoint": 0.1, "logger": 0.05}
    rates = {}
    for every in (1, 6):
        meter = Throughput(warmup_steps=4)
        run = fit([meter], sleeps=sleeps, epochs=6, batches=10, check_val_every_n_epoch=every, checkpoint=True)
        assert run.sleeps.spent["validation"] >= 0.05 * (6 / every)
        rates[every] = meter.figures().samples_per_s
    assert rates[1] == pytest.approx(rates[6], rel=0.4)  # counted, they would make it 3.5 times slower


def test_logging_of_training_steps_is_inside(fit: Callable[..., Any]) -> None:
    base = type(fit([], epochs=1, batches=1).module)

    class Logging(base):  # type: ignore[misc, valid-type]
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.log("train/x", 1.0)
            return super().training_step(batch, batch_idx)

    meter = Throughput(warmup_steps=2)
    fit([meter], sleeps={"logger": 0.02}, epochs=1, batches=25, module=Logging)
    assert meter.figures().samples_per_s <= 1.05 * BATCH / 0.02


def test_windows_end_with_optimizer_steps_under_accumulation(fit: Callable[..., Any]) -> None:
    meter = Throughput(warmup_steps=2)
    fit([meter], sleeps={"step": 0.01}, epochs=2, batches=24, accumulate_grad_batches=4)
    figures = meter.figures()
    assert figures.steps_counted == 12 - 1  # a tenth of twelve steps is warm-up
    for steps, samples, _, _ in meter._windows:
        assert samples == steps * 4 * BATCH
    assert figures.samples_per_s <= 1.05 * BATCH / 0.01


def test_windows_by_steps(fit: Callable[..., Any]) -> None:
    meter = Throughput(warmup_steps=4, window_steps=5)
    fit([meter], epochs=1, batches=40)
    assert [window[0] for window in meter._windows] == [5, 5, 5, 5, 5, 5, 5, 1]
    assert meter.figures().steps_counted == 36


def test_fine_windows_are_merged_in_a_longer_run(fit: Callable[..., Any]) -> None:
    meter = Throughput(warmup_steps=0, window_s=0.05)
    run = fit([meter], sleeps={"step": 0.004}, epochs=1, batches=250)
    assert len(meter._windows) < 45
    assert sum(window[0] for window in meter._windows) == run.trainer.global_step
    assert sum(window[1] for window in meter._windows) == 250 * BATCH


def test_count_batch_of_the_module_is_asked(fit: Callable[..., Any]) -> None:
    base = type(fit([], epochs=1, batches=1).module)

    class Counts(base):  # type: ignore[misc, valid-type]
        def count_batch(self, batch: torch.Tensor) -> tuple[int, int]:
            return 2, 30

    meter = Throughput(warmup_steps=0)
    fit([meter], sleeps={"step": 0.01}, epochs=1, batches=20, module=Counts)
    figures = meter.figures()
    assert figures.tokens_per_s == pytest.approx(15 * figures.samples_per_s)
    assert figures.samples_per_s <= 1.05 * 2 / 0.01


def test_too_few_steps_give_a_reason_instead_of_a_figure(fit: Callable[..., Any]) -> None:
    meter = Throughput()
    fit([meter], epochs=1, batches=2)
    figures = meter.figures()
    assert figures.samples_per_s is None
    assert meter.absent["throughput.samples_per_s"].startswith("2 optimizer steps after warm-up")


def test_short_runs_have_a_rate_but_no_percentiles(fit: Callable[..., Any]) -> None:
    meter = Throughput(window_s=1000.0)
    fit([meter], epochs=1, batches=30)
    figures = meter.figures()
    assert figures.samples_per_s > 0
    assert figures.steps_counted == 27
    assert figures.samples_per_s_median is None
    assert "windows" in meter.absent["throughput.samples_per_s_median"]


def test_it_goes_on_after_a_resume(fit: Callable[..., Any], tmp_path: Any) -> None:
    first = Throughput(warmup_steps=0)
    fit([first], epochs=1, batches=20, checkpoint=True, sleeps={"step": 0.01})
    second = Throughput(warmup_steps=0)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    fit([second], epochs=2, batches=20, checkpoint=True, sleeps={"step": 0.01}, ckpt_path=last)
    assert 30 <= second.figures().steps_counted <= 40
    assert second.figures().samples_per_s <= 1.05 * BATCH / 0.01


# ------------------------------------------------------------------------------------------------------ samples trained
def short(fit: Callable[..., Any]) -> Any:
    """A module whose epochs end with a batch of 3: ten batches hold 75 samples."""
    base = type(fit([], epochs=1, batches=1).module)

    class Short(base):  # type: ignore[misc, valid-type]
        def _loader(self, batches: int, place: str, workers: int) -> Any:
            loader = super()._loader(batches, place, workers)
            loader.dataset.x = loader.dataset.x[:-5]
            return loader

    return Short


@pytest.mark.parametrize("accumulate", [1, 4])
def test_samples_trained_are_those_that_were_in_batches(fit: Callable[..., Any], accumulate: int) -> None:
    meter = Throughput(warmup_steps=3)
    run = fit([meter], epochs=2, batches=10, module=short(fit), accumulate_grad_batches=accumulate)
    assert meter.samples_trained == 2 * 75  # neither 2 * 80, nor steps times a full step's
    assert run.trainer.global_step == 2 * (10 if accumulate == 1 else 3)
    assert meter.state_dict()["samples_trained"] == 2 * 75


class StopAt(pl.Callback):
    """At a batch of an epoch: asks to stop, or breaks down."""

    def __init__(self, epoch: int, batch: int, error: Exception | None = None) -> None:
        self.at, self.error = (epoch, batch), error

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if (trainer.current_epoch, args[-1]) == self.at:
            if self.error is not None:
                raise self.error
            trainer.should_stop = True


def test_a_stop_in_mid_accumulation_trained_whole_steps_only(fit: Callable[..., Any]) -> None:
    meter = Throughput()
    run = fit([meter, StopAt(0, 5)], epochs=1, batches=10, accumulate_grad_batches=4)
    assert run.trainer.global_step == 1
    assert meter.samples_trained == 4 * BATCH


def test_samples_trained_go_on_after_a_resume_and_lost_work_counts_once(fit: Callable[..., Any], tmp_path: Any) -> None:
    module = short(fit)
    with pytest.raises(ValueError, match="cut off"):
        fit([Throughput(), StopAt(1, 3, ValueError("cut off"))], epochs=2, batches=10, checkpoint=True, module=module)
    meter = Throughput()
    fit([meter], epochs=2, batches=10, module=module, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert meter.samples_trained == 2 * 75


def test_samples_trained_are_those_of_all_ranks() -> None:
    meter = Throughput()
    meter.load_state_dict({"windows": [], "fine_ns": 1, "samples_trained": 100, "tokens_trained": 1000})
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"), reduce=lambda own, reduce_op: own + torch.tensor([7, 70])
    )
    shared = {"rank": 0, "num_replicas": 2}
    meter._trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=2, strategy=strategy, distributed_sampler_kwargs=shared
    )
    meter._trained = (8, 80)
    assert meter.state_dict()["samples_trained"] == 100 + 8 + 7
    assert meter.state_dict()["tokens_trained"] == 1000 + 80 + 70


def test_time_to_target(fit: Callable[..., Any]) -> None:
    ledger = Ledger(start_age_s=10.0)
    hit = TimeToTarget("val/loss", 1e9, mode="min")
    missed = TimeToTarget("val/loss", 1e9, mode="max")
    fit([TimeLedger(ledger), hit, missed_named(missed)], epochs=3, batches=10, sleeps={"step": 0.01})
    figures = hit.figures()
    assert 10.0 < figures["to_target_s"] < ledger.wall_s()
    assert 0.1 <= figures["train_s"] < ledger.wall_s() - 10.0
    assert hit.step == 10
    assert missed.figures()["to_target_s"] is None
    assert missed.absent["time.to_target_s"] == "val/loss never reached 1e+09"
    assert missed.absent["time.to_target_train_s"] == "val/loss never reached 1e+09"
    with pytest.raises(SettingsError, match="use max or min"):
        TimeToTarget("val/loss", 1.0, mode="most")  # type: ignore[arg-type]


def missed_named(meter: TimeToTarget) -> TimeToTarget:
    """Two callbacks of one class in one Trainer: the state key tells them apart."""
    assert meter.state_key != TimeToTarget("val/loss", 1e9, mode="min").state_key
    return meter
