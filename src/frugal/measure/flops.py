"""Floating-point operations of a training step, the device's peak, and their quotient (MFU).

A multiply-add is two operations. Only what `FlopCounterMode` knows is counted: matrix products, convolutions and
attention; element-wise work is not.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from frugal import record


class StepFlops(NamedTuple):
    """Operations of one batch."""

    forward: int
    step: int  # forward and backward


# Dense peaks in operations per second, from the makers' data sheets: (name part, {dtype: peak}). First match counts,
# so longer names come first. fp16 and bf16 with fp32 accumulation; sparsity's doubled figures are not used.
_GPU_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("H200", {"fp32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12}),
    ("H100 NVL", {"fp32": 60.0e12, "tf32": 417.5e12, "bf16": 835.5e12, "fp16": 835.5e12}),
    ("H100 PCIe", {"fp32": 51.2e12, "tf32": 378.0e12, "bf16": 756.0e12, "fp16": 756.0e12}),
    ("H100 80GB HBM3", {"fp32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12}),  # SXM
    ("A100", {"fp32": 19.5e12, "tf32": 156.0e12, "bf16": 312.0e12, "fp16": 312.0e12}),
    ("A10G", {"fp32": 31.5e12, "tf32": 35.0e12, "bf16": 70.0e12, "fp16": 70.0e12}),
    ("A10", {"fp32": 31.2e12, "tf32": 62.5e12, "bf16": 125.0e12, "fp16": 125.0e12}),
    ("L40S", {"fp32": 91.6e12, "tf32": 183.0e12, "bf16": 362.1e12, "fp16": 362.1e12}),
    ("L4", {"fp32": 30.3e12, "tf32": 60.0e12, "bf16": 121.0e12, "fp16": 121.0e12}),
    ("T4", {"fp32": 8.1e12, "fp16": 65.0e12}),
    ("V100-PCIE", {"fp32": 14.0e12, "fp16": 112.0e12}),
    ("V100", {"fp32": 15.7e12, "fp16": 125.0e12}),
    ("RTX 4090", {"fp32": 82.6e12, "tf32": 82.6e12, "bf16": 165.2e12, "fp16": 165.2e12}),
    ("RTX 3090", {"fp32": 35.6e12, "tf32": 35.6e12, "bf16": 71.2e12, "fp16": 71.2e12}),
)
# Words that make a name another chip, or a part of one, than the table's.
_OTHER_CHIPS = frozenset({"D", "GRID", "Laptop", "MIG", "Max", "Mobile", "SUPER", "Ti"})
_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def count_flops(network: nn.Module, batch_input: Any, loss_fn: Callable[[Any], Tensor] | None = None) -> StepFlops:
    """Operations of one training step on `batch_input` (a tensor, or a tuple or dict of arguments).

    Runs on a copy without data (meta device), so that no weight, statistic or random state moves; a network that
    cannot run there is counted on a real copy. Attention is counted by its mathematics: fused CPU kernels count 0.

    Args:
        loss_fn: from the network's output to a scalar; by default the sum of the first tensor in the output.
    """
    with torch.random.fork_rng():
        try:
            return _count(_copy(network, "meta"), _to(batch_input, "meta"), loss_fn)
        except (RuntimeError, NotImplementedError):  # a tensor that is no buffer, an operator without a meta kernel
            return _count(_copy(network, None), _to(batch_input, None), loss_fn)


def forward_flops(network: nn.Module, batch_input: Tensor) -> int:
    """Operations of one forward pass, whatever its weights are."""
    return _forward(network, batch_input).get_total_flops()


def remaining_flops(network: nn.Module, batch_input: Tensor) -> int:
    """Operations of one forward pass without those on weights that are zero: what a kernel that skips them would do.

    Of each layer its share of weights that are not zero; attention's products of activations all remain.
    """
    counter = _forward(network, batch_input)
    total: float = counter.get_total_flops()
    root = f"{type(network).__name__}."
    by_module = {name.removeprefix(root): sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim >= 2 and not list(module.children()) and name in by_module:
            total -= by_module[name] * (1 - int(torch.count_nonzero(weight)) / weight.numel())
    return round(total)


def _forward(network: nn.Module, batch_input: Tensor) -> FlopCounterMode:
    with torch.random.fork_rng(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        clone = _copy(network, "meta").eval()
        with FlopCounterMode(display=False) as counter:
            clone(_to(batch_input, "meta"))
    return counter


def peak_flops(device: torch.device, dtype: torch.dtype, tf32: bool = False) -> tuple[float | None, str]:
    """Dense peak of one device, in operations per second, and where the figure comes from (or why there is none)."""
    name = _DTYPES.get(dtype)
    if name is None:
        return None, f"no peak is known for {dtype}"
    if device.type == "cpu":
        peak = _cpu_peak(dtype, torch.get_num_threads())
        threads = torch.get_num_threads()
        return peak, f"matrix product measured on this CPU, {name}, {threads} thread{'s' if threads > 1 else ''}"
    if device.type != "cuda":
        return None, f"no peak is known for {device.type} devices"
    return gpu_peak(torch.cuda.get_device_name(device), "tf32" if tf32 and name == "fp32" else name)


def gpu_peak(gpu: str, dtype: str) -> tuple[float | None, str]:
    """Dense peak by the GPU's name, as `torch.cuda.get_device_name` gives it, and `fp32|tf32|bf16|fp16`."""
    words = gpu.replace("-", " ").split()
    other = _OTHER_CHIPS.intersection(words)
    if other:
        return None, f"no peak is known for {gpu!r}: {min(other)} is another chip, or a part of one"
    for part, peaks in _GPU_PEAKS:
        wanted = part.replace("-", " ").split()
        # Whole words, so that an L40 is no L4 and an A100 no A10.
        if any(words[i : i + len(wanted)] == wanted for i in range(len(words))):
            if dtype not in peaks:
                return None, f"no {dtype} peak is known for {part}"
            return peaks[dtype], f"data sheet of {part}, {dtype}, dense"
    return None, f"no peak is known for {gpu!r}"


