"""Muon (Jordan et al. 2024): momentum made orthogonal for hidden matrices, AdamW for everything else, as one optimizer.

https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from frugal.errors import SettingsError
from frugal.optim.optimizers import _fuse, _pair, _PlainZeroGrad

Compute = Literal["auto", "float32", "bfloat16"]
Adjust = Literal["original", "match_rms_adamw"]

# The quintic of Jordan's Newton-Schulz iteration, torch's too: the same in each step, and it never converges.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

# Amsel et al. 2025 ("The Polar Express", arXiv 2505.16932), Algorithm 1 and its listing: each step's quintic is the
# best one for the interval that the steps before it leave of [0.001, 1]; later steps repeat the last.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
SAFETY = 1.01  # rounding must not lift a singular value over 1, where the first quintics fall steeply


def orthogonalize(
    matrices: Tensor, steps: int = 5, polar_express: bool = True, dtype: torch.dtype | None = None
) -> Tensor:
    """Nearest semi-orthogonal matrices (their singular values set to 1), about.

    `matrices` (rows, columns), or (batch, rows, columns) at once; `dtype` is that of the products (default: theirs)
    and of the result. Singular values down to 0.005 of the Frobenius norm end between 0.19 and 1.87 after three steps
    of Polar Express and between 0.87 and 1.13 after five; after five of Newton-Schulz between 0.68 and 1.20.
    """
    x = matrices if dtype is None else matrices.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = _turned(x)
    plus_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / (norm * (SAFETY if polar_express else 1.0)).clamp(min=1e-7)
    for a, b, c in _coefficients(steps, polar_express):
        gram = x @ x.mT
        x = plus_product(x, plus_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return _turned(x) if tall else x


@functools.cache
def _coefficients(steps: int, polar_express: bool) -> list[tuple[float, float, float]]:
    if not polar_express:
        return [NEWTON_SCHULZ] * steps
    last = len(POLAR_EXPRESS) - 1
    safe = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in POLAR_EXPRESS[:-1]] + [POLAR_EXPRESS[-1]]
    return [safe[min(step, last)] for step in range(steps)]


def hidden_matrices(network: nn.Module) -> list[nn.Parameter]:
    """Two-dimensional weights that map hidden features to hidden features.

    Not those of embeddings, nor of the output layer, which is `network.head` or, where that is none, the last Linear.
    A weight that an embedding shares is the embedding's. Parametrized weights count by the parameters behind them
    (`weight_orig`, `parametrizations.weight.original`), low-rank factors too.
    """
    modules = list(network.modules())
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    head = getattr(network, "head", linear[-1] if linear else None)  # None: an embedding is the output layer too
    ends = [module for module in modules if isinstance(module, nn.Embedding | nn.EmbeddingBag) or module is head]
    excluded = {id(p) for module in ends for p in module.parameters()}
    return [p for name, p in network.named_parameters() if p.ndim == 2 and "weight" in name and id(p) not in excluded]


class Muon(_PlainZeroGrad):
    """Muon for the hidden matrices of `network`, AdamW for its embeddings, output layer and vectors.

    A hidden matrix W takes the step ``W -= lr * scale * orthogonalize(momentum)``, after decoupled weight decay
    ``W *= 1 - lr * weight_decay``, as `torch.optim.Muon` has it; a schedule scales the learning rates of both alike.

    Args:
        params: what is trained; what of it is no hidden matrix of `network` is AdamW's.
        lr: length of a hidden matrix' step: the spectral norm of its change, up to `adjust_lr`.
        ns_steps: steps of the orthogonalization. Three cost two fifths less than five; Tiny Shakespeare then took a
            tenth more training steps.
        polar_express: coefficients of Polar Express, others in each step; false: those of Newton-Schulz.
        adjust_lr: `original` scales by sqrt(max(1, rows / columns)), `match_rms_adamw` by 0.2 sqrt(max(rows, columns)),
            so that rates found for AdamW carry over (Liu et al. 2025).
        adam_weight_decay: of parameters with two dimensions or more.
        compute: dtype of the orthogonalization; `auto` is bfloat16 where the hardware has matrix units for it.
        fused: of AdamW; null decides by `can_fuse`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        network: nn.Module,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        polar_express: bool = True,
        adjust_lr: Adjust = "original",
        weight_decay: float = 0.0,
        adam_lr: float = 3e-3,
        betas: list[float] | tuple[float, ...] = (0.9, 0.95),
        eps: float = 1e-8,
        adam_weight_decay: float = 0.0,
        compute: Compute = "auto",
        fused: bool | None = None,
    ) -> None:
        if not 0 <= momentum < 1:
            raise SettingsError(f"optim.momentum={momentum} must be at least 0 and below 1")
        if ns_steps < 1:
            raise SettingsError(f"optim.ns_steps={ns_steps} must be at least 1")
        if adjust_lr not in ("original", "match_rms_adamw"):
            raise SettingsError(f"optim.adjust_lr={adjust_lr} is unknown; choose original or match_rms_adamw")
        if compute not in ("auto", "float32", "bfloat16"):
            raise SettingsError(f"optim.compute={compute} is unknown; choose auto, float32 or bfloat16")
        params = list(params)
        hidden = {id(p) for p in hidden_matrices(network)}
        matrices = [p for p in params if id(p) in hidden]
        rest = [p for p in params if id(p) not in hidden]
        muon = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "polar_express": polar_express,
            "adjust_lr": adjust_lr,
            "weight_decay": weight_decay,
            "compute": compute,
        }
        fused = _fuse(rest, fused)
        adam = {"lr": adam_lr, "betas": _pair(betas), "eps": eps, "fused": fused}
        groups: list[dict[str, Any]] = [
            {"params": matrices, "muon": True, **muon},
            {"params": [p for p in rest if p.ndim >= 2], "muon": False, "weight_decay": adam_weight_decay, **adam},
            {"params": [p for p in rest if p.ndim < 2], "muon": False, "weight_decay": 0.0, **adam},
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
            if params and group["muon"]:
                self._step_matrices(params, grads, group)
            elif params:
                self._step_rest(params, grads, group)
        return loss

    def _step_matrices(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        buffers = [self._buffer(p, "momentum_buffer") for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"]) if group["nesterov"] else buffers
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for members in _by_shape(params):
            wide = [_wide(updates[i]) for i in members]
            first = params[members[0]]
            found = orthogonalize(
                torch.stack(wide) if len(wide) > 1 else wide[0],
                group["ns_steps"],
                group["polar_express"],
                _compute_dtype(group["compute"], first.device.type, first.dtype),
            )
            for i, direction in zip(members, found.unbind() if len(wide) > 1 else [found], strict=True):
                p = params[i]
                direction = direction if direction.shape == p.shape else _turned(direction)
                p.add_(direction, alpha=-group["lr"] * _scale(p, group["adjust_lr"]))

    def _step_rest(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if "step" not in self.state[p]:
                self.state[p]["step"] = torch.zeros((), device=p.device if group["fused"] else "cpu")
        adamw(
            params,
            grads,
            [self._buffer(p, "exp_avg") for p in params],
            [self._buffer(p, "exp_avg_sq") for p in params],
            [],
            [self.state[p]["step"] for p in params],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _buffer(self, p: Tensor, name: str) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p)
        return state[name]


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.size(0) <= matrix.size(1) else _turned(matrix)


def _turned(matrices: Tensor) -> Tensor:
    """Transposed in memory too: products and sums with a transposed view took three to ten times as long on a CPU."""
    return matrices.mT.contiguous()


def _by_shape(params: Sequence[Tensor]) -> list[list[int]]:
    """Positions of the matrices that go through the products as one batch: of one shape, tall ones turned."""
    found: dict[Any, list[int]] = {}
    for position, p in enumerate(params):
        found.setdefault((*sorted(p.shape), p.dtype, p.device), []).append(position)
    return list(found.values())


def _scale(p: Tensor, adjust: Adjust) -> float:
    rows, columns = p.shape
    return math.sqrt(max(1.0, rows / columns)) if adjust == "original" else 0.2 * math.sqrt(max(rows, columns))


@functools.cache
def _compute_dtype(compute: Compute, device: str, dtype: torch.dtype) -> torch.dtype:
    """On a CPU with AMX, bfloat16 was up to six times as fast as float32 (one thread, matrices of 256 and more)."""
    if compute != "auto":
        return torch.bfloat16 if compute == "bfloat16" else torch.float32
    if device == "cpu":
        tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
        fast = tiles is not None and tiles()
    else:
        fast = device != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if fast:
        return torch.bfloat16
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
