"""Optimizers: fused where it can be and equal to torch's own, state safe to load, options refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision.amp import _optimizer_handles_unscaling
from torch import nn

from frugal.errors import SettingsError
from frugal.optim.optimizers import SGD, Adam, AdamW, can_fuse

PAIRS: list[tuple[Any, Any, dict[str, Any]]] = [
    (SGD, torch.optim.SGD, {"lr": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "dampening": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (Adam, torch.optim.Adam, {"lr": 0.01, "betas": [0.8, 0.9], "weight_decay": 0.1, "amsgrad": True}),
    (AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
]


def train(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        (parameter * torch.linspace(-1, 1, 4) * (step + 1)).pow(2).sum().backward()
        optimizer.step()


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.5]))


@pytest.mark.parametrize(("ours", "torchs", "options"), PAIRS)
def test_fused_and_equal_to_torch(ours: Any, torchs: Any, options: dict[str, Any]) -> None:
    p, q = parameter(), parameter()
    optimizer = ours(iter([p]), **options)
    assert optimizer.param_groups[0]["fused"] is True
    train(optimizer, p, 4)
    train(torchs([q], **options), q, 4)
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize(("ours", "torchs", "options"), PAIRS)
def test_state_loads_with_weights_only_and_goes_on(
    ours: Any, torchs: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    p = parameter()
    optimizer = ours([p], **options)
    train(optimizer, p, 3)
    torch.save([p.detach(), optimizer.state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    q = nn.Parameter(weights)
    resumed = ours([q], **options)
    resumed.load_state_dict(state)
    train(optimizer, p, 2)
    train(resumed, q, 2)
    assert torch.equal(p, q)


def test_fused_only_where_it_can_be() -> None:
    assert can_fuse([parameter()])
    assert not can_fuse([parameter(), nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    assert not can_fuse([nn.Parameter(torch.zeros(2, device="meta"))])

    class Sharded(torch.Tensor):
        pass

    assert not can_fuse([nn.Parameter(torch.zeros(2).as_subclass(Sharded))])
    assert SGD([parameter()], fused=False).param_groups[0]["fused"] is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("ours", "options"), [(SGD, {}), (SGD, {"momentum": 0.9}), (Adam, {}), (AdamW, {"weight_decay": 0.0})]
)
def test_a_step_moves_every_weight_in_every_dtype(ours: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    """32 and more weights: torch 2.13's fused SGD leaves whole vectors of halves as they are."""
    p = nn.Parameter(torch.ones(100, dtype=dtype))
    optimizer = ours([p], lr=0.1, **options)
    assert optimizer.param_groups[0]["fused"] is (dtype in (torch.float32, torch.float64))
    p.sum().backward()
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((100,), 0.9, dtype=dtype), rtol=1e-2, atol=0)


@pytest.mark.parametrize("ours", [SGD, Adam, AdamW])
def test_fused_halves_on_a_cpu_are_refused(ours: Any) -> None:
    half = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    with pytest.raises(SettingsError, match=r"optim\.fused=true .*bfloat16.*optim\.fused=null") as error:
        ours([parameter(), half], fused=True)
    assert "\n" not in str(error.value)
    assert ours([parameter()], fused=True).param_groups[0]["fused"] is True


@pytest.mark.parametrize("ours", [SGD, Adam, AdamW])
def test_gradients_can_be_clipped_beside_a_scaler(ours: Any) -> None:
    """Lightning refuses to clip for an optimizer that unscales gradients by itself, as torch's fused ones do."""
    assert not _optimizer_handles_unscaling(ours([parameter()]))


def test_decay_of_matrices_spares_vectors() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = AdamW([vector, matrix], lr=0.1, weight_decay=0.5, decay="matrices")
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 0.95))
    assert torch.equal(vector.detach(), torch.ones(2))
    assert all(group["fused"] for group in optimizer.param_groups)
    assert len(AdamW([vector], decay="matrices").param_groups) == 1
    with pytest.raises(SettingsError, match=r"optim\.decay=vectors is unknown"):
        AdamW([matrix], decay="vectors")  # type: ignore[arg-type]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    p = parameter()
    optimizer = SGD([p])
    p.sum().backward()
    optimizer.zero_grad(set_to_none)
    assert p.grad is None if set_to_none else torch.equal(p.grad, torch.zeros(4))  # type: ignore[arg-type]


def test_settings_without_meaning_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"optim\.nesterov=true needs optim\.momentum"):
        SGD([parameter()], nesterov=True)
    with pytest.raises(SettingsError, match=r"optim\.betas"):
        AdamW([parameter()], betas=[0.9])
