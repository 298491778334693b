"""Rewinding: what every round starts from, its controls, and a kill inside a round."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from test_iterative import scheduled
from torch import Tensor
from toy_training import Toy, Until, fit, perceptron

from frugal.errors import SettingsError
from frugal.models.classifier import Classifier
from frugal.optim.schedules import Cosine
from frugal.pruning.lottery import LotteryPruning
from frugal.pruning.masks import masks_of, original, weight_of

ROUNDS: dict[str, Any] = {"density": 0.25, "rounds": 2}  # over 24 steps: rounds begin at 0, 8 and 16


class Watch(pl.Callback):
    """The network before some steps, and how much the optimizer remembers then."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.state, self.memory = steps, {}, {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step in self.steps:
            self.state[trainer.global_step] = {k: v.clone() for k, v in pl_module.network.state_dict().items()}
            self.memory[trainer.global_step] = len(trainer.optimizers[0].state)


def parts(state: dict[str, Tensor], layer: str) -> tuple[Tensor, Tensor]:
    return state[f"{layer}.parametrizations.weight.original"], state[f"{layer}.parametrizations.weight.0.mask"]


def test_a_ticket_by_hand() -> None:
    watch, pruning = Watch(0, 7, 8, 16, 23), LotteryPruning(**ROUNDS)
    module = Toy(perceptron())
    fit(module, pruning, watch, epochs=3)
    assert pruning.pruned_at == [8, 16]
    first, second, third = watch.state[0], watch.state[8], watch.state[16]
    for layer, size in (("0", 48), ("3", 24)):
        begun, _ = parts(first, layer)
        masks = []
        for state, share in ((second, 0.5), (third, 0.25)):
            weight, mask = parts(state, layer)
            assert int(mask.sum()) == size * share
            assert torch.equal(weight, begun * mask)
            masks.append(mask)
        assert bool((masks[0] | ~masks[1]).all())  # of those that were left
    for name in ("0.bias", "1.weight", "1.running_mean", "1.num_batches_tracked", "3.bias"):
        assert torch.equal(second[name], first[name]) and torch.equal(third[name], first[name])
    assert not torch.equal(watch.state[7]["0.bias"], first["0.bias"])
    assert watch.memory[8] == watch.memory[16] == 0 and watch.memory[7] > 0
    assert pruning.finalize(module.network, []) is module.network
    assert pruning.figures()["density"] == 0.25 and pruning.figures()["control"] == "ticket"


def test_the_mask_is_that_of_the_largest_after_a_round() -> None:
    watch = Watch(8)
    fit(Toy(perceptron()), LotteryPruning(**ROUNDS), watch, epochs=3)
    alone = Toy(perceptron())
    fit(alone, epochs=1)
    magnitude = alone.network[0].weight.abs().flatten()  # type: ignore[index,operator,union-attr]
    assert torch.equal(parts(watch.state[8], "0")[1].flatten(), magnitude > magnitude.sort().values[23])


def test_rewinding_to_a_later_step() -> None:
    watch, pruning = Watch(3, 8, 16), LotteryPruning(**ROUNDS, rewind=3)
    fit(Toy(perceptron()), pruning, watch, epochs=3)
    for step in (8, 16):
        weight, mask = parts(watch.state[step], "0")
        assert torch.equal(weight, parts(watch.state[3], "0")[0] * mask)
        assert torch.equal(watch.state[step]["0.bias"], watch.state[3]["0.bias"])
    assert pruning._rewind_step == 3


