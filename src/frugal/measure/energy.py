"""Energy of the training: Joules between two reads of a hardware counter, or the reason why there is none."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from frugal import record
from frugal.measure.meter import Meter


class Energy(Meter):
    """Joules from the end of warm-up to the end of training, validation in between included.

    An NVIDIA GPU is read through NVML (each rank its own device, summed), a CPU through RAPL (one read a node).

    Args:
        warmup_steps: optimizer steps before the first read.
        rapl_dir: where the kernel shows its power zones.
    """

    def __init__(self, warmup_steps: int = 10, rapl_dir: str = "/sys/class/powercap") -> None:
        super().__init__()
        self.warmup_steps = warmup_steps
        self.rapl_dir = rapl_dir
        self._earlier_j = 0.0
        self._train_j: float | None = None
        self._reason: str | None = "no training was measured"
        self._counter: Callable[[], float] | None = None
        self._trainer: pl.Trainer | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._trainer = trainer
        device = trainer.strategy.root_device
        self._train_j = None
        try:
            if device.type == "cuda":
                self._counter, self._reason = nvml_counter(device), None
            elif device.type == "cpu":
                # One node's ranks share its zones: its first rank reads for all.
                self._counter = RaplCounter(Path(self.rapl_dir)) if trainer.local_rank == 0 else (lambda: 0.0)
                self._reason = None
            else:
                self._counter, self._reason = None, f"no energy counter is known for {device.type} devices"
        except CounterError as error:
            self._counter, self._reason = None, str(error)
        if self._counter is not None:
            self._start_j: float | None = None
            self.when_warm(trainer, self.warmup_steps, self._begin)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        used = self._over_ranks(self._used_j())
        self._close()
        if used is None and self._reason is None and trainer.world_size > 1:
            self._reason = "not every rank could read its counter"
        self._train_j = used

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()
        self._reason = self._reason or "training did not end"

    def figures(self) -> record.Energy:
        """Joules of the counted window of all ranks, or the reason."""
        self.absent = {}
        if self._train_j is None:
            reason = self._reason or "training ended within the warm-up"
            self.absent["energy.train_j"] = reason
            return record.Energy(reason=reason)
        return record.Energy(train_j=self._earlier_j + self._train_j)

    def state_dict(self) -> dict[str, Any]:
        used = self._train_j if self._train_j is not None else self._over_ranks(self._used_j())
        return {"train_j": self._earlier_j + (used or 0.0)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier_j = state_dict["train_j"]

    def _begin(self) -> None:
        if self._counter is not None:
            self._start_j = self._counter()

    def _over_ranks(self, used: float | None) -> float | None:
        """The sum; None where a rank has no counter. Every rank must call it, as every rank saves a checkpoint."""
        trainer = self._trainer
        if trainer is None or trainer.world_size == 1:
            return used
        # NaN stays NaN
        own = torch.tensor(math.nan if used is None else used, dtype=torch.float32, device=trainer.strategy.root_device)
        total = float(cast(Tensor, trainer.strategy.reduce(own, reduce_op="sum")))
        return None if math.isnan(total) else total

    def _used_j(self) -> float | None:
        if self._counter is None or self._start_j is None:
            return None
        return self._counter() - self._start_j

    def _close(self) -> None:
        if isinstance(self._counter, RaplCounter):
            self._counter.close()
        self._counter = None


class CounterError(Exception):
    """A counter that cannot be read; the message is the reason in the record."""


def nvml_counter(device: torch.device) -> Callable[[], float]:
    """A function that reads the Joules a GPU has used since its driver was loaded."""
    try:
        import pynvml
    except ImportError:
        raise CounterError("nvidia-ml-py is not installed: pip install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
        # NVML numbers all GPUs of the machine, torch those it can see: only the UUID means the same to both.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid.encode())
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        raise CounterError(f"NVML has no energy counter for this GPU ({error})") from None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * 1e-3


class RaplCounter:
    """Joules of all processor packages since this object was made. The zones' counters wrap around, after a quarter
    of an hour at the earliest, so a thread reads them twice a minute.

    Raises:
        CounterError: there are no zones, or they are not readable (by default only root may).
    """

    def __init__(self, directory: Path, every_s: float = 30.0) -> None:
        zones = [zone for zone in sorted(directory.glob("intel-rapl:*")) if re.fullmatch(r"intel-rapl:\d+", zone.name)]
        # "psys" is the whole platform: it holds the packages already.
        zones = [zone for zone in zones if not _text(zone / "name").startswith("psys")] or zones
        if not zones:
            raise CounterError(f"this machine shows no power zones under {directory}")
        self._lock = threading.Lock()
        self._files = [zone / "energy_uj" for zone in zones]
        try:
            self._ranges = [int(_text(zone / "max_energy_range_uj")) for zone in zones]
            self._last = [int(file.read_text()) for file in self._files]
        except (OSError, ValueError):
            raise CounterError(f"{self._files[0]} is not readable: ask an administrator for read permission") from None
        self._total_uj = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(every_s,), name="frugal-energy", daemon=True)
        self._thread.start()

    def __call__(self) -> float:
        with self._lock:
            for index, file in enumerate(self._files):
                now = int(file.read_text())
                step = now - self._last[index]
                self._total_uj += step if step >= 0 else step + self._ranges[index]
                self._last[index] = now
            return self._total_uj * 1e-6

    def close(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self, every_s: float) -> None:
        while not self._done.wait(every_s):
            self()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
