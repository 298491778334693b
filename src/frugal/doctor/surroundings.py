"""What a run finds around it: counters to measure with, folders, data, a key for W&B."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from frugal.doctor.check import DISTRIBUTION, Check, one_line, version


def measuring() -> Iterator[Check]:
    section = "measuring"
    try:
        Path("/proc/self/clear_refs").write_text("5")
        yield Check(section, "peak memory", "ok", "the peak can be reset (/proc/self/clear_refs)")
    except OSError as error:
        found = f"the peak of resident memory cannot be reset ({error.strerror}); sampled instead"
        yield Check(section, "peak memory", "warn", found)
    counters = sorted(Path("/sys/class/powercap").glob("intel-rapl:*/energy_uj"))
    readable = [path for path in counters if os.access(path, os.R_OK)]
    if readable:
        yield Check(section, "CPU energy", "ok", f"RAPL, {len(readable)} counters")
    elif counters:
        fix = f"as root: chmod a+r {counters[0].parent.parent}/intel-rapl:*/energy_uj"
        yield Check(section, "CPU energy", "missing", "RAPL is there but not readable", fix)
    else:
        yield Check(section, "CPU energy", "missing", "no RAPL counters on this machine")
    yield _nvml(section)


def _nvml(section: str) -> Check:
    if version("nvidia-ml-py") is None:
        return Check(section, "GPU energy", "missing", "no NVML library", f'pip install "{DISTRIBUTION}[gpu]"')
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        joules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
        return Check(section, "GPU energy", "ok", f"NVML, counter at {joules:,.0f} J")
    except pynvml.NVMLError as error:
        return Check(section, "GPU energy", "missing", f"NVML: {one_line(error)}")


def folders() -> Iterator[Check]:
    for name, variable, default in (("data", "FRUGAL_DATA_DIR", "data"), ("logs", "FRUGAL_LOG_DIR", "logs")):
        folder = Path(os.environ.get(variable, default)).expanduser().absolute()
        problem = _not_writable(folder)
        found = f"{folder}{'' if folder.is_dir() else ' (to be made)'}"
        if problem is None:
            yield Check("folders", name, "ok", found)
        elif name == "data" and folder.is_dir():
            yield Check("folders", name, "warn", f"{found}: {problem}; what is missing there cannot be fetched")
        else:
            yield Check("folders", name, "warn", f"{found}: {problem}", f"set {variable} to a folder of yours")


def _not_writable(folder: Path) -> str | None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"cannot be written ({error.strerror})"


def mnist() -> Iterator[Check]:
    from frugal.data.fetch import read_verified
    from frugal.data.mnist import MNIST

    folder = Path(os.environ.get("FRUGAL_DATA_DIR", "data")).expanduser() / MNIST.folder
    absent = [name for name in MNIST.checksums if not (folder / name).exists()]
    if absent:
        found = f"{len(absent)} of {len(MNIST.checksums)} files are not in {folder}"
        yield Check("data", "MNIST", "missing", found, "fetched when first used; offline: set FRUGAL_DATA_DIR")
        return
    for name, checksum in MNIST.checksums.items():
        try:
            read_verified(folder / name, checksum)
        except Exception as error:
            yield Check("data", "MNIST", "warn", one_line(error), f"delete {folder / name}; it is then fetched again")
            return
    yield Check("data", "MNIST", "ok", f"{len(MNIST.checksums)} files, checksums right")


def wandb() -> Iterator[Check]:
    if version("wandb") is None:
        return
    from frugal.loggers.wandb import has_key

    mode = os.environ.get("WANDB_MODE")
    if mode not in (None, "online"):
        yield Check("loggers", "W&B", "ok", f"{mode}, as WANDB_MODE says")
    elif has_key():
        yield Check("loggers", "W&B", "ok", "a key is there: runs go online")
    else:
        fix = "wandb login, or set WANDB_API_KEY"
        yield Check("loggers", "W&B", "missing", "no key: runs are kept offline, for `wandb sync`", fix)
