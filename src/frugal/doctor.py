"""`frugal doctor`: what this machine and this installation can do, each line tried out, each fault with its way out.

Exit code 1 only where the installation is broken; what is merely missing or slow is said and is no fault.
Imports torch and the rest inside the probes: a broken torch is what it must be able to report.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from frugal import console

if TYPE_CHECKING:
    import torch

Status = Literal["ok", "warn", "missing", "broken"]
DISTRIBUTION = "frugal-ml"
# The distributions that each extra adds, and what is lost without it.
EXTRAS = {
    "wandb": (("wandb",), "logger=wandb"),
    "onnx": (("onnx", "onnxruntime", "onnxscript"), "ONNX Runtime's latency and int8 artefacts"),
    "gpu": (("nvidia-ml-py",), "energy of NVIDIA GPUs"),
}
_MARKS = {"ok": "green", "warn": "yellow", "missing": "cyan", "broken": "bold red"}


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    section: str
    name: str
    status: Status
    found: str
    fix: str | None = None


def main(argv: list[str]) -> int:
    """Print the report; 0, or 1 where the installation is broken."""
    parser = argparse.ArgumentParser(
        prog="frugal doctor", description="What this machine and this installation can do, each line tried out."
    )
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    parser.add_argument("--quick", action="store_true", help="leave out what takes seconds: compiling, ONNX export")
    arguments = parser.parse_args(argv)
    checks = examine(quick=arguments.quick, show_progress=not arguments.json)
    broken = any(check.status == "broken" for check in checks)
    if arguments.json:
        print(json.dumps({"ok": not broken, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        _print(checks)
    return int(broken)


def examine(quick: bool = False, show_progress: bool = False) -> list[Check]:
    """All checks. One probe that fails is reported as such and stops none of the others."""
    probes = _probes(quick)
    checks: list[Check] = []
    if show_progress:
        with console.progress("examining", len(probes)) as bar:
            for section, probe in probes:
                bar.advance(0, f"examining: {section}")
                checks += _run(section, probe)
                bar.advance()
    else:
        for section, probe in probes:
            checks += _run(section, probe)
    return checks


def _probes(quick: bool) -> list[tuple[str, Callable[[], Iterator[Check]]]]:
    probes = [
        ("installation", _installation),
        ("installation", _torchvision),
        ("installation", _extras),
        ("machine", _machine),
        ("devices", _devices),
        ("precision", _precisions),
        ("backends", _backends),
        ("measuring", _measuring),
        ("folders", _folders),
        ("data", _mnist),
        ("loggers", _wandb),
    ]
    return probes if quick else [*probes, ("backends", _compile), ("backends", _onnx_export)]


def _run(section: str, probe: Callable[[], Iterator[Check]]) -> list[Check]:
    found: list[Check] = []
    try:
        found.extend(probe())
    except Exception as error:  # a probe must never take the report with it
        found.append(Check(section, probe.__name__.lstrip("_"), "warn", f"could not be tried: {_one_line(error)}"))
    return found


# ---------------------------------------------------------------------------------------------------- the installation
def _installation() -> Iterator[Check]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    section = "installation"
    try:
        own = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        yield Check(section, "frugal", "warn", "runs from source, not installed", "make setup, or: pip install -e .")
        return
    supported = SpecifierSet(own["Requires-Python"])
    inside = supported.contains(platform.python_version(), prereleases=True)
    yield Check(
        section,
        "Python",
        "ok" if inside else "broken",
        platform.python_version(),
        None if inside else f"use a Python {supported}: make clean; make setup PYTHON=/path/to/python3.11",
    )
    for text in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _requirement(section, requirement)
    for package in ("torch", "lightning", "hydra"):
        yield _import(section, package)
    options = _configs_folder()
    yield Check(
        section,
        "shipped options",
        "ok" if options else "broken",
        str(options) if options else "no configs folder",
        None if options else f"pip install --force-reinstall --no-deps {DISTRIBUTION}",
    )


def _requirement(section: str, requirement: Any) -> Check:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Check(section, requirement.name, "broken", "not installed", f'pip install "{_plain(requirement)}"')
    if requirement.specifier.contains(version, prereleases=True):
        return Check(section, requirement.name, "ok", version)
    found = f"{version}, outside {requirement.specifier}"
    return Check(section, requirement.name, "broken", found, f'pip install "{_plain(requirement)}"')


def _import(section: str, package: str) -> Check:
    """Import it here: torch and lightning that do not fit together fail only then."""
    begin = time.perf_counter()
    try:
        importlib.import_module(package)
    except Exception as error:
        fix = f"install the versions that belong together: make clean; make setup (or pip install -U {DISTRIBUTION})"
        return Check(section, f"import {package}", "broken", _one_line(error), fix)
    return Check(section, f"import {package}", "ok", f"{time.perf_counter() - begin:.1f} s")


def _torchvision() -> Iterator[Check]:
    """Frugal does not use it, but torchmetrics and lightning import it where it is: one that does not fit breaks them."""
    if importlib.util.find_spec("torchvision") is None:
        return
    tried = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, timeout=120)
    if tried.returncode == 0:
        yield Check("installation", "torchvision", "ok", "fits this torch; not needed")
    else:
        reason = tried.stderr.strip().splitlines()[-1] if tried.stderr.strip() else f"exit code {tried.returncode}"
        fix = "pip uninstall torchvision (it does not fit this build of torch, and lightning imports it)"
        yield Check("installation", "torchvision", "broken", reason, fix)


def _extras() -> Iterator[Check]:
    for extra, (distributions, use) in EXTRAS.items():
        versions = {name: _version(name) for name in distributions}
        absent = [name for name, version in versions.items() if version is None]
        if absent:
            fix = f'pip install "{DISTRIBUTION}[{extra}]"'
            yield Check("installation", f"extra {extra}", "missing", f"no {', '.join(absent)}: no {use}", fix)
        else:
            found = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield Check("installation", f"extra {extra}", "ok", found)


# --------------------------------------------------------------------------------------------------------- the machine
def _machine() -> Iterator[Check]:
    import torch

    section = "machine"
    model = platform.processor() or platform.machine()
    flags: set[str] = set()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [line.partition(":")[::2] for line in information.read_text().splitlines()]
        fields = {key.strip(): value.strip() for key, value in reversed(lines)}
        model = fields.get("model name", model)
        flags = set(fields.get("flags", fields.get("Features", "")).split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check(section, "CPU", "ok", f"{model}; {usable} of {os.cpu_count()} cores usable")
    yield Check(section, "vector instructions", "ok", f"torch uses {torch.backends.cpu.get_cpu_capability()}")
    low = [flag for flag in ("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "amx_int8", "avx512_vnni", "bf16")]
    has = [flag for flag in low if flag in flags]
    yield Check(section, "low-precision units", "ok" if has else "warn", ", ".join(has) or "none: bf16 is emulated")
    threads = torch.get_num_threads()
    over = usable is not None and threads > usable
    fix = f"set OMP_NUM_THREADS={usable}" if over else None
    yield Check(section, "threads", "warn" if over else "ok", f"{threads} in torch", fix)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Check(section, "memory", "ok", f"{memory / 2**30:.0f} GiB")


def _devices() -> Iterator[Check]:
    import torch
    from lightning.pytorch.accelerators import MPSAccelerator, XLAAccelerator

    section = "devices"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            found = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, compute {device.major}.{device.minor}"
            yield Check(section, f"cuda:{index}", "ok", found)
    elif torch.version.cuda is None and Path("/proc/driver/nvidia/version").exists():
        yield Check(section, "CUDA", "warn", "a GPU driver, but a CPU build of torch", "install a CUDA build of torch")
    else:
        built = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build of torch"
        yield Check(section, "CUDA", "missing", f"no device ({built})")
    for name, accelerator in (("MPS", MPSAccelerator), ("TPU", XLAAccelerator)):
        there = accelerator.is_available()
        yield Check(section, name, "ok" if there else "missing", "available" if there else "no device")


def _precisions() -> Iterator[Check]:
    """Tries each: a product, its gradient, close to fp64's; and its speed against fp32 on this device."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    baseline = _product_s(torch.float32, device)
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
    for name, dtype in names.items():
        fault = _product_fault(dtype, device)
        if fault is not None:
            yield Check("precision", name, "missing", f"does not work on {device.type}: {fault}")
            continue
        speed = baseline / _product_s(dtype, device)
        slow = name in ("bf16", "fp16") and speed < 0.9
        found = f"works on {device.type}, {speed:.2g} times the speed of fp32"
        fix = f"{name} saves memory here, not time" if slow else None
        yield Check("precision", name, "warn" if slow else "ok", found, fix)
    fault = _fp8_fault(device)
    found = f"works on {device.type}" if fault is None else f"does not work on {device.type}: {fault}"
    yield Check("precision", "fp8", "ok" if fault is None else "missing", found)


