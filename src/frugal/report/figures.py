"""The figures of a report: where each stands in a record, how it is shown, and which way is better.

Definitions are in `docs/measurement.md`. CSV holds all of them raw (bytes, seconds, fractions); tables show some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from frugal.record import Latency, Record
from frugal.report.collect import is_evaluation, number
from frugal.report.units import si, significant

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
    rank: int = 0  # shown in tables; a narrow terminal keeps the highest. 0: in CSV, and on the page where asked for
    per: float = 1.0  # raw units in one that is shown: 1000 bytes in a kB
    at: str = ""  # where it stands in a record; the reason for its absence stands in `absent` under this key


def _quality(name: str) -> Callable[[Record], float | None]:
    return lambda record: number(record.quality.get(name))


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
    higher, per = not lower_is_better(metric), 0.01 if share else 1.0
    return Figure(metric, title, "%" if share else "", _quality(metric), show, higher, rank, per, f"quality.{metric}")


def _figure(
    key: str,
    title: str,
    unit: str,
    at: str,
    *,
    higher: bool = False,
    rank: int = 0,
    per: float = 1.0,
    digits: int = 3,
    show: Callable[[float], str] | None = None,
) -> Figure:
    """One that stands in the record under `at` (section.name)."""
    section, name = at.split(".")
    return Figure(
        key,
        title,
        unit,
        lambda record: number(getattr(getattr(record, section), name)),
        show or (lambda value: significant(value / per, digits)),
        higher,
        rank,
        per,
        at,
    )


ACCURACY = quality_figure("test/accuracy", rank=99)
LOSS = quality_figure("test/loss", rank=50)
BITS = quality_figure("test/bits_per_byte", rank=50)
TRAIN = Figure("train_s", "train", "s", train_seconds, rank=90, at="time.ledger_s")
FILE = _figure("file_bytes", "file", "kB", "size.file_bytes", rank=80, per=1e3, digits=4)
LATENCY = Figure("latency_p50_ms", "latency", "ms", _latency("p50_ms"), rank=70, at="latency")
COSTS = {"time": TRAIN, "size": FILE, "latency": LATENCY}

FIGURES = (
    ACCURACY,
    LOSS,
    BITS,
    TRAIN,
    _figure("wall_s", "wall", "s", "time.wall_s", rank=40),
    _figure("to_target_s", "to target", "s", "time.to_target_s", rank=85),
    _figure("samples_per_s", "samples/s", "", "throughput.samples_per_s", higher=True, rank=60),
    _figure("tokens_per_s", "tokens/s", "", "throughput.tokens_per_s", higher=True, rank=59),
    _figure("peak_private_bytes", "memory", "MB", "memory.peak_private_bytes", per=1e6, rank=55),
    _figure("gpu_peak_allocated_bytes", "GPU mem", "MB", "memory.gpu_peak_allocated_bytes", per=1e6, rank=56),
    FILE,
    LATENCY,
    Figure("latency_p90_ms", "p90", "ms", _latency("p90_ms"), at="latency"),
    Figure("latency_p99_ms", "p99", "ms", _latency("p99_ms"), at="latency"),
    _figure("parameters", "parameters", "", "size.parameters", show=si),
    _figure("nonzero_parameters", "non-zero", "", "size.nonzero_parameters", show=si),
    _figure("compression_ratio", "ratio", "×", "size.compression_ratio", higher=True),
    _figure("sparsity_prunable", "sparsity", "", "sparsity.prunable", higher=True),
    _figure("sparsity_overall", "overall sparsity", "", "sparsity.overall", higher=True),
    _figure("flops_per_step", "FLOPs/step", "", "compute.flops_per_step", show=si),
    _figure("flops_total", "FLOPs", "", "compute.flops_total", show=si),
    _figure("mfu", "MFU", "%", "compute.mfu", higher=True, per=0.01, show=as_percent),
    _figure("peak_rss_bytes", "resident", "MB", "memory.peak_rss_bytes", per=1e6),
    _figure("gpu_peak_reserved_bytes", "GPU reserved", "MB", "memory.gpu_peak_reserved_bytes", per=1e6),
    _figure("energy_train_j", "energy", "J", "energy.train_j"),
)
