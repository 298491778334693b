"""A Lightning profiler that charges each action to a bucket of the ledger.

Lightning calls `profile(action)` 18 to 54 times a training step. Here it is one dictionary look-up that returns a
ready-made context: with the ledger attached a step costs no more than with Lightning's own empty profiler.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch.profilers import Profiler

from frugal.measure.ledger import Charge, Ledger

# `setup`: before the first step. `evaluation` and `test`: inside those loops, whose data and steps are their own.
PHASES = ("setup", "warmup", "train", "evaluation", "test")
# Callback hooks that belong to what encloses them: to start-up, or to the checkpoint that is being written.
_ENCLOSED_HOOKS = {"setup", "on_fit_start", "on_load_checkpoint", "on_save_checkpoint", "prepare_data"}
_TRANSFER_HOOKS = {"batch_to_device", "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"}
_NOTHING: AbstractContextManager[None] = nullcontext()


def bucket_of(action: str, phase: str, checkpoint_callbacks: frozenset[str] = frozenset()) -> str | None:
    """The bucket of a Lightning action such as `[Callback]EarlyStopping.on_train_batch_end`; None inherits.

    Args:
        checkpoint_callbacks: state keys of the callbacks that write checkpoints.
    """
    if phase == "test":
        return None
    if action == "save_checkpoint":
        return "checkpoint"
    owner, _, hook = action.rpartition(".")
    if owner.startswith("[Callback]"):
        if hook in _ENCLOSED_HOOKS or phase == "setup":
            return None
        # What such a callback does every batch is a look at the clock: if it saves, that is an action of its own.
        saves = owner.removeprefix("[Callback]") in checkpoint_callbacks and not hook.startswith("on_train_batch")
        return "checkpoint" if saves else "callbacks"
    if phase == "evaluation":
        return None
    if hook == "train_dataloader":
        return "startup" if phase == "setup" else "data_wait"
    if action.endswith("train_dataloader_next"):
        return "data_wait"
    if action == "run_training_batch" or hook in _TRANSFER_HOOKS or hook == "lr_scheduler_step":
        return "warmup" if phase == "warmup" else "train_step"
    return None


class LedgerProfiler(Profiler):
    """Charges Lightning's actions to `ledger`; unknown actions inherit the enclosing bucket.

    Args:
        inner: another profiler (PyTorchProfiler, ...) that is told everything too.
    """

    def __init__(self, ledger: Ledger, inner: Profiler | None = None) -> None:
        super().__init__()
        self.ledger = ledger
        self.inner = inner
        self.checkpoint_callbacks: frozenset[str] = frozenset()
        self.after_warmup_batch: Callable[[], None] | None = None
        self._memos = {phase: _Memo(self, phase) for phase in PHASES}
        self._phase = "setup"
        self._memo = self._memos["setup"]

    @property
    def phase(self) -> str:
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self._memo = self._memos[phase]
        self._phase = phase

    def profile(self, action_name: str) -> Any:
        return self._memo[action_name]

    def start(self, action_name: str) -> None:
        self._memo[action_name].__enter__()

    def stop(self, action_name: str) -> None:
        self._memo[action_name].__exit__(None, None, None)

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        super().setup(stage, local_rank, log_dir)
        if self.inner is not None:
            self.inner._lightning_module = getattr(self, "_lightning_module", None)  # type: ignore[attr-defined]
            self.inner.setup(stage, local_rank, log_dir)

    def teardown(self, stage: str | None) -> None:
        super().teardown(stage)
        if getattr(self, "inner", None) is not None:
            self.inner.teardown(stage)  # type: ignore[union-attr]

    def summary(self) -> str:
        return self.inner.summary() if self.inner is not None else ""

    def describe(self) -> None:
        if self.inner is not None:
            self.inner.describe()


class _Memo(dict[str, Any]):
    """Action name to ready-made context, for one phase."""

    def __init__(self, profiler: LedgerProfiler, phase: str) -> None:
        super().__init__()
        self._profiler = profiler
        self._phase = phase

    def __missing__(self, action: str) -> Any:
        profiler = self._profiler
        bucket = bucket_of(action, self._phase, profiler.checkpoint_callbacks)
        context: Any = _NOTHING if bucket is None else profiler.ledger.charge(bucket)
        if profiler.inner is not None:
            context = _WithInner(context, profiler.inner, action)
        if self._phase == "warmup" and action == "run_training_batch":
            context = _WarmupBatch(context, profiler)
        self[action] = context
        return context


class _WithInner:
    """The ledger's context around the inner profiler's start and stop."""

    def __init__(self, context: Charge, inner: Profiler, action: str) -> None:
        self._context = context
        self._inner = inner
        self._action = action

    def __enter__(self) -> None:
        self._context.__enter__()
        self._inner.start(self._action)

    def __exit__(self, *error: Any) -> None:
        try:
            self._inner.stop(self._action)
        finally:
            self._context.__exit__(None, None, None)


class _WarmupBatch:
    """The first batches: after each, the profiler's owner may end the warm-up. Later batches pay nothing for it."""

    def __init__(self, context: Any, profiler: LedgerProfiler) -> None:
        self._context = context
        self._profiler = profiler

    def __enter__(self) -> None:
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(None, None, None)
        if self._profiler.after_warmup_batch is not None:
            self._profiler.after_warmup_batch()
