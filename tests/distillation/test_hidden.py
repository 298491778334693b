"""Feature matching: distances by hand, projections that are trained and leave no trace, exact on a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from frugal.callbacks.exact import ExactRandomness, mix
from frugal.distillation.hidden import Hidden, aligned, distance
from frugal.distillation.teacher import Teacher
from frugal.errors import SettingsError


def test_distances_by_hand() -> None:
    one, other = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    target = torch.tensor([0, 1])
    assert float(distance(one, other, target, "mse")) == pytest.approx((16 / 2 + 4 / 2) / 2)
    assert float(distance(one, other, target, "cosine")) == pytest.approx(((1 - 0.6) + (1 - 5**-0.5)) / 2)
    # of tokens, those without a target count nothing
    tokens = distance(one[None], other[None], torch.tensor([0, -100]), "mse")
    assert float(tokens) == pytest.approx((16 / 2) / 2)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((2, 8), (2, 5), ((2, 8), (2, 5))),
        ((2, 7, 8), (2, 7, 5), ((2, 7, 8), (2, 7, 5))),
        ((2, 3, 4, 4), (2, 6, 4, 4), ((2, 4, 4, 3), (2, 4, 4, 6))),  # channels last
        ((2, 8), (2, 6, 4, 4), ((2, 8), (2, 96))),
        ((2, 3, 8, 8), (2, 6, 4, 4), ((2, 192), (2, 96))),
    ],
)
def test_features_are_matched_by_place(one: tuple, other: tuple, expected: tuple) -> None:
    assert tuple(tuple(x.shape) for x in aligned(torch.zeros(one), torch.zeros(other))) == expected


class Student(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 2))
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(2))
        self.example_input_array = torch.zeros(2, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.criterion(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    monkeypatch.setattr("frugal.distillation.base.load_teacher", lambda *_: Teacher(network))
    return network


X, Y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2


def fit(steps: int, technique: Hidden, folder: Path, resume: str | None = None) -> Student:
    module = Student()
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[ExactRandomness(0), technique], logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader([(X, Y)], batch_size=None)  # an epoch a step: a plain loader begins its epoch anew on a resume
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return module


def test_one_step_by_hand(teacher: nn.Module, tmp_path: Path) -> None:
    technique = Hidden(teacher="somewhere", layers={"1": "1"}, weight=0.5)
    module = fit(1, technique, tmp_path)
    (projection,) = technique.projections
    draw = torch.Generator().manual_seed(0)
    first = torch.empty(5, 4).uniform_(-1, 1, generator=draw).div_(2).requires_grad_()
    before = Student()
    torch.manual_seed(mix(0, 0, 0))  # as before the first micro-batch
    hidden = before.network[1](before.network[0](X))
    logits = before.network[3](before.network[2](hidden))
    wanted = teacher[1](teacher[0](X)).detach()
    (F.cross_entropy(logits, Y) + 0.5 * (hidden @ first.T - wanted).square().mean()).backward()
    torch.testing.assert_close(projection.weight, first - 0.1 * first.grad)
    torch.testing.assert_close(module.network[0].weight, before.network[0].weight - 0.1 * before.network[0].weight.grad)
    state = torch.load(tmp_path / "1.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {"criterion.weight", *(f"network.{i}.{name}" for i in (0, 3) for name in ("weight", "bias"))}
    assert technique.figures()["projection_parameters"] == 20 and technique.figures()["samples_taught"] == 12


def test_a_resume_is_exact(teacher: nn.Module, tmp_path: Path) -> None:
    whole = Hidden(teacher="somewhere", distance="cosine")
    expected = fit(6, whole, tmp_path)
    fit(3, Hidden(teacher="somewhere", distance="cosine"), tmp_path)
    resumed = Hidden(teacher="somewhere", distance="cosine")
    found = fit(6, resumed, tmp_path, str(tmp_path / "3.ckpt"))
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert torch.equal(resumed.projections[0].weight, whole.projections[0].weight) and resumed.passed == 72
    assert tuple(whole.projections[0].weight.shape) == (5, 4)  # what goes into the last linear layer of each


def test_bad_input(teacher: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"distillation\.layers: the student has no module 7; it has 0, 1, 2, 3"):
        fit(1, Hidden(teacher="somewhere", layers={"7": "1"}), tmp_path)
    with pytest.raises(SettingsError, match=r"distillation\.weight=-1: is 0 or above"):
        Hidden(teacher="somewhere", weight=-1)
