"""From the meters to the record: each function fills its own sections and says why a figure is absent."""

from __future__ import annotations

import copy
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import frugal
from frugal import artefact, console
from frugal.coding.encoding import encodings_of
from frugal.deploy.base import FileNetwork
from frugal.manifest import processor_name
from frugal.measure import (
    Ledger,
    compute_figures,
    diagnose,
    measure_latency,
    size_figures,
    sparsity_figures,
)
from frugal.measure.flops import StepFlops, forward_flops, remaining_flops
from frugal.measure.latency import LEVELS, build_backends
from frugal.measure.size import plain_weights
from frugal.models.generate import timed_paths
from frugal.precision import compute_dtype
from frugal.pruning.n_m import accelerate, no_kernels
from frugal.record import Fingerprint, Record

if TYPE_CHECKING:
    from frugal.build import Fit
    from frugal.data.module import DataModule


def set_fingerprint(record: Record, cfg: DictConfig, data: DataModule, trainer: pl.Trainer | None = None) -> None:
    """What must agree between two runs that are compared."""
    device = trainer.strategy.root_device if trainer is not None else torch.device("cpu")
    ranks = trainer.world_size if trainer is not None else 1
    names = {"cpu": processor_name, "cuda": lambda: torch.cuda.get_device_name(device)}
    kind = names.get(device.type, lambda: device.type)()
    record.fingerprint = Fingerprint(
        device=f"{ranks}x {kind}" if ranks > 1 else kind,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        lightning=pl.__version__,
        frugal=frugal.__version__,
        data_sha256=data.sha256(),
        precision=precision_name(cfg),
        # data.batch_size is that of all ranks together
        effective_batch=data.batch_size * int(cfg.trainer.accumulate_grad_batches) if trainer is not None else None,
    )


def record_quality(record: Record, trainer: pl.Trainer) -> None:
    """The last training and validation metrics; those of the test come from the artefact."""
    for name, value in trainer.callback_metrics.items():
        if name.startswith(("train/", "val/")):
            record.quality[name] = float(value)


def record_fit(record: Record, fit: Fit) -> None:
    """What the meters saw while the network was trained."""
    record.throughput = fit.throughput.figures()
    record.memory = fit.memory.figures()
    record.energy = fit.energy.figures()
    for meter in (fit.throughput, fit.memory, fit.energy):
        record.absent.update(meter.absent)
    if fit.budget is not None:
        record.budget = fit.budget.figures()
    if fit.target is not None:
        figures = fit.target.figures()
        record.time.to_target_s, record.time.to_target_train_s = figures["to_target_s"], figures["train_s"]
        record.absent.update(fit.target.absent)
    else:
        reason = "no target was set (run.target)"
        record.absent |= {"time.to_target_s": reason, "time.to_target_train_s": reason}


def record_compute(record: Record, cfg: DictConfig, flops: StepFlops | None, fit: Fit) -> None:
    """Operations of the training and the share of the device's peak that they reached; after `record_fit`."""
    data: DataModule = fit.trainer.datamodule  # type: ignore[attr-defined]
    batch, example = data.batch_size, data.example(1, "meta")
    device = fit.trainer.strategy.root_device
    record.compute, absent = compute_figures(
        flops,
        batch,
        record.throughput,
        device,
        compute_dtype(str(cfg.precision.mode)),
        samples_trained=fit.throughput.samples_trained,
        samples_per_step=batch * int(cfg.trainer.accumulate_grad_batches),
        tokens_per_sample=None if example.is_floating_point() else example.shape[1],
        tokens_trained=fit.throughput.tokens_trained,
        uneven="a curriculum's shorter blocks cost less than the whole ones that were counted"
        if getattr(data, "curriculum", None) is not None
        else None,
        tf32=str(cfg.precision.matmul) != "highest",
        devices=fit.trainer.world_size,
        no_peak=None if cfg.measure.mfu else "measure.mfu=false",
    )
    record.absent.update(absent)


def measure_network(
    record: Record,
    cfg: DictConfig,
    network: nn.Module,
    data: DataModule,
    file: Path,
    device: torch.device,
    make_dense: Callable[[], nn.Module] | None = None,
) -> None:
    """Size, sparsity and latency of the artefact as it was read back.

    Where it computes otherwise than the network of its option (smaller shapes, another runtime), that one, from
    `make_dense`, is measured in turn with it; from `measure=standard` up also where only its weights were compressed.
    """
    network = network.to(device).eval()
    apart = isinstance(network, FileNetwork) or bool(getattr(network, "frugal_shapes", None))
    apart = apart or (LEVELS[cfg.measure.latency].claims and status_of(record, network) != "dense")
    dense = make_dense().to(device).eval() if apart and make_dense is not None else None
    record.size = size_figures(network, file, dense)
    record.sparsity = sparsity_figures(network)
    example = typical_input(data)
    # A network that `precision=bf16_true` left in half takes its inputs in half; tokens stay what they are.
    dtype = artefact.floating_dtype(network.parameters()) if example.is_floating_point() else None
    _measure_latency(record, cfg, network, dense, example.to(device, dtype))


def typical_input(data: DataModule) -> Tensor:
    """One input (1, ...) as the network takes it; a text is as long as the training's are on average."""
    if data.example(1).is_floating_point():
        return next(iter(data.calibration_batches(1)))[:1]
    batch, length = next(iter(data.calibration_batches(64))), data.example(1).shape[1]
    longest = torch.count_nonzero(batch, dim=1).argmax() if batch.shape[1] > length else 0  # padding is 0
    return batch[longest : longest + 1, :length]


