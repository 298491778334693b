"""`MasterSGD`: SGD of weights in half precision, each with a master copy in float32 that its steps add up in.

A bfloat16 has eight bits of significand: a step below 1/512 of a weight is rounded away, and so are most steps once the
learning rate falls. The master keeps them (Micikevicius et al. 2018); after each step the weight is its rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from frugal.errors import SettingsError
from frugal.optim.optimizers import _PlainZeroGrad

HALVES = (torch.bfloat16, torch.float16)


class MasterSGD(_PlainZeroGrad):
    """torch's SGD, `weight_decay` being an L2 penalty in the gradient, computed in float32 throughout.

    The state of a parameter in half precision holds `master` and, with momentum, `momentum_buffer`, both float32. A
    wider parameter needs no master and is stepped as it is. A master is taken from its weight at the first step and
    rules from then on: what else changes the weight between two steps (a mask, say) lasts until the next one.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.01,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if not 0 <= momentum < 1:
            raise SettingsError(f"optim.momentum={momentum} must be at least 0 and below 1")
        if nesterov and momentum == 0:
            raise SettingsError("optim.nesterov=true needs optim.momentum above 0")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
            if params:
                self._step_group(params, grads, group)
        return loss

    def _step_group(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        masters = [self._master(p) for p in params]
        # a copy even where there is nothing to convert: the updates are computed in it
        updates = [torch.empty_like(master) for master in masters]
        torch._foreach_copy_(updates, grads)
        if group["weight_decay"]:
            torch._foreach_add_(updates, masters, alpha=group["weight_decay"])
        if group["momentum"]:
            # at the first step the buffer becomes the gradient itself, as torch's does
            buffers = [self._buffer(p, master) for p, master in zip(params, masters, strict=True)]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            if group["nesterov"]:
                torch._foreach_add_(updates, buffers, alpha=group["momentum"])
            else:
                updates = buffers
        torch._foreach_add_(masters, updates, alpha=-group["lr"])
        halves = [(p, master) for p, master in zip(params, masters, strict=True) if p is not master]
        if halves:
            torch._foreach_copy_([p for p, _ in halves], [master for _, master in halves])

    def _master(self, p: Tensor) -> Tensor:
        if p.dtype not in HALVES:
            return p
        state = self.state[p]
        if "master" not in state:
            state["master"] = p.detach().float()
        return state["master"]

    def _buffer(self, p: Tensor, master: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(master)
        return state["momentum_buffer"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # torch has cast the state to its parameters' dtype: masters would be rounded, and a resume no longer exact
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(indices, params, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                self.state[p][name] = value.detach().clone().to(p.device)
