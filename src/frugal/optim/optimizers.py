"""torch's SGD, Adam and AdamW with plain-typed options, fused where that is possible and not told otherwise.

A fused step updates all parameters in one kernel. On a CPU it was as fast as torch's default or faster, up to four
times as fast (a step of AdamW on LeNet-5, 2 threads).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from frugal.errors import SettingsError

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    """Fused kernels take dense floating-point parameters, on a CPU no halves; tensor subclasses (sharded ones) lack
    some of them."""
    return all(
        p.is_floating_point()
        and p.device.type in FUSED_DEVICES
        and type(p.data) is torch.Tensor
        and not p.is_sparse
        and not _half_on_cpu(p)
        for p in parameters
    )


def _half_on_cpu(p: nn.Parameter) -> bool:
    """torch 2.13's fused SGD leaves most of such parameters' elements as they are, without a word."""
    return p.device.type == "cpu" and p.dtype not in (torch.float32, torch.float64)


def _fuse(parameters: list[nn.Parameter], fused: bool | None) -> bool:
    """Whether to fuse, by `can_fuse` unless the user says. Raises SettingsError where that would not train."""
    half = next((p for p in parameters if _half_on_cpu(p)), None)
    if fused and half is not None:
        dtype = str(half.dtype).removeprefix("torch.")
        raise SettingsError(f"optim.fused=true does not train {dtype} parameters on a CPU; set optim.fused=null")
    return can_fuse(parameters) if fused is None else fused


class _PlainZeroGrad(Optimizer):
    """Drops gradients without torch's profiler range and compiler guard around it: 30 microseconds a step."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


class SGD(_PlainZeroGrad, torch.optim.SGD):
    """`fused`: null decides by `can_fuse`."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.01,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        fused: bool | None = None,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise SettingsError("optim.nesterov=true needs optim.momentum above 0 and optim.dampening=0")
        params = list(params)
        fused = _fuse(params, fused)
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, fused=fused)
        self._step_supports_amp_scaling = False  # as in Adam


class Adam(_PlainZeroGrad, torch.optim.Adam):
    """`fused`: null decides by `can_fuse`. `weight_decay` is an L2 penalty in the gradient."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: list[float] | tuple[float, ...] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        fused: bool | None = None,
    ) -> None:
        params = list(params)
        fused = _fuse(params, fused)
        super().__init__(params, lr, _pair(betas), eps, weight_decay, amsgrad, fused=fused)
        # Else Lightning refuses gradient clipping beside fp16: it takes the gradient scaler's own unscaling instead.
        self._step_supports_amp_scaling = False


class AdamW(_PlainZeroGrad, torch.optim.AdamW):
    """`fused`: null decides by `can_fuse`. `weight_decay` is decoupled (Loshchilov and Hutter 2019).

    `decay` says of what: `all`, or `matrices`, parameters with two dimensions or more, so that biases and the gains of
    norms are spared (as GPT-2's successors do).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: list[float] | tuple[float, ...] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        fused: bool | None = None,
        decay: Literal["all", "matrices"] = "all",
    ) -> None:
        if decay not in ("all", "matrices"):
            raise SettingsError(f"optim.decay={decay} is unknown; choose all or matrices")
        params = list(params)
        fused = _fuse(params, fused)
        groups: list[dict[str, Any]] = [{"params": params}]
        if decay == "matrices":
            decayed, spared = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
            groups = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        super().__init__(groups, lr, _pair(betas), eps, weight_decay, amsgrad, fused=fused)
        self._step_supports_amp_scaling = False  # as in Adam


def _pair(betas: list[float] | tuple[float, ...]) -> tuple[float, float]:
    if len(betas) != 2:
        raise SettingsError(f"optim.betas={list(betas)} must be two numbers")
    return betas[0], betas[1]
