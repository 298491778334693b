"""Meters: Lightning callbacks and functions that say what a run cost. They work in any Lightning project:

    Trainer(callbacks=[TimeLedger(), Throughput(), Memory()])

Imports nothing of the rest of Frugal but `record` and `errors`. Names load on first use, so that a command line can
start the `Ledger` before torch is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frugal.measure.diagnosis import diagnose as diagnose
    from frugal.measure.energy import Energy as Energy
    from frugal.measure.flops import compute_figures as compute_figures
    from frugal.measure.flops import count_flops as count_flops
    from frugal.measure.flops import mfu as mfu
    from frugal.measure.flops import peak_flops as peak_flops
    from frugal.measure.heartbeat import Heartbeat as Heartbeat
    from frugal.measure.latency import measure_latency as measure_latency
    from frugal.measure.ledger import BUCKETS as BUCKETS
    from frugal.measure.ledger import Ledger as Ledger
    from frugal.measure.ledger import credit_cut_off as credit_cut_off
    from frugal.measure.memory import Memory as Memory
    from frugal.measure.meter import Meter as Meter
    from frugal.measure.profiler import LedgerProfiler as LedgerProfiler
    from frugal.measure.size import size_figures as size_figures
    from frugal.measure.size import sparsity_figures as sparsity_figures
    from frugal.measure.throughput import Throughput as Throughput
    from frugal.measure.throughput import TimeToTarget as TimeToTarget
    from frugal.measure.time_ledger import TimeLedger as TimeLedger
    from frugal.measure.time_ledger import ledger_of as ledger_of

_HOMES = {
    "BUCKETS": "ledger",
    "Energy": "energy",
    "Heartbeat": "heartbeat",
    "Ledger": "ledger",
    "LedgerProfiler": "profiler",
    "Memory": "memory",
    "Meter": "meter",
    "Throughput": "throughput",
    "TimeLedger": "time_ledger",
    "TimeToTarget": "throughput",
    "compute_figures": "flops",
    "count_flops": "flops",
    "credit_cut_off": "ledger",
    "diagnose": "diagnosis",
    "ledger_of": "time_ledger",
    "measure_latency": "latency",
    "mfu": "flops",
    "peak_flops": "flops",
    "size_figures": "size",
    "sparsity_figures": "size",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
