"""One-shot pruning by magnitude, in a plain Trainer: masks by hand, nothing comes back, what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from toy_training import Toy, Until, fit, perceptron

from frugal.callbacks.ema import EMA
from frugal.errors import RunError, SettingsError
from frugal.pruning.magnitude import MagnitudePruning
from frugal.pruning.masks import masks_of, original, weight_of
from frugal.pruning.snip import SnipPruning


def hand() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]]))
        network[1].weight.copy_(torch.tensor([[0.1, -0.2], [7.0, 0.1]]))
    return network


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({"density": 0.5}, [[0, 0, 0], [-4, 5, -6]], [[0, -0.2], [7, 0]]),
        ({"density": 0.5, "scope": "global"}, [[0, 0, 3], [-4, 5, -6]], [[0, 0], [7, 0]]),
        ({"densities": [0.34, 1.0]}, [[0, 0, 0], [0, 5, -6]], [[0.1, -0.2], [7, 0.1]]),
        ({"densities": {"0": 0.2}, "density": 0.75}, [[0, 0, 0], [0, 0, -6]], [[0.1, -0.2], [7, 0]]),
        ({"density": 0.5, "exclude": ["1"]}, [[0, 0, 0], [-4, 5, -6]], [[0.1, -0.2], [7, 0.1]]),
    ],
)
def test_by_hand(options: dict[str, Any], first: list[list[float]], second: list[list[float]]) -> None:
    """Without a training, `finalize` prunes."""
    pruning = MagnitudePruning(**options)
    network = pruning.finalize(hand(), [])
    assert torch.equal(network[0].weight, torch.tensor(first, dtype=torch.float32))  # type: ignore[index]
    assert torch.equal(network[1].weight, torch.tensor(second))  # type: ignore[index]
    assert not parametrize.is_parametrized(network) and pruning.figures()["first_pruned_at"] is None


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_no_optimizer_revives_a_weight(optimizer: str) -> None:
    """Momentum and moments of the steps before still move what lies beneath; the weights themselves stay zero."""
    make = {
        "momentum": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.95, weight_decay=0.1, nesterov=True),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    }[optimizer]
    pruning, module = MagnitudePruning(density=0.25, at=5), Toy(perceptron(), make)
    seen: list[dict[str, torch.Tensor]] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            seen.append({name: weight_of(module.network.get_submodule(name)) != 0 for name in ("0", "3")})

    fit(module, pruning, Watch())
    assert all(mask["0"].all() and mask["3"].all() for mask in seen[:4])
    assert [int(seen[4][name].sum()) for name in ("0", "3")] == [12, 6]
    assert all(torch.equal(later[name], seen[4][name]) for later in seen[4:] for name in later)
    beneath = original(module.network.get_submodule("0"))
    assert bool((beneath[~seen[4]["0"]] != 0).any())  # type: ignore[index]
    assert bool(module.network[1].weight.all()) and bool(module.network[0].bias.all())  # type: ignore[index,operator,union-attr]


def test_sparsity_is_logged_and_counted_from_weights() -> None:
    pruning, module = MagnitudePruning(density=0.25, at="1ep"), Toy(perceptron())
    trainer = fit(module, pruning)
    assert float(trainer.callback_metrics["pruning/sparsity"]) == pytest.approx(0.75)
    with torch.no_grad():
        original(module.network.get_submodule("3")).zero_()  # type: ignore[union-attr]
    network = pruning.finalize(module.network, [])
    assert pruning.figures() == {
        "density": 12 / 72, "layers": {"0": 0.25, "3": 0.0}, "prunings": 1, "first_pruned_at": 8, "last_pruned_at": 8,
        "status": "masked",
    }  # fmt: skip
    assert not masks_of(network)


@pytest.mark.parametrize("at", [0, 3, "100%"])
def test_any_step(at: int | str) -> None:
    module, pruning = Toy(perceptron()), MagnitudePruning(density=0.5, at=at)
    fit(module, pruning, epochs=1)
    assert pruning.pruned_at == [8 if at == "100%" else at]
    assert int(torch.count_nonzero(weight_of(module.network.get_submodule("0")))) == 24


def test_accumulated_batches_are_one_step() -> None:
    module, pruning = Toy(perceptron()), MagnitudePruning(at=2)
    fit(module, pruning, epochs=1, accumulate_grad_batches=4)
    assert pruning.pruned_at == [2]


def test_a_kill_and_a_resume_end_in_the_same_bits(tmp_path: Path) -> None:
    whole = Toy(perceptron())
    fit(whole, MagnitudePruning(density=0.25, at=6), epochs=3)
    with pytest.raises(BaseException):  # noqa: B017
        fit(Toy(perceptron()), MagnitudePruning(density=0.25, at=6), Until(8, tmp_path / "x.ckpt"), epochs=3)
    resumed, again = Toy(perceptron(seed=5)), MagnitudePruning(density=0.25, at=6)
    fit(resumed, again, epochs=3, resume=tmp_path / "x.ckpt")
    assert again.pruned_at == [6] and len(resumed.rates) == 16
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_an_average_gets_the_last_mask() -> None:
    """The average was last updated before the pruning; its weights are pruned all the same."""
    module, pruning = Toy(perceptron()), MagnitudePruning(density=0.25, at=16)
    fit(module, pruning, EMA(decay=0.9, every=4))
    assert int(torch.count_nonzero(weight_of(module.network.get_submodule("0")))) == 48
    network = pruning.finalize(module.network, [])
    assert int(torch.count_nonzero(network[0].weight)) == 12  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, r"^pruning\.density=0\.0: a density is"),
        ({"density": 1.5}, r"^pruning\.density=1\.5: "),
        ({"densities": [0.5, -1]}, r"^pruning\.densities=-1: "),
        ({"scope": "row"}, r"^pruning\.scope=row: choose layer or global"),
        ({"scope": "global", "densities": [0.1]}, r"^pruning\.densities: .*pruning\.scope=global"),
        ({"at": "soon"}, r"^pruning\.at=soon: "),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        MagnitudePruning(**options)


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(SettingsError, match=r"^pruning\.at: is step 99, but the run has 8 steps$"):
        fit(Toy(perceptron()), MagnitudePruning(at=99), epochs=1)
    with pytest.raises(SettingsError, match=r"^pruning: Embedding has no linear or convolutional layer"):
        MagnitudePruning().prepare(nn.Embedding(3, 2))
    with pytest.raises(RunError, match=r"^pruning: SnipPruning scores weights in training"):
        SnipPruning().finalize(hand(), [])
