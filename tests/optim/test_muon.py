"""Muon: orthogonal updates, torch's own as reference, which parameters it takes, and a resume that goes on exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from frugal.errors import SettingsError
from frugal.optim.muon import Muon, hidden_matrices, orthogonalize
from frugal.optim.schedules import Cosine


class Language(nn.Module):
    """Tokens (B, T) to logits (B, T, 7)."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.position = nn.Parameter(torch.zeros(5, 8))
        self.up = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.down = nn.Linear(16, 8, bias=False)
        self.head = nn.Linear(8, 7, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.position
        return self.head(h + self.down(self.norm(self.up(h)).relu()))


def names(network: nn.Module) -> list[str]:
    found = {id(p) for p in hidden_matrices(network)}
    return [name for name, p in network.named_parameters() if id(p) in found]


def train(network: nn.Module, optimizer: Any, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        x = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x).flatten(0, 1), x.roll(-1, 1).flatten()).backward()
        optimizer.step()


# What orthogonalize does


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 5, 4)])
def test_polar_express_converges_to_what_the_svd_says(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    torch.testing.assert_close(orthogonalize(matrices, steps=9), u @ vh, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("steps", "low", "high"), [(3, 0.1, 1.95), (5, 0.8, 1.2)])
def test_singular_values_after_few_steps(steps: int, low: float, high: float) -> None:
    matrices = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices, steps))
    assert low < values.min() <= values.max() < high
    assert not low < torch.linalg.svdvals(matrices / matrices.norm()).min()  # the first step is not enough by itself


def test_scale_and_zero_do_not_matter() -> None:
    matrix = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalize(1e-3 * matrix), orthogonalize(1e3 * matrix))
    assert torch.equal(orthogonalize(torch.zeros(5, 3)), torch.zeros(5, 3))


# A step