def _product_fault(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a matrix product and its gradient in `dtype` are not to be trusted, or None."""
    import torch

    exact = torch.linspace(-1, 1, 32 * 32, dtype=torch.float64).reshape(32, 32)
    try:
        x = exact.to(device, dtype).requires_grad_()
        w = exact.T.to(device, dtype)
        (y := x @ w).sum().backward()
        gradient = x.grad
        assert gradient is not None
        reference = x.detach().double().cpu() @ w.double().cpu()
        expected = w.double().cpu().sum(1).expand(32, 32)
        for found, right in ((y, reference), (gradient, expected)):
            error = (found.detach().double().cpu() - right).abs().max() / right.abs().max()
            if not error < 0.02:  # bf16 has 8 bits; NaN fails, too
                return f"wrong by {float(error):.1%}"
    except (RuntimeError, TypeError) as error:
        return _one_line(error)
    return None


def _fp8_fault(device: torch.device) -> str | None:
    """A product of e4m3 matrices and, as training has it, one with an e5m2 gradient."""
    import torch

    try:
        one = torch.ones((), device=device)
        ones = torch.ones(32, 32, device=device)
        w = ones.to(torch.float8_e4m3fn).t()
        for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
            y = torch._scaled_mm(ones.to(kind), w, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
            if not bool((y == 32).all()):
                return f"wrong product for {kind}"
    except (RuntimeError, AttributeError, ValueError, TypeError) as error:
        return _one_line(error)
    return None


def _product_s(dtype: torch.dtype, device: torch.device) -> float:
    """Median seconds of a product of two 512x512 matrices."""
    import torch

    x = torch.randn(512, 512, device=device).to(dtype)
    times = []
    for _ in range(12):
        begin = time.perf_counter()
        y = x @ x
        y[0, 0].item()  # waits for a GPU
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


# ------------------------------------------------------------------------------------------------------------ backends
def _backends() -> Iterator[Check]:
    import torch

    engines = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    yield Check("backends", "torch int8", "ok" if engines else "missing", ", ".join(engines) or "no engine")
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
        yield Check("backends", "ONNX Runtime", "ok", f"{onnxruntime.__version__}: {providers}")
    else:
        yield Check("backends", "ONNX Runtime", "missing", "not installed", f'pip install "{DISTRIBUTION}[onnx]"')


def _compile() -> Iterator[Check]:
    import torch
    import torch._inductor.config as inductor

    begin = time.perf_counter()
    x = torch.randn(64)
    try:
        with inductor.patch(force_disable_caches=True):  # what was compiled yesterday proves nothing about today
            y = torch.compile(lambda t: torch.sin(t) * 2 + 1)(x)
        torch.testing.assert_close(y, torch.sin(x) * 2 + 1)
    except Exception as error:
        fix = "install a C++ compiler and Python's headers; on Debian: apt-get install g++ python3-dev"
        yield Check("backends", "torch.compile", "missing", _one_line(error), fix)
        return
    yield Check("backends", "torch.compile", "ok", f"compiled and right, {time.perf_counter() - begin:.1f} s")


def _onnx_export() -> Iterator[Check]:
    if any(_version(name) is None for name in EXTRAS["onnx"][0]):
        return
    import contextlib
    import io
    import logging

    import onnxruntime
    import torch

    begin = time.perf_counter()
    network, x = torch.nn.Linear(4, 2).eval(), torch.randn(3, 4)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        with contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(network, (x,), str(path), dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        y = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(y), network(x).detach(), rtol=1e-4, atol=1e-5)
    yield Check("backends", "ONNX export", "ok", f"exported, run and right, {time.perf_counter() - begin:.1f} s")


# ----------------------------------------------------------------------------------------------------------- measuring
def _measuring() -> Iterator[Check]:
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
    if _version("nvidia-ml-py") is None:
        return Check(section, "GPU energy", "missing", "no NVML library", f'pip install "{DISTRIBUTION}[gpu]"')
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        joules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
        return Check(section, "GPU energy", "ok", f"NVML, counter at {joules:,.0f} J")
    except pynvml.NVMLError as error:
        return Check(section, "GPU energy", "missing", f"NVML: {_one_line(error)}")


# ---------------------------------------------------------------------------------------------------- folders and data
def _folders() -> Iterator[Check]:
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


def _mnist() -> Iterator[Check]:
    from frugal.data.fetch import read_verified
    from frugal.data.mnist import MNIST

    folder = Path(os.environ.get("FRUGAL_DATA_DIR", "data")).expanduser() / MNIST.folder
    absent = [name for name in MNIST.md5 if not (folder / name).exists()]
    if absent:
        found = f"{len(absent)} of {len(MNIST.md5)} files are not in {folder}"
        yield Check("data", "MNIST", "missing", found, "fetched when first used; offline: set FRUGAL_DATA_DIR")
        return
    for name, md5 in MNIST.md5.items():
        try:
            read_verified(folder / name, md5)
        except Exception as error:
            yield Check("data", "MNIST", "warn", _one_line(error), f"delete {folder / name}; it is then fetched again")
            return
    yield Check("data", "MNIST", "ok", f"{len(MNIST.md5)} files, checksums right")


def _wandb() -> Iterator[Check]:
    if _version("wandb") is None:
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


# -------------------------------------------------------------------------------------------------------------- output
def _print(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", "found", "way out", title="frugal doctor", title_justify="left")
    section = ""
    for check in checks:
        if check.section != section:
            section = check.section
            table.add_section()
            table.add_row("", Text(section, style="bold"), "", "")
        mark = Text(check.status, style=_MARKS[check.status])
        table.add_row(mark, check.name, Text(check.found), Text(check.fix or ""))
    console.say(table)
    broken = [check.name for check in checks if check.status == "broken"]
    if broken:
        console.say(f"broken: {', '.join(broken)}")
    else:
        console.say("the installation works; what is missing or slow stands above")


def _configs_folder() -> Path | None:
    from frugal import settings

    package = Path(settings.__file__).parent
    folders = (package / "configs", package.parents[1] / "configs")
    return next((folder for folder in folders if (folder / "train.yaml").exists()), None)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(requirement: Any) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _one_line(error: BaseException, most: int = 160) -> str:
    lines = str(error).strip().splitlines()
    text = " ".join(lines[0].split()) if lines else type(error).__name__
    return text if len(text) <= most else text[: most - 1] + "…"
