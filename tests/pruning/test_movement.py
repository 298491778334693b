"""Scores by hand: their gradient, Adam's step, and weights that come back until the mask is fixed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_gradual import Counts
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from toy_training import Toy, Until, fit, perceptron, samples

from frugal.errors import SettingsError
from frugal.pruning.masks import masks_of, weight_of
from frugal.pruning.movement import MovementPruning, ScoredMask


def test_the_straight_through_gradient_by_hand() -> None:
    """dL/dW' = 2 everywhere; dL/dW is that where the mask is, dL/dS = dL/dW' W everywhere."""
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 3.0]]))
    mask = ScoredMask(layer.weight)
    parametrize.register_parametrization(layer, "weight", mask)
    mask.mask.copy_(torch.tensor([[True, False, True]]))
    mask.scores = mask.scores.requires_grad_()
    assert weight_of(layer).tolist() == [[1.0, 0.0, 3.0]]
    (2 * weight_of(layer)).sum().backward()
    assert layer.parametrizations["weight"].original.grad.tolist() == [[2.0, 0.0, 2.0]]  # type: ignore[index,union-attr]
    assert mask.scores.grad.tolist() == [[2.0, -4.0, 6.0]]  # type: ignore[union-attr]
    assert "weight" not in dict(layer.named_parameters())
    assert not any("scores" in name for name, _ in layer.named_parameters())  # the network's optimizer has them not


def test_the_first_step_of_the_scores() -> None:
    """Adam's first step is its rate, against the sign of dL/dS."""
    network, (x, y) = perceptron(), samples()[:8]
    weight = network[0].weight
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), y), [weight])
    product = gradient * weight.detach()

    module = Toy(perceptron())
    fit(module, MovementPruning(begin=0, end=1, score_lr=0.25), epochs=1, limit_train_batches=1)
    mask = masks_of(module.network)["0"]
    assert isinstance(mask, ScoredMask) and not mask.scores.requires_grad
    big = product.abs() > 1e-4  # where Adam's epsilon does not count
    assert int(big.sum()) > 20 and torch.allclose(mask.scores[big], -0.25 * product[big].sign(), atol=1e-3)


def test_the_schedule_and_the_end() -> None:
    """16 steps, events at 2, 6, 10: v = 1, 0.25 + 0.75 / 8, 0.25 of 48; from then on nothing moves."""
    counts, pruning = Counts(), MovementPruning(density=0.25, begin=2, end=10, every=4)
    module = Toy(perceptron())
    fit(module, pruning, counts)
    assert pruning.pruned_at == [2, 6, 10]
    assert counts.seen == [48] * 5 + [round(48 * 0.34375)] * 4 + [12] * 7
    mask = masks_of(module.network)["0"]
    assert isinstance(mask, ScoredMask)
    assert float(mask.scores[mask.mask].min()) >= float(mask.scores[~mask.mask].max())
    network = pruning.finalize(module.network, [])
    assert pruning.figures()["density"] == 0.25 and set(network.state_dict()) == set(perceptron().state_dict())


def test_a_weight_may_come_back() -> None:
    """By a mask that is chosen anew from scores that have moved; nothing beneath was lost."""
    module, pruning = Toy(perceptron()), MovementPruning(density=0.5, begin=0, end=9)
    pruning._events = [0, 5, 9]
    pruning.prepare(module.network)
    masks = masks_of(module.network)
    before = weight_of(module.network.get_submodule("0")).detach().clone()
    with torch.no_grad():
        masks["0"].scores[0] = -1.0  # type: ignore[index,union-attr,operator]
        pruning.prune(module.network, 1)
        assert not weight_of(module.network.get_submodule("0"))[0].any()
        masks["0"].scores[0] = 1.0  # type: ignore[index,union-attr,operator]
        pruning.prune(module.network, 1)
    assert torch.equal(weight_of(module.network.get_submodule("0"))[0], before[0])


def test_soft() -> None:
    """Scores below logit(0.4) go; the penalty pushes all of them down, a rate of 0.25 a step at first."""
    options = {"method": "soft", "threshold": 0.4, "begin": 0, "end": 8, "every": 1, "score_lr": 0.25}
    found = {}
    for penalty in (0.0, 1e6):
        module, pruning = Toy(perceptron()), MovementPruning(penalty=penalty, **options)  # type: ignore[arg-type]
        fit(module, pruning, epochs=1)
        found[penalty] = pruning.finalize(module.network, []) and pruning.figures()["density"]
        assert pruning.figures()["method"] == "soft"
    assert 0.0 < found[0.0] < 1.0 and found[1e6] == 0.0


def test_a_kill_and_a_resume(tmp_path: Path) -> None:
    options = {"density": 0.25, "begin": 2, "end": 18, "every": 3}
    whole = Toy(perceptron())
    fit(whole, MovementPruning(**options), epochs=3)  # type: ignore[arg-type]
    with pytest.raises(BaseException):  # noqa: B017
        fit(Toy(perceptron()), MovementPruning(**options), Until(8, tmp_path / "x.ckpt"), epochs=3)  # type: ignore[arg-type]
    resumed = Toy(perceptron(seed=5))
    fit(resumed, MovementPruning(**options), epochs=3, resume=tmp_path / "x.ckpt")  # type: ignore[arg-type]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_bad_settings() -> None:
    for options, message in (
        ({"method": "hard"}, r"^pruning\.method=hard: choose top_v or soft"),
        ({"threshold": 0.7}, r"^pruning\.threshold=0\.7: "),
        ({"score_lr": 0.0}, r"^pruning\.score_lr=0\.0 needs"),
    ):
        with pytest.raises(SettingsError, match=message):
            MovementPruning(**options)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"^pruning\.end=1: is step 1, but pruning\.begin=2 is 2"):
        fit(Toy(perceptron()), MovementPruning(begin=2, end=1), epochs=1)
