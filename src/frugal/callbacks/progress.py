"""What a run shows and logs while it trains: `Progress` for the eye, `StepMetrics` for the loggers.

Both are `Lean`: the hooks of a batch that they do not need cost nothing, and the one that they need returns at once
nearly always. They read the loss when they show it, not every step: reading it makes a GPU wait.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar

from frugal import console
from frugal.measure.meter import Lean
from frugal.measure.time_ledger import TimeLedger

_REFRESH_S = 0.1  # between two looks at the loss and the step; the bar is drawn at the console's own pace
_LINE_EVERY_S = 5.0  # between two plain lines at the ends of epochs
_LONG_EPOCH_S = 30.0  # without a line, after which one comes in the middle of an epoch


class Progress(Lean, ProgressBar):
    """One bar over the whole fit where stdout is a terminal, plain lines elsewhere; a bar for test and validation too.

    Shows epoch, step, the last loss (`pl_module.last_loss` where the module keeps it), samples per second of a
    `Throughput` meter, and the last validation's metrics.

    Args:
        style: `auto` looks at stdout; `lines` is what a log wants even on a terminal; `none` shows nothing.
    """

    def __init__(self, style: Literal["auto", "bar", "lines", "none"] = "auto") -> None:
        super().__init__()
        self.style = style
        self._enabled = True
        self._open = contextlib.ExitStack()
        self._bar: console.Bar | None = None
        self._due = 0.0  # on the monotonic clock
        self._said = 0.0
        self._validation: dict[str, float] = {}

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        console.say(" ".join(map(str, args)))

    # ------------------------------------------------------------------------------------------------------- training
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation = {}
        self._said = time.monotonic()
        self._due = 0.0
        self._said_step = -1
        self._throughput = next((c for c in _callbacks(trainer) if hasattr(c, "last_samples_per_s")), None)
        steps = trainer.estimated_stepping_batches
        self._steps = int(steps) if steps != float("inf") else None
        if self._with_bar():
            self._begin(_describe(trainer, self._steps), self._steps, "steps")
            self._advance_to(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _REFRESH_S
        if self._bar is not None:
            self._advance_to(trainer.global_step, self._status(trainer, pl_module, brief=True))
        elif now - self._said >= _LONG_EPOCH_S:
            self._line(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if time.monotonic() - self._said >= _LINE_EVERY_S:
            self._line(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()
        self._line(trainer, pl_module)

    # ----------------------------------------------------------------------------------------- validation and the test
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._begin("validation", _total(trainer.num_val_batches), "batches")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin("test", _total(trainer.num_test_batches), "batches")

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.state.fn == "validate":
            self._evaluated_batch()

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._evaluated_batch()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._end()
        elif not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            self._validation = {key: float(value) for key, value in metrics.items() if key.startswith("val/")}

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._end()

    # -------------------------------------------------------------------------------------------------------- drawing
    def _with_bar(self) -> bool:
        return self._enabled and (self.style == "bar" or (self.style == "auto" and console.is_terminal()))

    def _begin(self, description: str, total: int | None, unit: str) -> None:
        self._end()
        if self._enabled and self.style != "none":
            self._bar = self._open.enter_context(console.progress(description, total, unit))
            self._waiting = 0

    def _end(self) -> None:
        if self._bar is not None:
            self._open.close()
            self._bar = None

    def _advance_to(self, step: int, description: str | None = None) -> None:
        if self._bar is not None:
            self._bar.advance(step - self._bar.done, description)

    def _evaluated_batch(self) -> None:
        if self._bar is None:
            return
        self._waiting += 1
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _REFRESH_S
            self._bar.advance(self._waiting)
            self._waiting = 0

    def _line(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A plain line: on stdout where there is no bar, and in the run's log file in any case."""
        if not self._enabled or self.style == "none" or trainer.global_step == self._said_step:
            return
        self._said, self._said_step = time.monotonic(), trainer.global_step
        of = f"/{self._steps:,}" if self._steps else ""
        line = f"{self._status(trainer, pl_module)}  step {trainer.global_step:,}{of}"
        if self._with_bar():
            console.log(line)
        else:
            console.say(line)

    def _status(self, trainer: pl.Trainer, pl_module: pl.LightningModule, brief: bool = False) -> str:
        """`brief` is for a bar, which has a terminal's width to share: one metric of the validation, no unit."""
        parts = [_describe(trainer, self._steps)]
        loss = getattr(pl_module, "last_loss", None)
        if loss is not None:
            parts.append(f"loss {float(loss):.{3 if brief else 4}g}")
        shown = sorted(self._validation, key=lambda key: key == "val/loss")  # a bar has room for another than the loss
        parts += [f"{key} {self._validation[key]:.4g}" for key in (shown[:1] if brief else self._validation)]
        for unit in ("tokens", "samples"):
            rate = getattr(self._throughput, f"last_{unit}_per_s", None)
            if rate is not None:
                parts.append(f"{rate:,.0f}/s" if brief else f"{rate:,.0f} {unit}/s")
                break
        return "  ".join(parts)


