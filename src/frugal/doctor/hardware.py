"""The machine: its processor, its devices, and the precisions that really work on them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from frugal.doctor.check import Check, one_line

if TYPE_CHECKING:
    import torch

# As /proc/cpuinfo has them; `bf16` is ARM's.
LOW_PRECISION_FLAGS = ("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "amx_int8", "avx512_vnni", "bf16")


def machine() -> Iterator[Check]:
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
    has = [flag for flag in LOW_PRECISION_FLAGS if flag in flags]
    yield Check(section, "low-precision units", "ok" if has else "warn", ", ".join(has) or "none: bf16 is emulated")
    threads = torch.get_num_threads()
    over = usable is not None and threads > usable
    fix = f"set OMP_NUM_THREADS={usable}" if over else None
    yield Check(section, "threads", "warn" if over else "ok", f"{threads} in torch", fix)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Check(section, "memory", "ok", f"{memory / 2**30:.0f} GiB")


def devices() -> Iterator[Check]:
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


def precisions() -> Iterator[Check]:
    """Tries each: a product, its gradient, close to fp64's; and its speed against fp32 on this device."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
    for name, dtype in names.items():
        fault = _product_fault(dtype, device)
        if fault is not None:
            yield Check("precision", name, "missing", f"does not work on {device.type}: {fault}")
            continue
        if dtype == torch.float32:
            yield Check("precision", name, "ok", f"works on {device.type}")
            continue
        speed = _speed(dtype, device)
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
        x = exact.to(device, dtype).clone().requires_grad_()  # fp64 would be `exact` itself
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
        return one_line(error)
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
        return one_line(error)
    return None


def _speed(dtype: torch.dtype, device: torch.device) -> float:
    """How many times as fast as in fp32 a product of two 512x512 matrices is; the two are timed in turn."""
    import torch

    x = torch.randn(512, 512, device=device)
    pair = (x, x.to(dtype))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(15):
        for matrix, times in zip(pair, seconds, strict=True):
            begin = time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # reading it waits for a GPU
            times.append(time.perf_counter() - begin)
    plain, low = map(min, seconds)  # the least disturbed of each
    return plain / low
