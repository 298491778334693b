"""The record: one typed `record.json` a run, whatever techniques it used. Every table, plot and dashboard is a view
of it.

Definitions are in `docs/measurement.md`. A figure that cannot be had is None and its reason stands in `absent`
under the figure's dotted key. Imports nothing heavy: readers of records need no torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from frugal.errors import RunError

SCHEMA = 1
FILE_NAME = "record.json"
CONFUSION = "confusion.csv"  # beside it, of a classifier: rows true, columns predicted, on the test set
TOKENIZER = "tokenizer.json"  # beside it, of a text run
Status = Literal["running", "completed", "failed", "interrupted", "refused"]


@dataclass
class RunInfo:
    name: str = ""
    hash: str = ""
    experiment: str = ""
    seed: int | None = None
    command: str = ""
    started_at: str = ""  # ISO 8601, UTC
    git_commit: str | None = None
    git_dirty: bool | None = None
    resumed: int = 0  # times
    resumed_at_step: list[int] = field(default_factory=list)
    steps_executed: int = 0  # optimizer steps really done, redone ones included
    source_sha256: str = ""  # the package's and the user's source files


@dataclass
class Fingerprint:
    """What must agree between two runs before their figures are compared."""

    device: str = ""
    threads: int | None = None
    python: str = ""
    torch: str = ""
    lightning: str = ""
    frugal: str = ""
    data_sha256: str = ""
    precision: str = ""  # of weights and products, as they really were
    effective_batch: int | None = None


@dataclass
class Time:
    wall_s: float | None = None
    ledger_s: dict[str, float] = field(default_factory=dict)
    to_target_s: float | None = None  # of the wall time
    to_target_train_s: float | None = None  # without start-up, validation and checkpoints


@dataclass
class Throughput:
    samples_per_s: float | None = None
    samples_per_s_median: float | None = None
    samples_per_s_p10: float | None = None
    samples_per_s_p90: float | None = None
    tokens_per_s: float | None = None
    steps_counted: int = 0


@dataclass
class Compute:
    flops_per_step: int | None = None
    flops_total: int | None = None
    mfu: float | None = None  # a fraction of the peak, 0 to 1
    peak_flops: float | None = None  # per second, for the compute dtype
    peak_source: str | None = None
    flops_per_token: int | None = None  # forward and backward, of a whole block


@dataclass
class Memory:
    peak_private_bytes: int | None = None
    peak_rss_bytes: int | None = None
    private_before_bytes: int | None = None
    rss_before_bytes: int | None = None
    gpu_peak_allocated_bytes: int | None = None
    gpu_peak_reserved_bytes: int | None = None
    oom_count: int | None = None


@dataclass
class Size:
    parameters: int | None = None
    nonzero_parameters: int | None = None
    file_bytes: int | None = None
    dense_fp32_bytes: int | None = None
    compression_ratio: float | None = None


@dataclass
class Sparsity:
    prunable: float | None = None  # zeros over all prunable weights
    overall: float | None = None  # zeros over all parameters


@dataclass
class Latency:
    """One row: one backend at one batch size."""

    backend: str
    batch: int
    threads: int
    status: Literal["dense", "masked", "simulated", "converted"]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    speedup_theoretical: float | None = None
    speedup_realized: float | None = None
    tokens: int | None = None  # of each sample, where they are text


@dataclass
class Energy:
    train_j: float | None = None
    reason: str | None = None


@dataclass
class Record:
    """What one run was, did, reached and cost."""

    status: Status = "running"
    error: str | None = None  # one line
    run: RunInfo = field(default_factory=RunInfo)
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)  # what was read, cleaned away and encoded; empty for images
    quality: dict[str, float] = field(default_factory=dict)  # "test/accuracy": fractions, "test/loss": nats
    time: Time = field(default_factory=Time)
    throughput: Throughput = field(default_factory=Throughput)
    compute: Compute = field(default_factory=Compute)
    memory: Memory = field(default_factory=Memory)
    size: Size = field(default_factory=Size)
    sparsity: Sparsity = field(default_factory=Sparsity)
    latency: list[Latency] = field(default_factory=list)
    energy: Energy = field(default_factory=Energy)
    budget: dict[str, Any] = field(default_factory=dict)  # unit, amount, spent, steps; empty without one
    techniques: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # dotted key of a figure that is None -> the reason
    diagnosis: str | None = None  # where the time went, in one sentence
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, `schema` first; NaN and infinity become None, since JSON has no word for them."""
        plain = dataclasses.asdict(self)
        return {"schema": plain.pop("schema"), **_finite(plain)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Record:
        """Keys that this version does not know are left out, so that older programs read newer records."""
        if plain.get("schema") != SCHEMA:
            raise RunError(f"record has schema {plain.get('schema')!r}, this version of Frugal reads {SCHEMA}")
        sections = {
            "run": RunInfo,
            "fingerprint": Fingerprint,
            "time": Time,
            "throughput": Throughput,
            "compute": Compute,
            "memory": Memory,
            "size": Size,
            "sparsity": Sparsity,
            "energy": Energy,
        }
        values = _known(cls, plain)
        for key, section in sections.items():
            values[key] = section(**_known(section, values.get(key) or {}))
        values["latency"] = [Latency(**_known(Latency, row)) for row in values.get("latency") or []]
        return cls(**values)

    def write(self, folder: Path, sync: bool = True) -> Path:
        """Write `record.json` into `folder`: whole or not at all."""
        path = Path(folder) / FILE_NAME
        write_atomic(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", sync)
        return path

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record from its file or from its run's folder."""
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except FileNotFoundError:
            raise RunError(f"{path}: no record here; give a run's folder or its {FILE_NAME}") from None
        except (ValueError, TypeError, AttributeError) as error:  # no JSON, no text, or JSON of something else
            raise RunError(f"{path}: not a record ({error})") from None


def write_atomic(path: Path, content: str | bytes | memoryview, sync: bool = True) -> None:
    """Write beside, sync, rename: a reader or a kill at any moment sees the old file or the new one, never a part.

    Without `sync` that holds for a kill of the process, but not where the whole machine stops within seconds.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _known(cls: type, plain: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls)}
    return {key: value for key, value in plain.items() if key in names}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
