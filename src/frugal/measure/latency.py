"""Latency of a finished network: its backends take turns at every batch size, so that ratios hold on a busy machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from frugal import record
from frugal.errors import SettingsError
from frugal.measure.throughput import quantile, synchronize

Backend = Callable[[Tensor], Any]
Status = Literal["dense", "masked", "simulated", "converted"]
BATCHES = (1, 8, 64)


class Level(NamedTuple):
    """How thorough `measure=` is."""

    seconds: float  # timed, for each backend and batch size
    backends: tuple[str, ...]  # beside the artefact's own
    claims: bool  # long enough to claim a speed-up


LEVELS = {
    "none": Level(0.0, (), False),
    "quick": Level(0.3, ("eager",), False),
    "standard": Level(2.0, ("eager", "torch.compile", "onnxruntime"), True),
    "thorough": Level(10.0, ("eager", "torch.compile", "onnxruntime"), True),
}


def measure_latency(
    backends: Mapping[str, Backend],
    make_input: Callable[[int], Tensor],
    batches: Sequence[int] = BATCHES,
    seconds: float = 0.3,
    min_iterations: int = 10,
    warmup: int = 10,
    status: Status | Mapping[str, Status] = "dense",
    reference: str | None = None,
    speedup_theoretical: float | None = None,
    claims: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> list[record.Latency]:
    """Percentiles of single calls, in milliseconds.

    Args:
        backends: name to callable. Modules must already be in `eval`; the calls run under `inference_mode`.
        make_input: from a batch size to an input on the device where the backends run.
        seconds: timed calls of each backend at each batch size; at least `min_iterations` calls.
        warmup: untimed calls before that.
        status: of all backends, or of each by name.
        reference: the backend that speed-ups are over: the dense network in eager mode.
        speedup_theoretical: multiply-adds of the dense network over those left, for rows that are not `dense`.
        claims: whether the level allows a realized speed-up; it is given for `converted` rows only.
        on_progress: called with (done, total, label) before each backend's turn begins and once at the end.
    """
    rows: list[record.Latency] = []
    total = len(batches) * len(backends)
    with torch.inference_mode():
        for index, batch in enumerate(batches):
            batch_input = make_input(batch)
            for number, (name, backend) in enumerate(backends.items()):
                if on_progress is not None:
                    on_progress(index * len(backends) + number, total, f"{name}, batch {batch}")
                for _ in range(warmup):
                    backend(batch_input)
                synchronize(batch_input.device)
            times = _interleave(backends, batch_input, seconds, min_iterations)
            medians = {name: quantile(taken, 0.5) for name, taken in times.items()}
            for name, taken in times.items():
                row_status = status if isinstance(status, str) else status[name]
                row = record.Latency(
                    backend=name,
                    batch=batch,
                    threads=torch.get_num_threads(),
                    status=row_status,
                    p50_ms=medians[name] * 1e3,
                    p90_ms=quantile(taken, 0.9) * 1e3,
                    p99_ms=quantile(taken, 0.99) * 1e3,
                )
                if not batch_input.is_floating_point():
                    row.tokens = batch_input.shape[1]
                if row_status != "dense":
                    row.speedup_theoretical = speedup_theoretical
                if claims and row_status == "converted" and reference in medians:
                    row.speedup_realized = medians[reference] / medians[name]
                rows.append(row)
    if on_progress is not None:
        on_progress(total, total, "latency")
    return rows


def build_backends(
    network: nn.Module, names: Sequence[str], make_input: Callable[[int], Tensor], batches: Sequence[int] = BATCHES
) -> tuple[dict[str, Backend], dict[str, str]]:
    """The backends of these names for `network`, and for each that cannot be had the reason.

    Puts the network into `eval`. Exports and compiles here, each probed at every batch size: charge it to `measure`.
    """
    builders: dict[str, Callable[[], Backend]] = {
        "eager": lambda: network,
        "torch.compile": lambda: compiled_backend(network, make_input, batches),
        "onnxruntime": lambda: onnxruntime_backend(network, make_input, batches),
    }
    network.eval()
    backends: dict[str, Backend] = {}
    absent: dict[str, str] = {}
    for name in names:
        if name not in builders:
            raise SettingsError(f"measure has no backend {name!r}; it has {', '.join(builders)}")
        try:
            backends[name] = builders[name]()
        except Exception as error:  # compilers and exporters raise whatever they like; the others go on
            absent[f"latency.{name}"] = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
                if str(error).strip()
                else type(error).__name__
            )
    return backends, absent


def compiled_backend(network: nn.Module, make_input: Callable[[int], Tensor], batches: Sequence[int]) -> Backend:
    """`network` under torch.compile, compiled for each batch size. Raises what the compiler raises."""
    compiled = torch.compile(network, dynamic=False)
    with torch.inference_mode():
        for batch in batches:
            compiled(make_input(batch))
    return compiled


def onnxruntime_backend(network: nn.Module, make_input: Callable[[int], Tensor], batches: Sequence[int]) -> Backend:
    """`network` exported with a dynamic batch and run by ONNX Runtime on the CPU, with torch's number of threads.

    Raises ImportError without onnxruntime, and what the exporter raises.
    """
    import onnxruntime

    example = make_input(2).cpu()  # a batch of one would be taken for a constant
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        torch.onnx.export(
            network,
            (example,),
            str(file),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch_input: Tensor) -> Any:
        return session.run(None, {name: batch_input.numpy()})

    for batch in batches:
        run(make_input(batch).cpu())
    return run


def _interleave(
    backends: Mapping[str, Backend], batch_input: Tensor, seconds: float, min_iterations: int
) -> dict[str, list[float]]:
    """Sorted call times in seconds. The backends take turns of about a twentieth of their time, so that a change in
    the machine's load meets them all, while each still runs with warm caches."""
    device = batch_input.device
    times: dict[str, list[float]] = {name: [] for name in backends}
    spent = dict.fromkeys(backends, 0.0)
    waiting = set(backends)
    while waiting:
        for name in sorted(waiting):
            backend, taken = backends[name], times[name]
            turn = 0.0
            while True:
                begin = time.perf_counter()
                backend(batch_input)
                synchronize(device)
                elapsed = time.perf_counter() - begin
                taken.append(elapsed)
                turn += elapsed
                if turn >= seconds / 20:
                    break
            spent[name] += turn
            if spent[name] >= seconds and len(taken) >= min_iterations:
                waiting.discard(name)
    return {name: sorted(taken) for name, taken in times.items()}
