"""`debug=profiler`: PyTorch's profiler over the training of a short run, as a trace and as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

from frugal import console


class OperationProfiler(Callback):
    """Writes `trace.json` (Perfetto, chrome://tracing) and the ten costliest operations, `operations.txt`, into
    `folder`.

    Profiling keeps every event in memory and slows each one: it is for some dozens of steps, and its run's times are
    not those of an ordinary run.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._profile: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        self._profile = profile(activities=activities)
        self._profile.__enter__()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._profile.__exit__(None, None, None)
        self._profile.export_chrome_trace(str(self.folder / "trace.json"))
        key = "self_cuda_time_total" if pl_module.device.type == "cuda" else "self_cpu_time_total"
        table = self._profile.key_averages().table(sort_by=key, row_limit=10)
        (self.folder / "operations.txt").write_text(table + "\n")
        console.say(table)
        self._profile = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
            self._profile = None