def test_the_controls() -> None:
    found = {}
    for control in ("ticket", "reinitialized", "random_mask"):
        watch = Watch(0, 8, 16)
        fit(Toy(perceptron()), LotteryPruning(**ROUNDS, control=control), watch, epochs=3)  # type: ignore[arg-type]
        found[control] = watch.state
    begun, _ = parts(found["ticket"][0], "0")
    weight, mask = parts(found["ticket"][16], "0")
    new, same = parts(found["reinitialized"][16], "0")
    assert torch.equal(same, mask) and not torch.equal(new, weight)
    assert set(new[same].tolist()) <= set(begun.flatten().tolist())  # the layer's first values, elsewhere
    old, elsewhere = parts(found["random_mask"][16], "0")
    assert not torch.equal(elsewhere, mask) and int(elsewhere.sum()) == 12
    assert torch.equal(old, begun * elsewhere)
    for control in ("reinitialized", "random_mask"):  # the rounds before are the ticket's
        assert torch.equal(parts(found[control][8], "0")[1], parts(found["ticket"][8], "0")[1])


def test_a_users_schedule_begins_anew() -> None:
    module = Toy(perceptron(), scheduled)
    fit(module, LotteryPruning(**ROUNDS), epochs=3)
    assert module.rates == pytest.approx([1 / (step + 1) for step in range(8)] * 3)


def classifier(seed: int = 0) -> Classifier:
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    return Classifier(perceptron(seed), optimizer, partial(Cosine, warmup=0.25))


class Rates(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def of_one_round() -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    schedule, rates = Cosine(optimizer, 8, warmup=0.25), []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_frugals_schedule_is_as_long_as_a_round() -> None:
    rates = Rates()
    fit(classifier(), LotteryPruning(**ROUNDS), rates, epochs=3)
    assert rates.seen == pytest.approx(of_one_round() * 3)


@pytest.mark.parametrize(("killed", "control"), [(8, "ticket"), (16, "random_mask")])
def test_a_kill_at_a_rounds_end(killed: int, control: Any, tmp_path: Path) -> None:
    options = {"density": 0.25, "rounds": 3, "control": control}  # 32 steps, of which the kill falls on a pruning
    whole = classifier()
    fit(whole, LotteryPruning(**options), epochs=4)
    with pytest.raises(BaseException):  # noqa: B017
        fit(classifier(), LotteryPruning(**options), Until(killed, tmp_path / "x.ckpt"), epochs=4)
    resumed, rates, again = classifier(seed=5), Rates(), LotteryPruning(**options)
    fit(resumed, again, rates, epochs=4, resume=tmp_path / "x.ckpt")
    assert again.pruned_at == [8, 16, 24] and rates.seen == pytest.approx(of_one_round() * ((32 - killed) // 8))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_kill_inside_a_round(tmp_path: Path) -> None:
    """Rounds of 12 steps, a kill after 8: the first values are in the checkpoint."""
    options = {"density": 0.25, "rounds": 1}
    whole = classifier()
    fit(whole, LotteryPruning(**options), epochs=3)
    with pytest.raises(BaseException):  # noqa: B017
        fit(classifier(), LotteryPruning(**options), Until(8, tmp_path / "x.ckpt"), epochs=3)
    resumed = classifier(seed=5)
    fit(resumed, LotteryPruning(**options), epochs=3, resume=tmp_path / "x.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert int(masks_of(resumed.network)["0"].mask.sum()) == 12
    assert original(resumed.network.get_submodule("0")) is not None
    assert int(torch.count_nonzero(weight_of(resumed.network.get_submodule("0")))) == 12


def test_bad_settings() -> None:
    with pytest.raises(SettingsError, match=r"^pruning\.rounds=0: "):
        LotteryPruning(rounds=0)
    with pytest.raises(SettingsError, match=r"^pruning\.control=tickets: choose ticket"):
        LotteryPruning(control="tickets")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"^pruning\.control=reinitialized: .*pruning\.rewind=0"):
        LotteryPruning(control="reinitialized", rewind=5)
    with pytest.raises(SettingsError, match=r"^pruning\.rewind=9: is step 9, but the first training has 8 steps"):
        fit(Toy(perceptron()), LotteryPruning(**ROUNDS, rewind=9), epochs=3)
    with pytest.raises(SettingsError, match=r"^pruning\.rounds=20: "):
        fit(Toy(perceptron()), LotteryPruning(rounds=20), epochs=1)
