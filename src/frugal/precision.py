"""`precision=`: in which numbers weights are kept and products computed, as the device really does it.

Lightning's plugins do the work, with a gap closed: on a CPU it would run `16-mixed` as bf16 without a word in the
record. `precision=fp8` is the technique `quantization=fp8` in a run of bf16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from omegaconf import DictConfig

from frugal.errors import RefusedError

NEVER = 2**31 - 1  # steps after which a fixed loss scale would grow


def device_type(cfg: DictConfig) -> str:
    """What `trainer.accelerator` will train on: cpu, cuda, mps or another kind."""
    accelerator = str(cfg.trainer.accelerator)
    if accelerator in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return accelerator


def check(cfg: DictConfig) -> None:
    """Raises RefusedError where this machine cannot compute as `precision=` says."""
    node, device = cfg.precision, device_type(cfg)
    capability = torch.cuda.get_device_capability() if device == "cuda" and torch.cuda.is_available() else (0, 0)
    if node.matmul != "highest" and capability < (8, 0):
        raise RefusedError(
            f"precision.matmul={node.matmul}: TF32 needs an NVIDIA GPU from Ampere on, this run would be on {device}; "
            "choose precision=fp32 or precision=bf16"
        )
    if device == "mps" and node.mode == "64-true":
        raise RefusedError("precision=fp64: MPS has no 64-bit floats; set trainer.accelerator=cpu")


def trainer_arguments(cfg: DictConfig) -> dict[str, Any]:
    """`precision` or a plugin in its place, for Lightning's Trainer."""
    node, device = cfg.precision, device_type(cfg)
    if node.mode != "16-mixed":
        return {"precision": node.mode}
    return {"plugins": [ScaledFloat16(device, node.loss_scale)]}


class ScaledFloat16(MixedPrecision):
    """float16 autocast with loss scaling (Micikevicius et al. 2018, section 3.2) on any device, CPUs among them.

    Args:
        device: as `torch.autocast` names it.
        loss_scale: `dynamic`: from 2**16 on, doubled after 2,000 steps without overflow; or a number, from which it is
            only ever halved, where a step overflowed and was left out.
    """

    def __init__(self, device: str, loss_scale: float | str | None = "dynamic") -> None:
        if loss_scale in (None, "dynamic"):
            scaler = torch.amp.GradScaler(device)
        else:
            scaler = torch.amp.GradScaler(device, init_scale=float(loss_scale), growth_interval=NEVER)
        super().__init__("16-mixed", device, scaler)


def compute_dtype(mode: str) -> torch.dtype:
    """In which the matrix products run."""
    if mode.startswith("bf16"):
        return torch.bfloat16
    if mode.startswith("16"):
        return torch.float16
    return torch.float64 if mode.startswith("64") else torch.float32


@contextlib.contextmanager
def products(cfg: DictConfig) -> Iterator[None]:
    """With `precision.matmul` as torch's setting; a process may run other jobs afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(str(cfg.precision.matmul))
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
