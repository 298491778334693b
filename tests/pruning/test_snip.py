"""Connection sensitivity by hand, and that looking at it changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toy_training import Toy, fit, perceptron, samples

from frugal.errors import SettingsError
from frugal.pruning.masks import weight_of
from frugal.pruning.snip import SnipPruning, sensitivity


def test_by_hand() -> None:
    """|g w| of the mean loss over the first 12 samples, a batch and a half; the 36 largest of 72 weights stay."""
    pruning, module = (
        SnipPruning(density=0.5, samples=12),
        Toy(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))),
    )
    begun = {name: value.clone() for name, value in module.network.state_dict().items()}
    fit(module, pruning, epochs=1)

    network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    network.load_state_dict(begun)
    x, y = samples()[:12]
    F.cross_entropy(network(x), y).backward()
    scores = [(network[i].weight * network[i].weight.grad).abs().flatten() for i in (0, 2)]
    least = torch.cat(scores).sort(descending=True).values[35]
    for i, score in zip((0, 2), scores, strict=True):
        mask = weight_of(module.network.get_submodule(str(i))) != 0
        assert torch.equal(mask.flatten(), score >= least)
    assert pruning.pruned_at == [0] and pruning.finalize(module.network, []) is module.network
    assert pruning.figures()["density"] == 0.5


def test_it_leaves_no_trace() -> None:
    """Statistics and generators are as before, and at density 1 training is what it was."""
    plain, looked_at = Toy(perceptron()), Toy(perceptron())
    for module, callbacks in ((plain, []), (looked_at, [SnipPruning(density=1.0)])):
        module.network.insert(2, nn.Dropout(0.5))
        torch.manual_seed(3)
        fit(module, *callbacks, epochs=1)
    for name in ("0", "4"):
        assert torch.equal(
            weight_of(plain.network.get_submodule(name)), weight_of(looked_at.network.get_submodule(name))
        )
    assert torch.equal(plain.network[1].running_mean, looked_at.network[1].running_mean)  # type: ignore[index,union-attr]


def test_bad_settings() -> None:
    with pytest.raises(SettingsError, match=r"^pruning\.samples=0: "):
        SnipPruning(samples=0)
    module = Toy(perceptron())
    del module.criterion
    with pytest.raises(SettingsError, match=r"^pruning=snip: Toy has no `criterion`"):
        sensitivity(None, module, 1)  # type: ignore[arg-type]
