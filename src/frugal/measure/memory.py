"""Peak memory of a training: of this process and its data workers, and of its GPU. Definitions: `docs/measurement.md`.

Private memory is what a process costs the machine: anonymous pages, and shared memory once. Pages of mapped files
(libraries, memory-mapped data) count towards the resident set but can be dropped at any time: they stand apart.
"""

from __future__ import annotations

import multiprocessing.process
import threading
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from frugal import record
from frugal.measure.meter import Meter

_NO_PROC = "this system has no /proc: memory cannot be read"
_NO_GPU = "training did not run on a CUDA device"


class Usage(NamedTuple):
    """Bytes in use by a process and its workers at one moment."""

    private: int
    rss: int  # of the process alone


class Memory(Meter):
    """Peaks between `setup` and the end of training, beside the values before it. Works a few times a second in a
    thread of its own: no hook per step, and an allocation shorter than `interval_s` may be missed.

    Args:
        interval_s: seconds between two samples.
        warmup_steps: optimizer steps after which the GPU's peaks begin.
    """

    def __init__(self, interval_s: float = 0.1, warmup_steps: int = 10) -> None:
        super().__init__()
        self.interval_s = interval_s
        self.warmup_steps = warmup_steps
        self._figures = record.Memory()
        self._sampler: _Sampler | None = None
        self._trainer: pl.Trainer | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._trainer = trainer
        if stage != "fit" or self._sampler is not None:
            return
        self._figures = record.Memory()
        before = usage()
        if before is not None:
            self._figures.private_before_bytes, self._figures.rss_before_bytes = before
        self._sampler = _Sampler(self.interval_s)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            self._failures_before = _cuda_failures(device)
            self.when_warm(trainer, self.warmup_steps, lambda: torch.cuda.reset_peak_memory_stats(device))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            figures = self._figures
            figures.gpu_peak_allocated_bytes = _larger(
                figures.gpu_peak_allocated_bytes, torch.cuda.max_memory_allocated(device)
            )
            figures.gpu_peak_reserved_bytes = _larger(
                figures.gpu_peak_reserved_bytes, torch.cuda.max_memory_reserved(device)
            )
            figures.oom_count = (figures.oom_count or 0) + _cuda_failures(device) - self._failures_before
        self._stop()
        if trainer.world_size > 1:
            self._figures = record.Memory(**self._most())

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop()

    def figures(self) -> record.Memory:
        """Peaks in bytes, the maximum over ranks."""
        self.absent = {}
        for name, value in vars(self._figures).items():
            if value is None:
                self.absent[f"memory.{name}"] = _NO_GPU if name.startswith(("gpu", "oom")) else _NO_PROC
        return record.Memory(**vars(self._figures))

    def state_dict(self) -> dict[str, Any]:
        self._collect()
        return {key: value for key, value in self._most().items() if value is not None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A resumed run has the larger of its parts' peaks, and the first part's values before training.
        for key, value in state_dict.items():
            if key.endswith("before_bytes"):
                setattr(self._figures, key, value)
            else:
                setattr(self._figures, key, _larger(getattr(self._figures, key), value))

    def _most(self) -> dict[str, int | None]:
        """The figures, each the largest of all ranks; every rank must call it, as every rank saves a checkpoint."""
        own, trainer = vars(self._figures), self._trainer
        if trainer is None or trainer.world_size == 1:
            return dict(own)
        # -1: absent on this rank
        values = [-1 if value is None else value for value in own.values()]
        told = torch.tensor(values, dtype=torch.int64, device=trainer.strategy.root_device)
        most = cast(Tensor, trainer.strategy.reduce(told, reduce_op="max")).tolist()
        return {name: None if value < 0 else value for name, value in zip(own, most, strict=True)}

    def _stop(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()
            self._collect()
            self._sampler = None

    def _collect(self) -> None:
        if self._sampler is None:
            return
        peak = self._sampler.peak()
        if peak is not None:
            self._figures.peak_private_bytes = _larger(self._figures.peak_private_bytes, peak.private)
            self._figures.peak_rss_bytes = _larger(self._figures.peak_rss_bytes, peak.rss)


class _Sampler:
    """A thread that looks at `usage` every `interval_s` and keeps the largest."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._private = self._rss = 0
        self._kernel_keeps_peak = _reset_peak_rss()
        self._done = threading.Event()
        self._sample()
        self._thread = threading.Thread(target=self._run, name="frugal-memory", daemon=True)
        self._thread.start()

    def peak(self) -> Usage | None:
        self._sample()
        if not self._rss:
            return None
        rss = _status("self").get("VmHWM", 0) if self._kernel_keeps_peak else self._rss
        return Usage(self._private, max(rss, self._rss))

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        now = usage()
        if now is not None:
            self._private = max(self._private, now.private)
            self._rss = max(self._rss, now.rss)


def usage() -> Usage | None:
    """Bytes that this process and its data workers use now; None where there is no /proc."""
    own = _status("self")
    if "RssAnon" not in own:
        return None
    private, shared = own["RssAnon"], own["RssShmem"]
    # Not `active_children()`: it reaps ended processes, under the feet of a DataLoader in the main thread.
    for worker in list(multiprocessing.process._children):  # type: ignore[attr-defined]
        pid = str(worker.pid)
        private += _own_pages(pid)
        shared = max(shared, _status(pid).get("RssShmem", 0))
    return Usage(private + shared, own["VmRSS"])


def _own_pages(pid: str) -> int:
    """Bytes that a worker has to itself: what a fork still shares with its parent is in the parent's RssAnon."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_Dirty:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return _status(pid).get("RssAnon", 0)


def _status(pid: str) -> dict[str, int]:
    """The memory lines of `/proc/PID/status`, in bytes; empty when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {
        name: int(rest.split()[0]) * 1024
        for name, _, rest in (line.partition(":") for line in lines)
        if name in ("VmHWM", "VmRSS", "RssAnon", "RssShmem")
    }


def _reset_peak_rss() -> bool:
    """Make the kernel's VmHWM start anew; False where that is not allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _cuda_failures(device: torch.device) -> int:
    """Allocations that failed so far, those that a retry saved included."""
    stats = torch.cuda.memory_stats(device)
    return int(stats.get("num_ooms", 0) + stats.get("num_alloc_retries", 0))


def _larger(one: int | None, two: int) -> int:
    return two if one is None else max(one, two)