def precision_name(cfg: DictConfig) -> str:
    """Of weights and products, as they really were: Lightning's name, and what it has no name for."""
    node = cfg.precision
    if str((cfg.get("quantization") or {}).get("_target_")).endswith(".FP8"):
        return "fp8, emulated" if cfg.quantization.emulate else "fp8"
    return "32-true, tf32" if node.mode == "32-true" and node.matmul != "highest" else str(node.mode)


def _measure_latency(
    record: Record, cfg: DictConfig, network: nn.Module, dense: nn.Module | None, example: Tensor
) -> None:
    level = LEVELS[cfg.measure.latency]
    if not level.backends:
        record.absent["latency"] = f"measure.latency={cfg.measure.latency}"
        return
    batches = [int(batch) for batch in cfg.measure.batches]

    def make_input(batch: int) -> Tensor:
        return example.expand(batch, *example.shape[1:]).contiguous()

    status = status_of(record, network)
    backends, absent = build_backends(dense or network, level.backends, make_input, batches)
    statuses: dict[str, Any] = dict.fromkeys(backends, status if dense is None else "dense")
    fewer: float | None = None  # a file that is run as it lies keeps no count of its multiply-adds
    if isinstance(network, FileNetwork):
        backends[network.backend], statuses[network.backend] = network, status
    elif status != "dense":
        left = remaining_flops(network, make_input(1))
        fewer = forward_flops(dense or network, make_input(1)) / left if left else None
        if dense is not None:
            own, further = build_backends(network, level.backends, make_input, batches)
            absent |= {f"{key}, {status}": reason for key, reason in further.items()}
            backends |= {f"{name}, {status}": backend for name, backend in own.items()}
            statuses |= dict.fromkeys((f"{name}, {status}" for name in own), status)
    kernels = _with_sparse_kernels(record, network, make_input, batches)
    if kernels is not None:
        backends["eager, 2:4 kernels"], statuses["eager, 2:4 kernels"] = kernels, "converted"
    record.absent.update(absent)
    # a language model's ways of generating, at the first batch size only where it must be quick
    paths = timed_paths(network)
    statuses |= dict.fromkeys(paths, status)
    with_paths = backends | paths
    turns = [(batches[:1], with_paths), (batches[1:], with_paths if level.claims else backends)]
    with console.progress("Measuring latency", sum(len(sizes) * len(timed) for sizes, timed in turns)) as bar:
        for sizes, timed in turns:
            before = bar.done
            record.latency += measure_latency(
                timed,
                make_input,
                sizes,
                seconds=level.seconds,
                status=statuses,
                reference="eager",
                speedup_theoretical=fewer,
                claims=level.claims,
                on_progress=lambda done, _, label: bar.advance(before + done - bar.done, f"Measuring latency: {label}"),  # noqa: B023
            )


def _with_sparse_kernels(
    record: Record, network: nn.Module, make_input: Callable[[int], Tensor], batches: list[int]
) -> nn.Module | None:
    """A copy that computes with the kernels of a 2:4 pattern, or None: a file cannot hold them, so they are put in
    where it is measured. Where pruning left that pattern and they cannot be had, the record says why."""
    if record.techniques.get("pruning", {}).get("pattern") != "2:4" or isinstance(network, FileNetwork):
        return None
    reason = no_kernels()
    if reason is None:
        copied = copy.deepcopy(network)
        try:
            done = accelerate(copied)
            with torch.inference_mode():
                for batch in batches:
                    copied(make_input(batch))
        except RuntimeError as error:  # of a kernel, for sizes that it does not take
            reason = str(error).splitlines()[0][:200]
        else:
            if done:
                return copied
            reason = "no linear layer on the device in half precision whose sizes fit; see precision=bf16_true"
    record.absent["latency.2:4 kernels"] = reason
    return None


def status_of(record: Record, network: nn.Module) -> Any:
    """`dense`, unless a technique says what it really did, or zeros are kept in dense tensors."""
    if getattr(network, "frugal_shapes", None) or (isinstance(network, FileNetwork) and network.converted):
        return "converted"
    for figures in reversed(list(record.techniques.values())):
        if figures.get("status"):
            return figures["status"]
    if encodings_of(network):  # of a file that is evaluated: nobody says which techniques made it
        return "simulated"
    zeros = sum(int((weight == 0).sum()) for weight in plain_weights(network).values() if weight.ndim >= 2)
    return "masked" if zeros and record.techniques.keys() - {"strategy", "compile"} else "dense"


def record_time(record: Record, ledger: Ledger, fit: Fit | None = None) -> None:
    """The closed ledger and its one sentence of diagnosis; call it last."""
    cfg = record.config
    record.time.ledger_s = ledger.seconds()
    record.time.wall_s = sum(record.time.ledger_s.values())
    if fit is not None:
        record.diagnosis = diagnose(
            record.time.ledger_s, record.throughput, {**flatten(cfg), "device": fit.trainer.strategy.root_device.type}
        )
        trouble = not_finite(record.quality)
        if trouble is not None:
            record.diagnosis = f"{trouble} {record.diagnosis}"


def not_finite(quality: dict[str, float]) -> str | None:
    """A sentence on a training whose last loss is no number any more, or None."""
    for name in ("train/loss", "val/loss"):
        value = quality.get(name, 0.0)
        if not math.isfinite(value):
            what = "NaN" if math.isnan(value) else "infinite"
            return f"The loss became {what} ({name}): try a smaller optim.lr or trainer.gradient_clip_val."
    return None


def flatten(node: dict[str, Any], key: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        dotted = f"{key}.{name}" if key else str(name)
        flat |= flatten(value, dotted) if isinstance(value, dict) else {dotted: value}
    return flat
