"""`MasterSGD`: steps by hand, weights in half that move where they could not on their own, state exact on a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frugal.errors import SettingsError
from frugal.optim.masters import MasterSGD


def one_weight(value: float, dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value], dtype=dtype))


def step(optimizer: torch.optim.Optimizer, *parameters: nn.Parameter, gradient: float = 1.0) -> None:
    for p in parameters:
        p.grad = torch.full_like(p, gradient)
    optimizer.step()


def test_small_steps_add_up_in_the_master() -> None:
    """Below 1 bfloat16 has 0.99609375 next: 0.999 rounds back to 1, 0.998 no longer does."""
    w, without = one_weight(1.0), one_weight(1.0)
    ours, torchs = MasterSGD([w], lr=0.001), torch.optim.SGD([without], lr=0.001)
    step(ours, w)
    assert w.item() == 1.0 and ours.state[w]["master"].item() == pytest.approx(0.999, abs=1e-7)
    step(ours, w)
    assert w.item() == 0.99609375 and ours.state[w]["master"].item() == pytest.approx(0.998, abs=1e-7)
    for _ in range(20):
        step(torchs, without)
    assert without.item() == 1.0  # what the master is for


def test_nesterov_and_decay_by_hand() -> None:
    w = one_weight(1.0)
    optimizer = MasterSGD([w], lr=0.1, momentum=0.9, weight_decay=0.5, nesterov=True)
    step(optimizer, w)
    # gradient 1 + 0.5 * 1 = 1.5, buffer 1.5, update 1.5 + 0.9 * 1.5 = 2.85
    assert optimizer.state[w]["master"].item() == pytest.approx(0.715)
    step(optimizer, w)
    # gradient 1 + 0.5 * 0.715 = 1.3575, buffer 0.9 * 1.5 + 1.3575 = 2.7075, update 1.3575 + 0.9 * 2.7075 = 3.79425
    assert optimizer.state[w]["master"].item() == pytest.approx(0.715 - 0.379425)
    assert w.item() == optimizer.state[w]["master"].bfloat16().item()


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}],
    ids=["plain", "momentum", "nesterov"],
)
def test_wider_weights_step_as_with_torch(options: dict[str, Any]) -> None:
    ours, torchs = (nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in range(2))
    idle = nn.Parameter(torch.ones(2))  # never a gradient: never moved
    optimizers = MasterSGD([ours, idle], lr=0.1, **options), torch.optim.SGD([torchs], lr=0.1, **options)
    for optimizer, p in zip(optimizers, (ours, torchs), strict=True):
        for i in range(4):
            optimizer.zero_grad()
            (p * torch.tensor([1.0, 2.0, -1.0]) * (i + 1)).pow(2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, torchs)
    assert "master" not in optimizers[0].state[ours] and torch.equal(idle, torch.ones(2))


def test_a_resume_is_exact(tmp_path: Path) -> None:
    """torch would round the loaded masters to bfloat16."""
    w, wide = one_weight(1.0), one_weight(1.0, torch.float32)
    optimizer = MasterSGD([w, wide], lr=0.001, momentum=0.9, nesterov=True)
    step(optimizer, w, wide, gradient=0.3)
    torch.save([w.detach(), wide.detach(), optimizer.state_dict()], tmp_path / "state.pt")
    first, second, state = torch.load(tmp_path / "state.pt", weights_only=True)
    v, wider = nn.Parameter(first), nn.Parameter(second)
    resumed = MasterSGD([v, wider], lr=0.5)
    resumed.load_state_dict(state)
    assert resumed.state[v]["master"].dtype == resumed.state[v]["momentum_buffer"].dtype == torch.float32
    for one, p, q in ((optimizer, w, wide), (resumed, v, wider)):
        for _ in range(3):
            step(one, p, q, gradient=0.7)
    assert torch.equal(resumed.state[v]["master"], optimizer.state[w]["master"])
    assert torch.equal(v, w) and torch.equal(wider, wide)


def test_errors_name_the_option() -> None:
    with pytest.raises(SettingsError, match=r"optim\.momentum=1\.0 must be at least 0 and below 1"):
        MasterSGD([one_weight(1.0)], momentum=1.0)
    with pytest.raises(SettingsError, match=r"optim\.nesterov=true needs optim\.momentum above 0"):
        MasterSGD([one_weight(1.0)], nesterov=True)