def mfu(flops_per_s: float, peak: float) -> tuple[float | None, str | None]:
    """Model FLOPs utilization and, where it is withheld, the reason."""
    value = flops_per_s / peak
    if value > 1.0:
        return None, f"it came out at {value:.2f} of the peak of {peak:.3g}/s, so one of the two is wrong"
    return value, None


def compute_figures(
    flops: StepFlops | None,
    batch_samples: int,
    throughput: record.Throughput,
    device: torch.device,
    dtype: torch.dtype,
    samples_trained: int = 0,
    samples_per_step: int | None = None,
    tokens_per_sample: int | None = None,
    tokens_trained: int = 0,
    devices: int = 1,
    tf32: bool = False,
    mixed: bool = False,
    uneven: str | None = None,
    no_peak: str | None = None,
    flops_reason: str = "the operations of this network could not be counted",
) -> tuple[record.Compute, dict[str, str]]:
    """The record's compute section and the reasons for what is absent.

    Args:
        flops: of the counted batch of `batch_samples` samples.
        samples_per_step: of one optimizer step: batch times accumulation times ranks; by default `batch_samples`.
        tokens_per_sample: of text, in the counted batch. Where it is given, a run's work is counted by its tokens: a
            sample of the counted batch may be longer than most.
        tokens_trained: of the whole run, as `Throughput.tokens_trained`.
        samples_trained: of the whole run, as `Throughput.samples_trained`: an epoch's last batch may be a short one.
        devices: how many shared the work; the peak is that of one.
        dtype: in which the matrix products run.
        mixed: more than one such dtype in a step (fp8 beside bf16): MFU then has no meaning.
        uneven: the reason why other batches of the run cost less or more than the counted one: a total and MFU would
            be wrong.
        no_peak: the reason for leaving the peak and MFU out; a CPU's peak takes time to measure.
    """
    compute = record.Compute()
    absent: dict[str, str] = {}
    if flops is not None and flops.step == 0:  # a bag of n-grams only adds up
        flops, flops_reason = None, "this network has no matrix product, convolution or attention: only these count"
    if flops is None:
        return compute, {f"compute.{name}": flops_reason for name in vars(compute)}
    per_sample = flops.step / batch_samples
    compute.flops_per_step = round(per_sample * (samples_per_step or batch_samples))
    compute.flops_total = round(per_sample * samples_trained)
    flops_per_s = per_sample * throughput.samples_per_s if throughput.samples_per_s is not None else None
    if tokens_per_sample is None:
        absent["compute.flops_per_token"] = "the batches hold no tokens"
    else:
        per_token = per_sample / tokens_per_sample
        compute.flops_per_token = round(per_token)
        compute.flops_total = round(per_token * tokens_trained)
        flops_per_s = per_token * throughput.tokens_per_s if throughput.tokens_per_s is not None else None
    if uneven is not None:
        compute.flops_total, flops_per_s = None, None
        absent["compute.flops_total"] = uneven
    compute.peak_flops, source = peak_flops(device, dtype, tf32) if no_peak is None else (None, no_peak)
    if compute.peak_flops is None:
        absent |= {f"compute.{name}": source for name in ("mfu", "peak_flops", "peak_source")}
        return compute, absent
    compute.peak_source = source
    if mixed:
        absent["compute.mfu"] = "one step mixes several dtypes, each with a peak of its own"
    elif flops_per_s is None:
        absent["compute.mfu"] = uneven or "there is no throughput"
    else:
        compute.mfu, reason = mfu(flops_per_s, compute.peak_flops * devices)
        if reason is not None:
            absent["compute.mfu"] = reason
    return compute, absent


