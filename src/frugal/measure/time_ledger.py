"""`TimeLedger`: the callback that puts the ledger under a Lightning Trainer, and takes it away again.

What Lightning's profiler hooks see is charged by `LedgerProfiler`; logger calls, whole evaluation loops and the rest
of the training loop they never see, so those methods are replaced on the instances, and put back at the end.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler

from frugal.measure.heartbeat import Heartbeat
from frugal.measure.ledger import Ledger
from frugal.measure.meter import Meter, warmup_of
from frugal.measure.profiler import LedgerProfiler


class TimeLedger(Meter):
    """Splits a run's wall time into the ledger's buckets. Costs no Lightning hook per step.

    Args:
        ledger: the clock to charge; by default one that began with the process.
        warmup_steps: optimizer steps of each process whose time is `warmup`, see `warmup_of`.
        heartbeat: a file for signs of life, so that a resume knows what a kill took away.
    """

    def __init__(self, ledger: Ledger | None = None, warmup_steps: int = 10, heartbeat: str | None = None) -> None:
        super().__init__()
        self.ledger = ledger if ledger is not None else Ledger.since_process_start()
        self.warmup_steps = warmup_steps
        self.heartbeat = heartbeat
        self._beats: Heartbeat | None = None
        self._patches = _Patches()

    def figures(self) -> dict[str, float]:
        """Seconds in every bucket so far."""
        return self.ledger.seconds()

    def attach(self, trainer: Any) -> None:
        """Put the ledger under `trainer`, once: in `setup`, or when the first meter needs the clock."""
        if isinstance(trainer.profiler, LedgerProfiler) and trainer.profiler.ledger is self.ledger:
            if self._patches.open:
                return
            profiler = trainer.profiler  # the user's own: Trainer(profiler=LedgerProfiler(ledger))
        else:
            inner = None if isinstance(trainer.profiler, PassThroughProfiler) else trainer.profiler
            profiler = LedgerProfiler(self.ledger, inner)
            self._patches.replace(trainer, "profiler", profiler)
        profiler.checkpoint_callbacks = frozenset(
            callback.state_key for callback in trainer.callbacks if isinstance(callback, Checkpoint)
        )
        profiler.phase = "setup"
        self._profiler = profiler
        self._wrap_loops(trainer)
        for logger in trainer.loggers:
            self._wrap_logger(logger)
        self._watch_compilation()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.attach(trainer)
        if stage != "fit":
            return
        self.ledger.base("startup")
        if self.heartbeat is not None and trainer.is_global_zero and self._beats is None:
            self._beats = Heartbeat(self.heartbeat, self.ledger)
            self._beats.step = lambda: trainer.global_step
            self._beats.start()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last = trainer.global_step + warmup_of(trainer, self.warmup_steps)
        profiler = self._profiler

        def end_warmup() -> None:
            if trainer.global_step >= last:
                profiler.phase = "train"

        profiler.after_warmup_batch = end_warmup
        profiler.phase = "warmup" if trainer.global_step < last else "train"

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._detach(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._detach(trainer)

    def state_dict(self) -> dict[str, Any]:
        return self.ledger.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ledger.load_state_dict(state_dict)

    def _detach(self, trainer: pl.Trainer) -> None:
        if not self._patches.open:
            return
        self._patches.undo()
        if self._beats is not None:
            self._beats.stop()
            self._beats = None
        if trainer.state.fn == "fit":
            self.ledger.base("other")

    def _wrap_loops(self, trainer: pl.Trainer) -> None:
        fit = trainer.fit_loop
        charge = self.ledger.charge
        # The rest of the loop: whatever runs between the actions that the profiler sees.
        for name in ("on_advance_start", "advance", "on_advance_end", "on_run_end", "teardown"):
            self._wrap(fit, name, lambda: charge("callbacks"))
        self._wrap(trainer.strategy, "teardown", lambda: charge("callbacks"))
        # Both create the loader's iterator: workers start here, and unsized loaders fetch their first batch.
        self._wrap(fit, "setup_data", lambda: charge("data_wait"))
        self._wrap(fit.epoch_loop, "on_run_start", lambda: charge("data_wait"))
        self._wrap(fit.epoch_loop.val_loop, "run", lambda: self._evaluation("validation", "evaluation"))
        self._wrap(trainer.validate_loop, "run", lambda: self._evaluation("validation", "evaluation"))
        self._wrap(trainer.validate_loop, "teardown", lambda: charge("validation"))
        self._wrap(trainer.test_loop, "run", lambda: self._evaluation("test", "test"))
        self._wrap(trainer.test_loop, "teardown", lambda: charge("test"))

    def _wrap(self, owner: Any, name: str, context: Callable[[], AbstractContextManager[None]]) -> None:
        function = getattr(owner, name)
        ledger = self.ledger

        @functools.wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            depth = ledger.depth()
            try:
                with context():
                    return function(*args, **kwargs)
            finally:
                ledger.unwind(depth)

        self._patches.replace(owner, name, charged)

    def _evaluation(self, bucket: str, phase: str) -> _EvaluationPhase:
        return _EvaluationPhase(self._profiler, self.ledger.evaluate(bucket), phase)

    def _wrap_logger(self, logger: Logger) -> None:
        def in_loop() -> AbstractContextManager[None]:
            # While the test loop runs, its logging is the test's.
            return self.ledger.charge("test" if self._profiler.phase == "test" else "callbacks")

        self._wrap(logger, "log_metrics", in_loop)
        self._wrap(logger, "save", in_loop)
        # Lightning finalizes loggers after every callback's teardown: this one wrapper outlives `_detach` by one call.
        patches = _Patches()
        finalize = logger.finalize

        @functools.wraps(finalize)
        def charged(*args: Any, **kwargs: Any) -> Any:
            patches.undo()
            with self.ledger.charge("callbacks"):
                return finalize(*args, **kwargs)

        patches.replace(logger, "finalize", charged)

    def _watch_compilation(self) -> None:
        """Charge torch.compile's work, which happens inside the first steps, to `compile`."""
        dynamo = sys.modules.get("torch._dynamo.callback")
        handler = getattr(dynamo, "callback_handler", None)
        if handler is None:
            return
        ledger = self.ledger

        def begin(*_: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                ledger.push("compile")

        def end(*_: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                ledger.pop()

        handler.register_start_callback(begin)
        handler.register_end_callback(end)

        def forget() -> None:
            with contextlib.suppress(ValueError):  # torch._dynamo.reset() has forgotten them already
                handler.remove_start_callback(begin)
                handler.remove_end_callback(end)

        self._patches.later(forget)


class _EvaluationPhase:
    """An evaluation loop: its own bucket on the ledger, its own rules in the profiler."""

    def __init__(self, profiler: LedgerProfiler, span: AbstractContextManager[None], phase: str) -> None:
        self._profiler = profiler
        self._span = span
        self._phase = phase

    def __enter__(self) -> None:
        self._before = self._profiler.phase
        self._profiler.phase = self._phase
        self._span.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._span.__exit__(None, None, None)
        self._profiler.phase = self._before


class _Patches:
    """Instance attributes that were replaced, to be put back in reverse order."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    @property
    def open(self) -> bool:
        return bool(self._undo)

    def replace(self, owner: Any, name: str, value: Any) -> None:
        own = vars(owner)
        if name in own:
            before = own[name]
            self.later(lambda: setattr(owner, name, before))
        else:
            self.later(lambda: delattr(owner, name))
        setattr(owner, name, value)

    def later(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()


def ledger_of(trainer: Any) -> Ledger:
    """The one clock of `trainer`: that of its TimeLedger, which is added if there is none, so that meters share it."""
    for callback in trainer.callbacks:
        if isinstance(callback, TimeLedger):
            callback.attach(trainer)
            return callback.ledger
    own = trainer.profiler.ledger if isinstance(trainer.profiler, LedgerProfiler) else None
    added = TimeLedger(own)
    trainer.callbacks.append(added)
    added.attach(trainer)
    return added.ledger
