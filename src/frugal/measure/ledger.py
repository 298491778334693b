"""One clock for a whole run: wall time split into buckets that sum to it. Needs neither torch nor Lightning.

The ledger is a stack of buckets; each nanosecond belongs to the bucket on top (self-time), so nothing counts twice
and the sum closes by construction. What each bucket holds is defined in `docs/measurement.md`.
Only the main thread may switch buckets; `wall_s` may be read from any thread.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any

from frugal.errors import FrugalError

BUCKETS = (
    "startup",
    "distillation",
    "compile",
    "warmup",
    "data_wait",
    "train_step",
    "validation",
    "checkpoint",
    "callbacks",
    "compress",
    "test",
    "measure",
    "lost",
    "other",
)
# What throughput counts: everything in a training loop but warm-up's own rule, validation, checkpoints and compilation.
LOOP_BUCKETS = ("data_wait", "train_step", "warmup", "callbacks", "other")

_IMPORTED_NS = perf_counter_ns()


class Charge:
    """A context that charges its time to one bucket. Reusable and reentrant: the ledger holds all state."""

    __slots__ = ("_bucket", "_ledger")

    def __init__(self, ledger: Ledger, bucket: str) -> None:
        self._ledger = ledger
        self._bucket = bucket

    def __enter__(self) -> None:
        self._ledger.push(self._bucket)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ledger.pop()


class Ledger:
    """Where the wall time of a run went.

    Args:
        start_age_s: seconds that had passed before this object was made; they are charged to `startup`.
    """

    def __init__(self, start_age_s: float = 0.0) -> None:
        age_ns = int(start_age_s * 1e9)
        self.id = uuid.uuid4().hex  # tells a resume in another process from a second fit on this very clock
        self.start = "creation of the ledger"
        self._ns = dict.fromkeys(BUCKETS, 0)
        self._ns["startup"] = age_ns
        self._stack = ["startup"]
        self._since = perf_counter_ns()
        self._began = self._since - age_ns
        self._credited = dict.fromkeys(BUCKETS, 0.0)
        self._credited_s = 0.0
        self._evaluation_ns = 0  # time of LOOP_BUCKETS inside evaluation loops
        self._carried_s = 0.0

    @classmethod
    def since_process_start(cls) -> Ledger:
        """A ledger that began with the process (Linux), else with the import of this module; `start` says which."""
        age_s = process_age_s()
        if age_s is not None:
            ledger = cls(age_s)
            ledger.start = "start of the process"
        else:
            ledger = cls((perf_counter_ns() - _IMPORTED_NS) * 1e-9)
            ledger.start = "import of frugal.measure: this system does not tell when the process started"
        return ledger

    # Switching. `push` and `pop` run some fifty times a training step: they must stay this short.
    def push(self, bucket: str) -> None:
        now = perf_counter_ns()
        stack = self._stack
        self._ns[stack[-1]] += now - self._since
        self._since = now
        stack.append(bucket)

    def pop(self) -> None:
        stack = self._stack
        if len(stack) == 1:
            return  # a stop without its start, as an exception between the two leaves it
        now = perf_counter_ns()
        self._ns[stack.pop()] += now - self._since
        self._since = now

    def charge(self, bucket: str) -> Charge:
        """`with ledger.charge("compress"):` charges the block to `compress`."""
        if bucket not in self._ns:
            raise FrugalError(f"ledger has no bucket {bucket!r}; it has {', '.join(BUCKETS)}")
        return Charge(self, bucket)

    def base(self, bucket: str) -> None:
        """From now on, time that nothing charges belongs to `bucket`: `startup` at first, `other` once that is over."""
        if bucket not in self._ns:
            raise FrugalError(f"ledger has no bucket {bucket!r}; it has {', '.join(BUCKETS)}")
        self._settle()
        self._stack[0] = bucket

    def depth(self) -> int:
        return len(self._stack)

    def unwind(self, depth: int) -> None:
        """Pop back to `depth`, which `depth()` gave: what an exception left on the stack goes with it."""
        self._settle()
        del self._stack[max(depth, 1) :]

    # Reading
    def seconds(self) -> dict[str, float]:
        """Seconds in every bucket, earlier parts of a cut-off run included; they sum to `wall_s()`."""
        self._settle()
        return {bucket: ns * 1e-9 + self._credited[bucket] for bucket, ns in self._ns.items()}

    def wall_s(self) -> float:
        return (perf_counter_ns() - self._began) * 1e-9 + self._credited_s

    def fit_s(self) -> float:
        """Seconds of training so far: data, steps, warm-up and the rest of the loop."""
        seconds = self.seconds()
        return sum(seconds[bucket] for bucket in LOOP_BUCKETS if bucket != "other") - self._evaluation_ns * 1e-9

    def loop_ns(self) -> int:
        """Nanoseconds of this process in the training loop proper: without validation, whatever ran inside it,
        checkpoints and compilation. Throughput is counted on differences of this clock."""
        self._settle()
        return sum(self._ns[bucket] for bucket in LOOP_BUCKETS) - self._evaluation_ns

    def evaluate(self, bucket: str) -> EvaluationSpan:
        """Like `charge`, for a whole evaluation loop: logging inside it is no part of the training loop's clock."""
        self.charge(bucket)
        return EvaluationSpan(self, bucket)

    # Resuming
    def credit(self, seconds: Mapping[str, float]) -> None:
        """Add an earlier part of a run that was cut off."""
        for bucket, value in seconds.items():
            self._credited[bucket if bucket in self._credited else "other"] += value
            self._credited_s += value

    def carry(self, wall_s: float) -> None:
        """Add the whole of a run that was cut off as `lost`; `recover` later moves what a checkpoint saved."""
        self.credit({"lost": wall_s})
        self._carried_s += wall_s

    def recover(self, checkpoint_s: Mapping[str, float]) -> None:
        """Add what a checkpoint knows of the earlier part; of what `carry` brought, only the rest stays lost."""
        self.credit({"lost": -self._carried_s})
        self.credit(credit_cut_off(checkpoint_s, self._carried_s))
        self._carried_s = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.id, "seconds": self.seconds()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the seconds of a checkpoint, once; a checkpoint of this very clock adds nothing."""
        if state["id"] == self.id:
            return
        self.recover(state["seconds"])
        self.id = state["id"]  # the same run goes on: a second load of its checkpoints adds nothing

    def _settle(self) -> None:
        now = perf_counter_ns()
        self._ns[self._stack[-1]] += now - self._since
        self._since = now

    def _loop_buckets_ns(self) -> int:
        self._settle()
        return sum(self._ns[bucket] for bucket in LOOP_BUCKETS)


class EvaluationSpan:
    """One evaluation loop on the ledger; an inner span counts with its outer one."""

    def __init__(self, ledger: Ledger, bucket: str) -> None:
        self._ledger = ledger
        self._bucket = bucket

    def __enter__(self) -> None:
        ledger = self._ledger
        self._depth = ledger.depth()
        ledger.push(self._bucket)
        self._loop_ns = ledger._loop_buckets_ns()
        self._inner_ns = ledger._evaluation_ns

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ledger = self._ledger
        ledger._evaluation_ns = self._inner_ns + ledger._loop_buckets_ns() - self._loop_ns
        ledger.unwind(self._depth)


def credit_cut_off(checkpoint_s: Mapping[str, float], heartbeat_wall_s: float) -> dict[str, float]:
    """What an earlier, cut-off part of a run adds to the next one's ledger.

    Args:
        checkpoint_s: the ledger's seconds by bucket as the checkpoint holds them; empty without a checkpoint.
        heartbeat_wall_s: wall seconds that the cut-off part had reached at its last sign of life.

    Returns the checkpoint's buckets, and in `lost` also what lies between the checkpoint and the last sign of life:
    it is done again. A heartbeat older than the checkpoint takes nothing away.
    """
    credit = {bucket: float(value) for bucket, value in checkpoint_s.items()}
    beyond = max(0.0, heartbeat_wall_s - sum(credit.values()))
    credit["lost"] = credit.get("lost", 0.0) + beyond
    return credit


def process_age_s() -> float | None:
    """Seconds since this process started: CLOCK_BOOTTIME minus field 22 of `/proc/self/stat`. None off Linux."""
    try:
        # The second field is the program's name in parentheses and may hold spaces: count from the last ")".
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, AttributeError, ValueError, IndexError):
        return None
    return age_s if age_s >= 0 else None
