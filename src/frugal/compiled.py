"""`compile=`: the network under torch.compile, with its graphs counted and its cost weighed against eager steps.

The network's call is compiled, not the LightningModule, and in place: parameters keep their names in checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from frugal.errors import RefusedError, RunError
from frugal.measure.meter import Meter
from frugal.measure.throughput import quantile, synchronize
from frugal.precision import device_type

ROUNDS = 9  # timed steps of either kind


def check(cfg: DictConfig) -> None:
    """Raises RefusedError where this machine cannot do what `compile=` asks for."""
    if cfg.compile.mode == "reduce-overhead" and device_type(cfg) != "cuda":
        raise RefusedError(
            f"compile=cuda_graphs: CUDA graphs need CUDA, this run would be on {device_type(cfg)}; "
            "choose compile=default"
        )


def graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


class Compiled(Meter):
    """Compiles a network's call for training, and fails where nothing was compiled.

    Args:
        network: as the LightningModule holds it; `take_off` makes it eager again.
        mode, dynamic, fullgraph: torch.compile's. `dynamic` None: the first change of a size makes that size dynamic.
    """

    def __init__(self, network: nn.Module, mode: str, dynamic: bool | None = None, fullgraph: bool = False) -> None:
        super().__init__()
        self.network, self.mode = network, mode
        self._before = graphs()
        self.graphs = 0
        # Through a function of ours: of modules like nn.Sequential, whose code is torch's own, Dynamo skips the call.
        call = network._call_impl
        compiled: Any = torch.compile(
            lambda *inputs, **named: call(*inputs, **named), mode=mode, dynamic=dynamic, fullgraph=fullgraph
        )
        network._compiled_call_impl = compiled
        self._compiled: Callable[..., Any] = compiled

        def after_first(trainer: pl.Trainer, *_: Any) -> None:
            self.on_train_batch_end = None
            if graphs() == self._before:
                raise RunError(
                    f"compile.mode={self.mode}: torch.compile made no graph of {type(network).__name__}; "
                    "set compile=none"
                )

        self.on_train_batch_end = after_first

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.take_off()

    def take_off(self) -> None:
        """Make the network eager again, and count its graphs."""
        self.graphs = graphs() - self._before
        self.network._compiled_call_impl = None

    def figures(self, batch: Tensor, compile_s: float) -> dict[str, Any]:
        """After training: graphs, seconds of compilation, and after how many steps those were earned back.

        Forward and backward passes of `batch` (B, ...), in training mode, eager and compiled in turn; medians. The
        network's buffers and gradients are left as they were. `break_even_steps` is None where compiled ones are no
        faster.
        """
        network = self.network
        kept = [(buffer, buffer.clone()) for buffer in network.buffers()]
        training = network.training
        network.train()
        eager: Callable[..., Any] = network._call_impl
        seconds: dict[str, list[float]] = {"eager": [], "compiled": []}
        try:
            for call in (eager, self._compiled):
                _step(call, batch)  # what the last size of training had left to compile
            for _ in range(ROUNDS):
                for name, call in (("eager", eager), ("compiled", self._compiled)):
                    network.zero_grad(set_to_none=True)
                    synchronize(batch.device)
                    begin = time.perf_counter()
                    _step(call, batch)
                    synchronize(batch.device)
                    seconds[name].append(time.perf_counter() - begin)
        finally:
            network.zero_grad(set_to_none=True)
            network.train(training)
            with torch.no_grad():
                for buffer, before in kept:
                    buffer.copy_(before)
        eager_s, compiled_s = quantile(seconds["eager"], 0.5), quantile(seconds["compiled"], 0.5)
        saved = eager_s - compiled_s
        return {
            "mode": self.mode,
            "graphs": self.graphs,
            "compile_s": compile_s,
            "eager_step_s": eager_s,
            "compiled_step_s": compiled_s,
            "break_even_steps": round(compile_s / saved) if saved > 0 else None,
        }


def _step(call: Callable[..., Any], batch: Tensor) -> None:
    output = call(batch)
    (output[0] if isinstance(output, tuple) else output).float().mean().backward()
