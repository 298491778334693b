"""The ledger under a Trainer: planted sleeps land in their own bucket, and everything is put back afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.profilers import SimpleProfiler

from frugal.measure import BUCKETS, Ledger, LedgerProfiler, Throughput, TimeLedger, ledger_of
from frugal.measure.profiler import bucket_of

# Where sleeps are planted, how long one is, and the bucket that must show them.
PLACES = {
    "data": (0.03, "data_wait"),
    "step": (0.03, "train_step"),
    "logger": (0.03, "callbacks"),
    "finalize": (0.6, "callbacks"),
    "validation": (0.1, "validation"),
    "validation_data": (0.1, "validation"),
    "checkpoint": (0.2, "checkpoint"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_planted_sleep_lands_in_its_own_bucket_and_nowhere_else(fit: Callable[..., Any], place: str) -> None:
    sleep_s, bucket = PLACES[place]
    meter = TimeLedger(Ledger(), warmup_steps=0)

    class Logging(type(fit([], epochs=1, batches=1).module)):  # type: ignore[misc]
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("train/loss", loss.detach())
            return loss

    begin = meter.ledger.wall_s()
    run = fit([meter], sleeps={place: sleep_s}, checkpoint=True, module=Logging)
    seconds = meter.figures()
    spent = run.sleeps.spent[place]
    assert spent >= 0.35
    assert spent <= seconds[bucket] <= spent + 0.3
    for other in set(BUCKETS) - {bucket}:
        assert seconds[other] < 0.3, (other, seconds)
    assert sum(seconds.values()) - begin == pytest.approx(run.wall_s, rel=0.01, abs=0.15)
    assert seconds["other"] <= 0.02 * sum(seconds.values()) + 0.01


def test_worker_start_and_their_waiting_are_data_wait(fit: Callable[..., Any]) -> None:
    meter = TimeLedger(Ledger())
    fit([meter], sleeps={"data": 0.04}, workers=1, epochs=2)
    assert meter.figures()["data_wait"] >= 0.5  # the sleeps run in the worker: 20 of them in turn, minus overlap


def test_the_first_steps_are_warmup(fit: Callable[..., Any]) -> None:
    meter = TimeLedger(Ledger(), warmup_steps=2)
    fit([meter], sleeps={"step": 0.02}, epochs=1, batches=20)
    seconds = meter.figures()
    assert 0.04 <= seconds["warmup"] < 0.04 + 0.2
    assert seconds["train_step"] >= 18 * 0.02


def test_warmup_is_at_most_a_tenth_of_the_run_and_counts_optimizer_steps(fit: Callable[..., Any]) -> None:
    meter = TimeLedger(Ledger(), warmup_steps=10)
    fit([meter], sleeps={"step": 0.02}, epochs=1, batches=40, accumulate_grad_batches=2)  # 20 steps: 2 warm-up
    seconds = meter.figures()
    assert 4 * 0.02 <= seconds["warmup"] < 4 * 0.02 + 0.2
    assert seconds["train_step"] >= 36 * 0.02


def test_test_and_validate_have_their_own_waiting(fit: Callable[..., Any]) -> None:
    meter = TimeLedger(Ledger())
    run = fit([meter], epochs=1)
    run.sleeps.seconds.update(test=0.1, test_data=0.1, logger=0.1)
    before = meter.figures()
    run.trainer.test(run.module, verbose=False)
    after = meter.figures()
    assert after["test"] - before["test"] >= 0.4
    assert after["data_wait"] == before["data_wait"]
    run.sleeps.seconds.update(validation=0.1, validation_data=0.1)
    run.trainer.validate(run.module, verbose=False)
    assert meter.figures()["validation"] - after["validation"] >= 0.4


def test_everything_is_put_back_and_a_second_trainer_can_use_the_same_loggers(fit: Callable[..., Any]) -> None:
    first = TimeLedger(Ledger())
    run = fit([first], epochs=1)
    logger = run.trainer.logger
    for owner in (logger, run.trainer.fit_loop, run.trainer.fit_loop.epoch_loop.val_loop, run.trainer.test_loop):
        assert not {"run", "advance", "setup_data", "log_metrics", "save", "finalize"} & set(vars(owner)), owner
    assert not isinstance(run.trainer.profiler, LedgerProfiler)
    before = first.figures()["callbacks"]
    second = TimeLedger(Ledger())
    again = fit([second], epochs=1, logger=logger, sleeps={"finalize": 0.1})
    assert again.trainer.logger is logger
    assert logger.finalized == 2
    assert first.figures()["callbacks"] == before
    assert second.figures()["callbacks"] >= 0.1


def test_an_exception_in_training_unwinds_and_puts_back(fit: Callable[..., Any]) -> None:
    class Fails(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            self.trainer = trainer
            raise ValueError("planted")

    meter, fails = TimeLedger(Ledger()), Fails()
    with pytest.raises(ValueError, match="planted"):
        fit([meter, fails])
    assert meter.ledger.depth() == 1
    assert not isinstance(fails.trainer.profiler, LedgerProfiler)
    assert "finalize" not in vars(fails.trainer.logger)
    assert fails.trainer.logger.finalized == 1


def test_meters_share_one_clock_in_any_order(fit: Callable[..., Any]) -> None:
    ledger = Ledger()
    seen = []

    class Asks(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(ledger_of(trainer))

    fit([Asks(), Throughput(), TimeLedger(ledger)], epochs=1)
    assert seen == [ledger]


def test_a_clock_is_added_where_there_is_none(fit: Callable[..., Any]) -> None:
    throughput = Throughput(warmup_steps=1)
    run = fit([throughput])
    assert throughput.figures().samples_per_s is not None
    assert ledger_of(run.trainer).seconds()["train_step"] > 0


def test_an_inner_profiler_still_hears_everything(fit: Callable[..., Any]) -> None:
    inner = SimpleProfiler()
    meter = TimeLedger(Ledger())
    run = fit([meter], profiler=inner, epochs=1, batches=6)
    assert len(inner.recorded_durations["run_training_batch"]) == 6
    assert "[_TrainingEpochLoop].train_dataloader_next" in inner.recorded_durations
    assert meter.figures()["train_step"] > 0
    assert run.trainer.profiler is inner


def test_compilation_is_charged_to_compile(fit: Callable[..., Any]) -> None:
    class Compiles(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            pl_module.network.forward = torch.compile(pl_module.network.forward, backend=slow_backend)

    def slow_backend(graph: Any, example_inputs: Any) -> Any:
        time.sleep(0.3)
        return graph.forward

    torch._dynamo.reset()
    meter = TimeLedger(Ledger(), warmup_steps=0)
    fit([meter, Compiles()], epochs=1, batches=4)
    seconds = meter.figures()
    assert seconds["compile"] >= 0.3
    assert seconds["train_step"] < seconds["compile"]
    handler = torch._dynamo.callback.callback_handler
    assert not handler.start_callbacks
    assert not handler.end_callbacks


def test_a_resumed_run_has_the_sum_of_its_parts(fit: Callable[..., Any], tmp_path: Any) -> None:
    beats = tmp_path / "heartbeat.json"
    first = TimeLedger(Ledger(start_age_s=100.0), heartbeat=str(beats))
    fit([first], epochs=1, checkpoint=True, sleeps={"step": 0.02})
    at_checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["TimeLedger"]
    # As if the process had lived on for 50 seconds after its last checkpoint, and was then killed.
    beats.write_text(f'{{"wall_s": {sum(at_checkpoint["seconds"].values()) + 50}, "step": 99}}')
    second = TimeLedger(Ledger(start_age_s=1.0), heartbeat=str(beats))
    run = fit([second], epochs=2, checkpoint=True, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    seconds = second.figures()
    assert run.trainer.global_step == 20
    assert seconds["lost"] == pytest.approx(50, abs=0.01)
    assert seconds["startup"] >= 101
    assert seconds["train_step"] >= at_checkpoint["seconds"]["train_step"]
    assert sum(seconds.values()) == pytest.approx(second.ledger.wall_s(), abs=0.01)
    assert sum(seconds.values()) >= 151


@pytest.mark.parametrize(
    ("action", "phase", "bucket"),
    [
        ("run_training_batch", "train", "train_step"),
        ("run_training_batch", "warmup", "warmup"),
        ("[Strategy]SingleDeviceStrategy.batch_to_device", "train", "train_step"),
        ("[Strategy]SingleDeviceStrategy.batch_to_device", "evaluation", None),
        ("[_TrainingEpochLoop].train_dataloader_next", "train", "data_wait"),
        ("[Callback]EarlyStopping{'monitor': 'val/loss'}.on_validation_end", "evaluation", "callbacks"),
        ("[Callback]ModelCheckpoint{'x': 1.5}.on_train_epoch_end", "train", "checkpoint"),
        ("[Callback]ModelCheckpoint{'x': 1.5}.on_train_batch_end", "train", "callbacks"),
        ("[Callback]EarlyStopping.on_save_checkpoint", "train", None),
        ("[Callback]EarlyStopping.setup", "setup", None),
        ("[LightningModule]Net.training_step", "train", None),
        ("save_checkpoint", "evaluation", "checkpoint"),
        ("[Callback]Bar.on_test_batch_end", "test", None),
    ],
)
def test_bucket_of(action: str, phase: str, bucket: str | None) -> None:
    assert bucket_of(action, phase, frozenset({"ModelCheckpoint{'x': 1.5}"})) == bucket