def test_a_step_by_hand() -> None:
    """A matrix with orthogonal rows and equal singular values keeps its direction, whatever the iteration does."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    hidden, last = network.parameters()
    with torch.no_grad():
        hidden.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        last.fill_(5.0)
    rates: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.5, "adam_lr": 0.25, "adam_weight_decay": 0.2}
    optimizer = Muon(network.parameters(), network, ns_steps=9, compute="float32", **rates)
    hidden.grad = torch.tensor([[0.0, -3.0], [3.0, 0.0]])
    last.grad = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    optimizer.step()
    # 0.95 of W is left by decay (0.1 * 0.5); the direction is [[0, -1], [1, 0]].
    expected = torch.tensor([[0.95 * 1, 0.95 * 2 + 0.1], [0.95 * 3 - 0.1, 0.95 * 4]])
    torch.testing.assert_close(hidden.detach(), expected, rtol=0, atol=1e-5)
    # Adam's first step is lr times the gradient's sign, after 0.95 = 1 - 0.25 * 0.2.
    torch.testing.assert_close(last.detach(), 0.95 * 5 - 0.25 * torch.tensor([[1.0, -1.0], [1.0, 1.0]]))


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_equal_to_torchs_muon(adjust: Any, nesterov: bool) -> None:
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1, "ns_steps": 5}
    networks = []
    for ours in (True, False):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(6, 9, bias=False), nn.Linear(9, 9, bias=False), nn.Linear(9, 2, bias=False))
        hidden = list(network.parameters())[:2]
        optimizer: Any = (
            Muon(hidden, network, polar_express=False, adjust_lr=adjust, compute="bfloat16", **options)  # type: ignore[arg-type]
            if ours
            else torch.optim.Muon(hidden, adjust_lr_fn=adjust, **options)  # type: ignore[arg-type]
        )
        for step in range(4):
            optimizer.zero_grad()
            network(torch.linspace(-1, 1, 6) * (step + 1)).pow(2).sum().backward()
            optimizer.step()
        networks.append(network)
    torch.manual_seed(1)
    moved = nn.Linear(6, 9, bias=False).weight - next(networks[0].parameters())
    assert torch.linalg.matrix_norm(moved, ord=2) > 0.06
    for p, q in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0.02)  # bfloat16 has three digits, and four steps of 0.1 went by


def test_the_rest_is_torchs_adamw() -> None:
    networks = []
    for ours in (True, False):
        torch.manual_seed(1)
        network = Language()
        hidden = hidden_matrices(network)
        for p in hidden:
            p.requires_grad_(False)
        rest = [p for p in network.parameters() if p.requires_grad]
        optimizer: Any = (
            Muon(rest, network, adam_lr=0.01, betas=[0.8, 0.9], eps=1e-6)
            if ours
            else torch.optim.AdamW(rest, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0, fused=True)
        )
        train(network, optimizer, 4)
        networks.append(network)
    for p, q in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(p, q)


def test_matrices_of_one_shape_do_not_mix() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(4)))
    grads = [torch.randn(4, 4) for _ in range(3)]
    together = [p.detach().clone() for p in network.parameters()]
    optimizer = Muon(network.parameters(), network, lr=0.1, compute="float32")
    for p, g in zip(network.parameters(), grads, strict=False):
        p.grad = g.clone()
    optimizer.step()
    for p, before, g in zip(network.parameters(), together, grads, strict=False):
        torch.testing.assert_close(p.detach(), before - 0.1 * orthogonalize(g, 5))


def test_decay_of_adam_spares_vectors() -> None:
    network = Language()
    optimizer = Muon(network.parameters(), network, adam_weight_decay=0.1)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(network.embedding.weight)] == decays[id(network.head.weight)] == 0.1
    assert decays[id(network.norm.weight)] == decays[id(network.up.bias)] == decays[id(network.up.weight)] == 0.0


# Which parameters


def test_hidden_matrices() -> None:
    assert names(Language()) == ["up.weight", "down.weight"]
    assert names(Language(tied=True)) == ["up.weight", "down.weight"]
    assert names(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))) == [
        "0.weight",
        "2.weight",
    ]
    assert names(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))) == []
    bag = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    assert names(bag) == ["1.weight"]


def test_a_head_of_none_is_the_embedding() -> None:
    class Tied(Language):
        def __init__(self) -> None:
            super().__init__()
            self.head = None  # type: ignore[assignment]

    assert names(Tied()) == ["up.weight", "down.weight"]


def test_parametrized_and_pruned_matrices() -> None:
    class Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(16, 2)), nn.Parameter(torch.zeros(2, 8))

        def forward(self, weight: Tensor) -> Tensor:
            return weight + self.a @ self.b

    network = Language()
    parametrize.register_parametrization(network.up, "weight", Low())
    prune.identity(network.down, "weight")
    prune.identity(network.embedding, "weight")
    assert sorted(names(network)) == sorted(
        [
            "down.weight_orig",
            "up.parametrizations.weight.original",
            "up.parametrizations.weight.0.a",
            "up.parametrizations.weight.0.b",
        ]
    )


def test_what_is_not_trained_is_in_no_group() -> None:
    network = Language()
    network.up.requires_grad_(False)
    optimizer = Muon([p for p in network.parameters() if p.requires_grad], network)
    assert [p for g in optimizer.param_groups if g["muon"] for p in g["params"]] == [network.down.weight]
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in network.parameters() if p.requires_grad}


# State


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_loads_with_weights_only_and_goes_on(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Language().to(dtype)
    optimizer = Muon(network.parameters(), network, adam_weight_decay=0.1)
    train(network, optimizer, 3)
    torch.save([network.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = Language().to(dtype)
    other.load_state_dict(weights)
    resumed = Muon(other.parameters(), other, adam_weight_decay=0.1)
    resumed.load_state_dict(state)
    train(network, optimizer, 2, first=3)
    train(other, resumed, 2, first=3)
    for (name, p), q in zip(network.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_a_schedule_scales_both_rates() -> None:
    network = Language()
    optimizer = Muon(network.parameters(), network, lr=0.1, adam_lr=0.01)
    schedule = Cosine(optimizer, 10, warmup=0.0)
    for _ in range(5):
        train(network, optimizer, 1)
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.005, 0.005])


def test_a_step_of_the_schedule_is_a_step_of_the_weights() -> None:
    """The spectral norm of a step is the learning rate, times sqrt(rows / columns) for a tall matrix."""
    network = Language()
    optimizer = Muon(network.parameters(), network, lr=0.1, ns_steps=9, compute="float32")
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    train(network, optimizer, 1)
    up = torch.linalg.matrix_norm(network.up.weight.detach() - before["up.weight"], ord=2)
    down = torch.linalg.matrix_norm(network.down.weight.detach() - before["down.weight"], ord=2)
    assert up.item() == pytest.approx(0.1 * math.sqrt(2), rel=1e-3)
    assert down.item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"optim\.momentum=1\.0"),
        ({"ns_steps": 0}, r"optim\.ns_steps=0"),
        ({"adjust_lr": "keller"}, r"optim\.adjust_lr=keller is unknown"),
        ({"compute": "float16"}, r"optim\.compute=float16 is unknown"),
        ({"betas": [0.9]}, r"optim\.betas"),
    ],
)
def test_settings_without_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    network = Language()
    with pytest.raises(SettingsError, match=message) as error:
        Muon(network.parameters(), network, **options)
    assert "\n" not in str(error.value)
