"""Records as runs would leave them, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frugal.record import Fingerprint, Latency, Memory, Record, RunInfo, Size, Throughput, Time

HERE = {"device": "cpu", "threads": 2, "python": "3.11", "torch": "2.13", "lightning": "2.6", "frugal": "0.1.0"}


def record(
    *,
    seed: int | None = 0,
    model: str = "simple_net",
    lr: float = 0.1,
    accuracy: float | None = 0.9,
    loss: float | None = 0.3,
    train: float = 10.0,
    file: int = 1000,
    latency: float | None = 0.05,
    status: Any = "completed",
    error: str | None = None,
    name: str = "",
    command: str = "",
    config: dict[str, Any] | None = None,
    fingerprint: dict[str, Any] | None = None,
) -> Record:
    plain = {
        "seed": seed,
        "data": {"seed": seed, "split_seed": 0, "batch_size": 64},
        "model": {"hidden": {"simple_net": [256, 128]}.get(model, [300, 100])},
        "optim": {"lr": lr},
        "module": {"lr": lr},
        "choices": {"model": model, "logger": "csv"},
    }
    plain.update(config or {})
    same = {**HERE, "data_sha256": "d" * 64, "effective_batch": 64}
    made = Record(
        status=status,
        error=error,
        run=RunInfo(name=name or f"{model}-lr{lr}", hash="0123abcd", seed=seed, command=command),
        config=plain,
    )
    if status != "completed":
        return made
    made.fingerprint = Fingerprint(**{**same, **(fingerprint or {})})
    made.quality = {k: v for k, v in {"test/accuracy": accuracy, "test/loss": loss}.items() if v is not None}
    made.time = Time(train * 2, {"startup": train, "train_step": train * 0.75, "data_wait": train * 0.25})
    made.throughput = Throughput(samples_per_s=1000 / train, steps_counted=100)
    made.memory = Memory(peak_private_bytes=300_000_000)
    made.size = Size(parameters=235_146, nonzero_parameters=235_146, file_bytes=file, compression_ratio=1.0)
    if latency is not None:
        made.latency = [
            Latency("eager", batch, 2, "dense", latency * batch, latency * 1.2, latency * 2) for batch in (1, 8)
        ]
    return made


def evaluation(of: str, **given: Any) -> Record:
    """What `frugal evaluate` leaves: the buckets of a training at zero, hardly a key in common with one."""
    made = record(name=f"{of}-0123abcd", fingerprint={"effective_batch": None, **given.pop("fingerprint", {})}, **given)
    made.config = {
        "source": f"logs/default/{of}",
        "seed": 0,
        "trainer": {"threads": None},
        "choices": {"data": None, "measure": "quick"},
    }
    made.time.ledger_s = {"startup": 5.0, "train_step": 0.0, "data_wait": 0.0, "callbacks": 0.001, "test": 1.0}
    return made


def write(folder: Path, *records: Record) -> Path:
    """Each record into a run's folder of its own below `folder`."""
    start = len(list(folder.glob("run*"))) if folder.exists() else 0
    for index, made in enumerate(records, start):
        place = folder / f"run{index:04d}"
        place.mkdir(parents=True)
        made.write(place)
    return folder
