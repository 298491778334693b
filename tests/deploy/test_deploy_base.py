"""What files that stand for networks share: texts of other lengths, hooks, and a difference that is an error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from frugal.deploy.base import Deployment, FileNetwork, two_of
from frugal.errors import RunError, SettingsError


class Doubling(FileNetwork):
    """Takes texts of four tokens; gives (B, 4, 1), or (B, 1) as a classifier."""

    suffix = ".double"

    def __init__(self, classifies: bool) -> None:
        super().__init__(b"")
        self.length, self.classifies = 4, classifies

    backend = "twice"  # type: ignore[assignment]

    def run(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 4
        return 2 * x.sum(1, keepdim=True) if self.classifies else 2 * x.unsqueeze(2)

    def plain_weights(self) -> dict[str, Tensor]:
        return {}

    def described(self, text: str) -> bytes:
        return text.encode()

    def description(self) -> str | None:
        return None


def test_shorter_texts_are_padded_and_logits_cut_off() -> None:
    tokens = torch.tensor([[3, 5]])
    assert Doubling(classifies=False)(tokens).flatten().tolist() == [6, 10]
    assert Doubling(classifies=True)(tokens).flatten().tolist() == [16]
    assert Doubling(classifies=False)(torch.ones(2, 4)).shape == (2, 4, 1)


def test_longer_texts_are_refused() -> None:
    with pytest.raises(SettingsError, match="5 tokens, but the file takes 4"):
        Doubling(classifies=True)(torch.ones(1, 5))


def test_hooks_of_its_own_are_called() -> None:
    network, seen = Doubling(classifies=True), []
    hook = network.register_forward_hook(lambda module, given, found: seen.append(found.item()))
    network(torch.ones(1, 4))
    hook.remove()
    network(torch.ones(1, 4))
    assert seen == [8]


class Planted(Deployment):
    """Adds `error` to all that the network says."""

    format = "planted"

    def __init__(self, error: float, shape: bool = False) -> None:
        super().__init__()
        self.error, self.shape = error, shape

    def convert(self, network: nn.Module, example: Tensor) -> nn.Module:
        assert example.shape == (2, 3)
        found = nn.Linear(3, 2)
        found.load_state_dict(network.state_dict())
        with torch.no_grad():
            found.bias += self.error
        return nn.Sequential(found, nn.Unflatten(1, (2, 1))) if self.shape else found


def linear() -> nn.Module:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 10.0, 0.0]]))
        layer.bias.zero_()
    return layer


def test_differences_by_hand() -> None:
    """The largest output is 20; a ten thousandth of that is 0.002."""
    batch = torch.tensor([[1.0, 2.0, 3.0]])
    technique = Planted(0.001)
    technique.finalize(linear(), [batch])
    figures = technique.figures()
    assert figures["largest_difference"] == pytest.approx(0.001, rel=1e-2) and figures["largest_output"] == 20
    assert figures["compared"] == 1
    with pytest.raises(RunError, match=r"deploy=planted: the file's outputs differ by 0\.003 .* up to 20"):
        Planted(0.003).finalize(linear(), [batch])
    with pytest.raises(RunError, match="differ by nan"):
        Planted(float("nan")).finalize(linear(), [batch])
    with pytest.raises(RunError, match=r"outputs of shape \(1, 2, 1\), the network \(1, 2\)"):
        Planted(0.0, shape=True).finalize(linear(), [batch])


def test_without_inputs_nothing_is_compared_and_that_is_refused() -> None:
    with pytest.raises(SettingsError, match="needs training inputs"):
        Planted(0.0).finalize(linear(), [])


def test_what_cannot_be_exported_is_refused_in_one_line() -> None:
    class Fails(Planted):
        def convert(self, network: nn.Module, example: Tensor) -> nn.Module:
            raise ValueError("no such operator\nwith a long story")

    with pytest.raises(SettingsError, match=r"^deploy=planted: Linear cannot be exported \(ValueError: no such operat"):
        Fails(0.0).finalize(linear(), [torch.ones(1, 3)])


def test_an_example_has_two_samples() -> None:
    assert two_of(torch.arange(3.0)[None]).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert two_of(torch.arange(6.0).view(3, 2)).tolist() == [[0, 1], [2, 3]]
