"""One plain sentence from the ledger: where the time went, and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frugal import record

_FIT = ("data_wait", "train_step", "warmup", "validation", "checkpoint", "callbacks", "compile")
# Below these shares of the fit a bucket is no news: some waiting, validating and logging is what a training is.
_NOTABLE = {"data_wait": 0.15, "validation": 0.25, "checkpoint": 0.10, "callbacks": 0.25, "compile": 0.30}


def diagnose(
    ledger_s: Mapping[str, float], throughput: record.Throughput | None = None, hints: Mapping[str, Any] | None = None
) -> str:
    """The largest share of time that could be avoided, and a setting that may avoid it.

    Args:
        ledger_s: seconds by bucket.
        hints: settings by dotted key as they were (`data.workers`, `choices.logger`, ...) and `device` (cpu, cuda);
            advice that is already followed is not given again. Missing keys are fine.
    """
    seconds = {
        bucket: ledger_s.get(bucket, 0.0) for bucket in (*_FIT, "startup", "compress", "test", "measure", "lost")
    }
    wall = sum(ledger_s.values())
    fit = sum(seconds[bucket] for bucket in _FIT)
    if wall <= 0:
        return "No time was recorded."
    hints = hints or {}
    # Outside the fit: only where it is most of the run, since it is paid once.
    for bucket, share_of_wall in (("lost", 0.25), ("measure", 0.5), ("compress", 0.5), ("startup", 0.5)):
        if seconds[bucket] > max(fit, share_of_wall * wall):
            return f"{_percent(seconds[bucket] / wall)} of the run went to {_outside(bucket, hints)}."
    if fit <= 0:
        return "No training was recorded."
    over = {bucket: seconds[bucket] / fit for bucket, least in _NOTABLE.items() if seconds[bucket] / fit >= least}
    if over:
        worst = max(over, key=lambda bucket: over[bucket])
        return f"{_percent(over[worst])} of the training time went to {_avoidable(worst, fit, hints)}."
    busy = (seconds["train_step"] + seconds["warmup"]) / fit
    rate = f" at {throughput.samples_per_s:,.0f} samples/s" if throughput and throughput.samples_per_s else ""
    return f"{_percent(busy)} of the training time went to the training step{rate}: {_step_advice(hints)}."


def _avoidable(bucket: str, fit_s: float, hints: Mapping[str, Any]) -> str:
    if bucket == "data_wait":
        workers = int(hints.get("data.workers") or 0)
        batch = hints.get("data.batch_size")
        larger = f"a larger batch (data.batch_size={int(batch) * 2})" if batch else "a larger data.batch_size"
        more = f"data.workers={max(2, workers * 2)}"
        held = "no worker prepares batches ahead" if workers == 0 else f"{workers} workers do not keep up"
        return f"waiting for data: {held}; try {more} or {larger}"
    if bucket == "validation":
        every = int(hints.get("trainer.check_val_every_n_epoch") or 1)
        return (
            f"validation: it runs every {_ordinal(every)}; try trainer.check_val_every_n_epoch={max(2, every * 2)} "
            "or a larger data.eval_batch_size"
        )
    if bucket == "checkpoint":
        return f"writing checkpoints: {_rarer_checkpoints(fit_s, hints)}"
    if bucket == "callbacks":
        every = int(hints.get("trainer.log_every_n_steps") or 0)
        rarer = f"trainer.log_every_n_steps={max(50, every * 4)}"
        chosen = hints.get("logger", hints.get("choices.logger"))
        logger = " or logger=csv" if chosen not in ("csv", "none", None) else ""
        return f"logging, callbacks and the loop around the steps: try {rarer}{logger}, or larger batches"
    return "compilation: it pays in longer runs only; train for longer, or leave it out"


def _rarer_checkpoints(fit_s: float, hints: Mapping[str, Any]) -> str:
    """`last` comes by the clock or by steps, `best` after validations: the advice is for the one that comes oftener."""
    every_steps, every_s = hints.get("run.checkpoint_every_steps"), hints.get("run.checkpoint_every_s")
    if every_steps:
        return f"try run.checkpoint_every_steps={int(every_steps) * 4}"
    epochs = int(hints.get("trainer.max_epochs") or 0)
    every_epochs = int(hints.get("trainer.check_val_every_n_epoch") or 1)
    if every_s and epochs // every_epochs > 1 + fit_s / float(every_s):
        return (
            "the best so far is written after a validation; "
            f"perhaps try trainer.check_val_every_n_epoch={max(2, every_epochs * 2)}"
        )
    return f"try run.checkpoint_every_s={float(every_s) * 4:g}" if every_s else "try a larger run.checkpoint_every_s"


def _outside(bucket: str, hints: Mapping[str, Any]) -> str:
    if bucket == "startup":
        return "starting up (imports, data, building): it is paid once a process; sweep with -m, or train for longer"
    if bucket == "measure":
        quicker = "measure=none" if hints.get("measure.latency") == "quick" else "measure=none or measure=quick"
        return f"measuring latency: try {quicker}"
    if bucket == "compress":
        return "compressing: its figures stand under techniques"
    every_steps, every_s = hints.get("run.checkpoint_every_steps"), hints.get("run.checkpoint_every_s")
    if every_steps and int(every_steps) > 1:
        shorter = f"run.checkpoint_every_steps={max(1, int(every_steps) // 4)}"
    else:
        shorter = f"run.checkpoint_every_s={float(every_s) / 4:g}" if every_s else "a smaller run.checkpoint_every_s"
    return f"work that was lost when the run was cut off and had to be done again: try {shorter}"


def _step_advice(hints: Mapping[str, Any]) -> str:
    precision = str(hints.get("precision.mode") or "")
    if hints.get("device") == "cuda" and "16" not in precision:
        return "little to gain elsewhere; try precision=bf16, or larger batches"
    return "little to gain elsewhere; try larger batches or a smaller model"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _ordinal(every: int) -> str:
    return "epoch" if every == 1 else f"{every} epochs"
