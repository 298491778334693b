"""Why a figure is absent: called before the record of any end is saved. Needs no torch, as a refused run has none."""

from __future__ import annotations

import math
from typing import Any

from frugal.record import Record

# What only a training gives; an evaluation has the rest.
_OF_TRAINING = {"throughput", "compute", "memory", "energy"}
_TRAINING_FIGURES = {"time.to_target_s", "time.to_target_train_s", "fingerprint.effective_batch"}
_ENDED = {
    "failed": "the run failed before it was measured",
    "interrupted": "the run was interrupted before it was measured",
    "refused": "the run was refused",
}


def explain_absent(record: Record, trains: bool = True) -> None:
    """Give every figure that is None or not finite a reason, unless it has one, and drop those of figures that are
    there.

    Args:
        trains: whether the run's verb is one that trains; an evaluation is not.
    """
    for key, value in figures(record).items():
        if isinstance(value, float) and not math.isfinite(value):
            record.absent[key] = f"it was not finite ({value})"
        elif value is not None:
            record.absent.pop(key, None)
        else:
            record.absent.setdefault(key, _reason(record, key, trains))
    if record.latency:
        record.absent.pop("latency", None)
    else:
        record.absent.setdefault("latency", _reason(record, "latency", trains))
    if record.energy.train_j is None:
        record.energy.reason = record.absent["energy.train_j"]


def figures(record: Record) -> dict[str, Any]:
    """Every figure by its dotted key; latency, a list of rows, apart."""
    sections = ("fingerprint", "time", "throughput", "compute", "memory", "size", "sparsity")
    found = {
        f"{section}.{name}": value for section in sections for name, value in vars(getattr(record, section)).items()
    }
    found["energy.train_j"] = record.energy.train_j
    return found | {f"quality.{name}": value for name, value in record.quality.items()}


def _reason(record: Record, key: str, trains: bool) -> str:
    section = key.partition(".")[0]
    if section == "quality":  # read back from JSON, which has no word for it
        return "it was not finite"
    if not trains and (section in _OF_TRAINING or key in _TRAINING_FIGURES):
        return "an evaluation does not train"
    return _ENDED.get(record.status, "it was not measured")
