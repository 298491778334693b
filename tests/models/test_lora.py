"""Low-rank adapters: weights by hand, what moves and what does not, and a plain network in the end."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from frugal import settings
from frugal.errors import SettingsError
from frugal.measure import count_flops
from frugal.models.gpt import GPT
from frugal.models.lora import LowRank, merge


def gpt(**options: Any) -> GPT:
    torch.manual_seed(1)
    return GPT(11, 8, layers=2, heads=2, width=16, **options)


def trained(network: nn.Module, steps: int = 3) -> nn.Module:
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.5)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randint(11, (4, 8), generator=draw)
        F.cross_entropy(network(x).flatten(0, 1), x.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


def test_the_weight_by_hand() -> None:
    network = nn.Sequential(nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    LowRank(rank=1, alpha=3.0, targets=["0"]).apply(network)
    update = network[0].parametrizations.weight[0]
    assert not update.B.any() and update.A.any()
    assert network[0].weight.tolist() == [[1, 2, 3], [4, 5, 6]]
    with torch.no_grad():
        update.A.copy_(torch.tensor([[1.0, 0, -1]]))
        update.B.copy_(torch.tensor([[1.0], [2.0]]))
    assert network[0].weight.tolist() == [[4, 2, 0], [10, 5, 0]]  # + 3/1 * B A
    merge(network)
    assert network[0].weight.tolist() == [[4, 2, 0], [10, 5, 0]]


def test_alpha_over_rank() -> None:
    network = nn.Sequential(nn.Linear(4, 4, bias=False))
    LowRank(rank=2, alpha=16.0, targets=["0"]).apply(network)
    before = network[0].weight.detach().clone()
    with torch.no_grad():
        for p in network[0].parametrizations.weight[0].parameters():
            p.fill_(0.5)
    torch.testing.assert_close(network[0].weight, before + 16 / 2 * 2 * 0.25)


def test_only_adapters_move_and_merging_changes_no_logit() -> None:
    network = gpt(bias=True)
    plain = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    lora = LowRank(rank=2, alpha=8.0, targets=["qkv", "mlp.down"])
    lora.apply(network)
    # two layers: qkv 48x16, down 16x64
    count = 2 * (2 * (48 + 16) + 2 * (16 + 64))
    assert lora.figures() == {"rank": 2, "alpha": 8.0, "layers": 4, "trainable_parameters": count}
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == count
    trained(network)
    state = network.state_dict()
    frozen = {name.replace("parametrizations.weight.original", "weight"): name for name in state}
    assert all(torch.equal(state[frozen[name]], tensor) for name, tensor in plain.items())
    moved = [p for name, p in network.named_parameters() if name.endswith(".B")]
    assert len(moved) == 4 and all(p.any() for p in moved)

    network.eval()
    x = torch.randint(11, (2, 8))
    before = network(x)
    lora.merge(network)
    torch.testing.assert_close(network(x), before, rtol=0, atol=1e-6)
    assert network.state_dict().keys() == plain.keys()
    assert type(network.blocks[0].attention.qkv) is nn.Linear
    moved_names = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, plain[name])}
    assert moved_names == {f"blocks.{i}.{layer}.weight" for i in range(2) for layer in ("attention.qkv", "mlp.down")}
    merge(network)  # where nothing is left to merge, nothing happens
    pickle.dumps(network)


def test_a_resume_loads_what_was_saved() -> None:
    lora = LowRank(rank=2, targets=["attention.out"])
    network, resumed = gpt(), gpt()
    for n in (network, resumed):
        lora.apply(n)
    trained(network)
    resumed.load_state_dict(copy.deepcopy(network.state_dict()))
    x = torch.randint(11, (2, 8))
    assert torch.equal(network(x), resumed(x))
    assert {n for n, p in resumed.named_parameters() if p.requires_grad} == {
        f"blocks.{i}.attention.out.parametrizations.weight.0.{which}" for i in range(2) for which in "AB"
    }


def test_rank_zero_does_nothing() -> None:
    network, lora = gpt(), LowRank()
    lora.apply(network)
    assert all(p.requires_grad for p in network.parameters())
    assert network.state_dict().keys() == gpt().state_dict().keys()
    assert lora.figures() == {}


def test_its_operations_can_be_counted_and_autocast_runs_it() -> None:
    network = gpt()
    dense = count_flops(network, torch.zeros(2, 8, dtype=torch.long)).forward
    LowRank(rank=2, targets=["qkv"]).apply(network)
    counted = count_flops(network, torch.zeros(2, 8, dtype=torch.long)).forward
    assert counted == dense + 2 * (2 * 48 * 2 * 16)  # B A in each of two layers
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.zeros(2, 8, dtype=torch.long)).dtype == torch.bfloat16


def test_the_options_targets_are_layers_of_the_network() -> None:
    for option in ("gpt", "gpt_mini"):
        node = yaml.safe_load((settings.config_folder() / "model" / f"{option}.yaml").read_text())
        network = settings.instantiate(node["network"], "model.network", vocabulary=11, block_size=8)
        lora = settings.instantiate({**node["lora"], "rank": 4}, "model.lora")
        lora.apply(network)
        assert lora.figures()["layers"] == 4 * node["network"]["layers"]


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (
            r"^model\.lora\.targets: no linear layer is called query; "
            r"there are attention\.qkv, attention\.out, mlp\.up, mlp\.down, head$",
            {"targets": ["qkv", "query"]},
        ),
        (r"no linear layer is called kv;", {"targets": ["kv"]}),  # whole words
        (r"^model\.lora\.targets=\[\]: name linear layers", {"targets": []}),
        (r"^model\.lora\.rank=17: blocks\.0\.attention\.qkv is \(48, 16\)", {"rank": 17}),
        (r"^model\.lora\.rank=-1", {"rank": -1}),
    ],
)
def test_what_cannot_be_adapted_is_refused_before_anything_changes(message: str, options: dict[str, Any]) -> None:
    network = gpt(tied=False)
    with pytest.raises(SettingsError, match=message):
        LowRank(**{"rank": 2, **options}).apply(network)
    assert all(p.requires_grad for p in network.parameters())
    assert network.state_dict().keys() == gpt(tied=False).state_dict().keys()