@functools.cache
def _cpu_peak(dtype: torch.dtype, threads: int, seconds: float = 0.2) -> float:
    """Best rate of square matrix products over about `seconds`. `threads` is part of the cache's key."""
    best = 0.0
    for size in (512, 1024, 2048):
        # Ones, not random numbers: measuring must not move the random state. The time does not depend on the values.
        a, out = torch.ones(size, size, dtype=dtype), torch.empty(size, size, dtype=dtype)
        torch.mm(a, a, out=out)
        until = time.perf_counter() + seconds / 3
        while True:
            begin = time.perf_counter()
            torch.mm(a, a, out=out)
            end = time.perf_counter()
            best = max(best, 2 * size**3 / (end - begin))
            if end > until:
                break
    return best


def _count(network: nn.Module, batch_input: Any, loss_fn: Callable[[Any], Tensor] | None) -> StepFlops:
    network.train()
    counter = FlopCounterMode(display=False)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        if isinstance(batch_input, dict):
            output = network(**batch_input)
        elif isinstance(batch_input, tuple | list):
            output = network(*batch_input)
        else:
            output = network(batch_input)
        forward = counter.get_total_flops()
        loss = loss_fn(output) if loss_fn is not None else _first_tensor(output).sum()
        if loss.requires_grad:
            loss.backward()
    return StepFlops(int(forward), int(counter.get_total_flops()))


def _copy(network: nn.Module, device: str | None) -> nn.Module:
    """A copy whose parameters and buffers lie on `device` (meta: without ever copying their data)."""
    network = getattr(network, "_orig_mod", network)  # what torch.compile wraps
    memo: dict[int, Any] = {}
    if device is not None:
        for parameter in network.parameters():
            empty = torch.empty_like(parameter, device=device)
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for buffer in network.buffers():
            memo[id(buffer)] = torch.empty_like(buffer, device=device)
    clone = copy.deepcopy(network, memo)
    for module in clone.modules():
        module._compiled_call_impl = None  # compiling the copy would cost a minute and count nothing
        if getattr(module, "checkpointing", False) is True:
            module.checkpointing = False  # computing anew is no work of the model's
    return clone


def _to(value: Any, device: str | None) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device) if device is not None else value.detach().clone()
    if isinstance(value, tuple | list):
        return tuple(_to(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    return value


def _first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output
    return _first_tensor(next(iter(values)))
