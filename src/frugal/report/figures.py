"""The figures of a report: where each stands in a record, how it is shown, and which way is better.

Definitions are in `docs/measurement.md`. CSV holds all of them raw (bytes, seconds, fractions); tables show some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from frugal.record import Latency, Record
from frugal.report.collect import is_evaluation, number
from frugal.report.units import significant

# What making the artefact took: without start-up, validation, checkpoints, tests, measuring, and work lost to a kill.
# A bucket of a technique's own (selection, distillation, ...) is charged to the run too.
NOT_TRAINING = frozenset({"startup", "validation", "checkpoint", "test", "measure", "lost", "other"})


@dataclass(frozen=True)
class Figure:
    """One figure. `key` is its name in CSV, `title` and `unit` its head in tables, `show` writes a raw value there."""

    key: str
    title: str
    unit: str
    value: Callable[[Record], float | None]
    show: Callable[[float], str] = significant
    higher: bool = False  # is more better
    rank: int = 0  # shown in tables; a narrow terminal keeps the highest. 0: in CSV alone


def _section(section: str, name: str) -> Callable[[Record], float | None]:
    return lambda record: number(getattr(getattr(record, section), name))


def _quality(name: str) -> Callable[[Record], float | None]:
    return lambda record: number(record.quality.get(name))


def _in(unit: float, digits: int = 3) -> Callable[[float], str]:
    return lambda value: significant(value / unit, digits)


def as_percent(value: float) -> str:
    return f"{100 * value:.2f}"


def four_digits(value: float) -> str:
    return significant(value, 4)


def train_seconds(record: Record) -> float | None:
    """Seconds of training: the ledger without what is around it (`NOT_TRAINING`). None where nothing was trained."""
    if is_evaluation(record):  # its ledger has the buckets of a training too, at zero
        return None
    buckets = [number(s) or 0.0 for name, s in record.time.ledger_s.items() if name not in NOT_TRAINING]
    return sum(buckets) if buckets else None


def artefact_latency(record: Record, batch: int = 1) -> Latency | None:
    """The row of the backend that the artefact is made for: named by a technique, else really converted, else eager."""
    rows = [row for row in record.latency if row.batch == batch and number(row.p50_ms) is not None]
    named = [figures.get("backend") for figures in record.techniques.values() if isinstance(figures, dict)]
    for wanted in reversed([name for name in named if name]):
        for row in rows:
            if row.backend == wanted:
                return row
    for fits in (lambda row: row.status == "converted", lambda row: row.backend == "eager", lambda row: True):
        for row in rows:
            if fits(row):
                return row
    return None


def _latency(percentile: str) -> Callable[[Record], float | None]:
    def value(record: Record) -> float | None:
        row = artefact_latency(record)
        return None if row is None else number(getattr(row, percentile))

    return value


def lower_is_better(metric: str) -> bool:
    """Whether a metric of this name is a loss or an error."""
    name = metric.rpartition("/")[2].lower()
    return any(
        word in name for word in ("loss", "error", "perplexity", "nats", "bits", "mse", "mae", "rmse", "wer", "cer")
    )


def is_share(metric: str) -> bool:
    return any(word in metric.lower() for word in ("accuracy", "error", "f1", "precision", "recall", "auroc"))


def quality_figure(metric: str, rank: int = 99) -> Figure:
    """A figure of `record.quality` by its name there (`test/accuracy`)."""
    share = is_share(metric)
    title = metric.removeprefix("test/")
    show = as_percent if share else four_digits
    return Figure(metric, title, "%" if share else "", _quality(metric), show, not lower_is_better(metric), rank)


ACCURACY = quality_figure("test/accuracy", rank=99)
LOSS = quality_figure("test/loss", rank=50)
BITS = quality_figure("test/bits_per_byte", rank=50)
TRAIN = Figure("train_s", "train", "s", train_seconds, rank=90)
FILE = Figure("file_bytes", "file", "kB", _section("size", "file_bytes"), _in(1e3, 4), rank=80)
LATENCY = Figure("latency_p50_ms", "latency", "ms", _latency("p50_ms"), rank=70)
COSTS = {"time": TRAIN, "size": FILE, "latency": LATENCY}

FIGURES = (
    ACCURACY,
    LOSS,
    BITS,
    TRAIN,
    Figure("wall_s", "wall", "s", _section("time", "wall_s"), rank=40),
    Figure("to_target_s", "to target", "s", _section("time", "to_target_s"), rank=85),
    Figure("samples_per_s", "samples/s", "", _section("throughput", "samples_per_s"), higher=True, rank=60),
    Figure("tokens_per_s", "tokens/s", "", _section("throughput", "tokens_per_s"), higher=True, rank=59),
    Figure("peak_private_bytes", "memory", "MB", _section("memory", "peak_private_bytes"), _in(1e6), rank=55),
    Figure(
        "gpu_peak_allocated_bytes", "GPU mem", "MB", _section("memory", "gpu_peak_allocated_bytes"), _in(1e6), rank=56
    ),
    FILE,
    LATENCY,
    Figure("latency_p90_ms", "p90", "ms", _latency("p90_ms")),
    Figure("latency_p99_ms", "p99", "ms", _latency("p99_ms")),
    Figure("parameters", "parameters", "", _section("size", "parameters")),
    Figure("nonzero_parameters", "non-zero", "", _section("size", "nonzero_parameters")),
    Figure("compression_ratio", "ratio", "×", _section("size", "compression_ratio"), higher=True),
    Figure("sparsity_prunable", "sparsity", "", _section("sparsity", "prunable"), higher=True),
    Figure("sparsity_overall", "sparsity", "", _section("sparsity", "overall"), higher=True),
    Figure("flops_per_step", "FLOPs/step", "", _section("compute", "flops_per_step")),
    Figure("flops_total", "FLOPs", "", _section("compute", "flops_total")),
    Figure("mfu", "MFU", "%", _section("compute", "mfu"), as_percent, higher=True),
    Figure("peak_rss_bytes", "resident", "MB", _section("memory", "peak_rss_bytes"), _in(1e6)),
    Figure("gpu_peak_reserved_bytes", "GPU reserved", "MB", _section("memory", "gpu_peak_reserved_bytes"), _in(1e6)),
    Figure("energy_train_j", "energy", "J", _section("energy", "train_j")),
)