class StepMetrics(Lean):
    """Loss, learning rate, throughput, ledger and memory, every `trainer.log_every_n_steps` optimizer steps.

    They go to `trainer.loggers` directly: `self.log` costs some 400 µs a step even where nothing is written.

    `train/loss_step`, `lr` (`lr_1` for a second group of parameters), `throughput/samples_per_s` of the last window
    (of text `tokens_per_s` too),
    `ledger/<bucket>` as shares of the wall time so far, `memory/private_bytes` (Linux), `memory/gpu_allocated_bytes`.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # 0 means never, to Lightning; then no step is a multiple of the period.
        self._every = trainer.log_every_n_steps if trainer.loggers else 0  # type: ignore[attr-defined]
        self._loop = trainer.fit_loop.epoch_loop
        self._logged_at = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning's own count for loggers: of optimizer steps before this batch's.
        step = self._loop._batches_that_stepped
        if not self._every or (step + 1) % self._every or trainer.fit_loop._should_accumulate():
            return
        metrics: dict[str, float] = {"epoch": trainer.current_epoch}
        loss = getattr(pl_module, "last_loss", None)
        if loss is not None:
            metrics["train/loss_step"] = float(loss)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for index, group in enumerate(groups):
            metrics[f"lr_{index}" if index else "lr"] = float(group["lr"])
        for callback in _callbacks(trainer):
            rate = getattr(callback, "last_samples_per_s", None)
            if rate is not None:
                metrics["throughput/samples_per_s"] = rate
            rate = getattr(callback, "last_tokens_per_s", None)
            if rate is not None:
                metrics["throughput/tokens_per_s"] = rate
            if isinstance(callback, TimeLedger):
                metrics |= _shares(callback.figures())
        metrics |= _memory(trainer.strategy.root_device)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]


def _describe(trainer: pl.Trainer, steps: int | None) -> str:
    last = trainer.max_epochs
    # `max_epochs` says nothing where the steps end first.
    ends_by_epochs = last is not None and last > 0 and (steps is None or trainer.max_steps in (-1, None))
    epoch = min(trainer.current_epoch + 1, last) if ends_by_epochs and last else trainer.current_epoch + 1
    return f"epoch {epoch}/{last}" if ends_by_epochs else f"epoch {epoch}"


def _total(batches: int | float | list[int | float]) -> int | None:
    total = sum(batches) if isinstance(batches, list) else batches
    return None if total == float("inf") else int(total)


def _shares(seconds: dict[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {f"ledger/{bucket}": value / total for bucket, value in seconds.items() if value > 0}


def _memory(device: torch.device) -> dict[str, float]:
    """Bytes in use now. Where the system does not say, there is no figure."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                found["memory/private_bytes"] = int(line.split()[1]) * 1024
    if device.type == "cuda":
        found["memory/gpu_allocated_bytes"] = torch.cuda.memory_allocated(device)
    return found
