"""`precision=`: in which numbers weights are kept and products computed, as the device really does it.

Lightning's plugins do the work, with two gaps closed: on a CPU it would run `16-mixed` as bf16 without a word in the
record, and it knows no float8 through torchao.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from omegaconf import DictConfig
from torch import nn

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
    if node.float8:
        if importlib.util.find_spec("torchao") is None:
            raise RefusedError('precision=fp8 needs torchao; install it with: pip install "frugal-ml[torchao]"') from None
        if not node.emulate and capability < (8, 9):
            raise RefusedError(
                f"precision=fp8 needs an NVIDIA GPU from Ada or Hopper on, this run would be on {device}; "
                "precision.emulate=true computes its values without the speed"
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
            scaler = torch.amp.GradScaler(device, init_scale=float(loss_scale), growth_interval=NEVER)  # type: ignore[arg-type]
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


# ------------------------------------------------------------------------------------------------------------- float8
def to_float8(cfg: DictConfig, network: nn.Module) -> dict[str, Any]:
    """Replace linear layers by torchao's Float8Linear, in place; state keys stay. What was replaced, for the record.

    Raises RefusedError where no layer's widths are divided by 16, as the hardware's products need.
    """
    if not cfg.precision.float8:
        return {}
    with _quietly():
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
        from torchao.float8.float8_linear import Float8Linear

    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    fits = {name for name, module in linear.items() if module.in_features % 16 == 0 and module.out_features % 16 == 0}
    if not fits:
        raise RefusedError("precision=fp8: no linear layer of this network has both widths divided by 16")
    convert_to_float8_training(
        network,
        module_filter_fn=lambda _, name: name in fits,
        config=Float8LinearConfig(emulate=bool(cfg.precision.emulate)),
    )
    replaced = [name for name, module in network.named_modules() if isinstance(module, Float8Linear)]
    return {"float8": replaced, "kept": sorted(set(linear) - set(replaced)), "emulated": bool(cfg.precision.emulate)}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """torchao warns of kernels for other hardware as it is imported."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def from_float8(network: nn.Module) -> nn.Module:
    """Put plain linear layers with the same parameters back, in place: what is written and tested computes in floats."""
    for name, module in list(network.named_modules()):
        if type(module).__name__ != "Float8Linear":
            continue
        assert isinstance(module, nn.Linear)
        plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        plain.weight, plain.bias = module.weight, module.bias
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, plain)
    return network
