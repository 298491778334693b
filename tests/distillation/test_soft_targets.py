"""What a student learns from a teacher's probabilities; where teachers come from; that they leave no trace."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import frugal
from frugal import artefact
from frugal.data.datamodule import ArrayDataModule
from frugal.data.digits import Digits
from frugal.data.preprocess import Preprocess
from frugal.distillation.base import Cache
from frugal.distillation.soft_targets import SoftTargets, divergence
from frugal.distillation.teacher import Teacher, load_teacher
from frugal.errors import RefusedError, SettingsError

TINY = ("measure=none", "trainer.max_epochs=1", "trainer.limit_train_batches=4", "trainer.threads=1")


def test_divergence_by_hand() -> None:
    """Teacher 3/4, 1/4 and student 1/2, 1/2: 3/4 ln 3/2 + 1/4 ln 1/2; the second place has no target."""
    teacher = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    student = torch.zeros(2, 2)
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    target = torch.tensor([0, 1])
    assert float(divergence(student, teacher, target, 1.0)) == pytest.approx(by_hand, rel=1e-6)
    assert float(divergence(student, teacher, torch.tensor([0, -100]), 1.0)) == pytest.approx(by_hand / 2, rel=1e-6)
    assert float(divergence(teacher, teacher, target, 2.0)) == 0.0
    # at temperature 2 the teacher says sqrt(3) to 1
    p = math.sqrt(3) / (1 + math.sqrt(3))
    softened = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(divergence(student, teacher, target, 2.0)) == pytest.approx(softened, rel=1e-6)


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    """T^2 times the soft part's gradient tends to (student - teacher) / classes, for centred logits (section 2.1)."""
    teacher, student = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, -0.5]], requires_grad=True)
    temperature = 1000.0
    (temperature**2 * divergence(student, teacher, torch.tensor([0]), temperature)).backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 2, rtol=1e-2, atol=0)


class Pairs(LightningModule):
    """A plain LightningModule: a linear network, `criterion`, and one batch in two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(3, 2, bias=False)
        self.network.weight.data = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]])
        self.criterion = F.cross_entropy

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.criterion(self.network(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def small_teacher() -> nn.Module:
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.weight.fill_(0.3)
        network.bias.copy_(torch.tensor([1.0, -1.0]))
    return network


X, Y = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]]), torch.tensor([0, 1])


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def fit(micro_batches: int) -> tuple[Pairs, SoftTargets, dict[str, Any]]:
        monkeypatch.setattr("frugal.distillation.base.load_teacher", lambda *_: Teacher(small_teacher()))
        module, technique = Pairs(), SoftTargets(teacher="somewhere", temperature=3.0, weight=0.25)
        trainer = Trainer(
            max_steps=1, accumulate_grad_batches=micro_batches, callbacks=[technique], logger=False, accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        batches = list(zip(X.chunk(micro_batches), Y.chunk(micro_batches), strict=True))
        trainer.fit(module, DataLoader(batches, batch_size=None))
        trainer.save_checkpoint(tmp_path / "student.ckpt")
        return module, technique, torch.load(tmp_path / "student.ckpt", weights_only=True)

    return fit


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_one_step_by_hand(taught: Any, micro_batches: int) -> None:
    """In a Trainer of one's own, with and without accumulation; nothing of the teacher is left in the module."""
    module, technique, checkpoint = taught(micro_batches)
    weight = Pairs().network.weight.detach().requires_grad_()
    logits, soft = X @ weight.T, small_teacher()(X).detach()
    kl = F.kl_div((logits / 3).log_softmax(1), (soft / 3).softmax(1), reduction="batchmean")
    (0.75 * F.cross_entropy(logits, Y) + 0.25 * 9 * kl).backward()
    torch.testing.assert_close(module.network.weight, weight - 0.1 * weight.grad)
    assert list(checkpoint["state_dict"]) == ["network.weight"]
    assert module.criterion is F.cross_entropy and technique.teacher is None
    figures = technique.figures()
    assert figures["samples_taught"] == 2 and figures["teacher"]["parameters"] == 8


def run_of(record: Any, tmp_path: Path) -> Path:
    return tmp_path / "logs" / record.run.experiment / record.run.name


def test_a_run_teaches_another(tmp_path: Path) -> None:
    teacher = run_of(frugal.run([*TINY, "model=lenet_300_100"]), tmp_path)
    words = [*TINY, "distillation=soft_targets", f"distillation.teacher={teacher}"]
    record = frugal.run(words)
    figures = record.techniques["distillation"]
    assert figures["teacher"]["parameters"] == 266_610 and figures["samples_taught"] == 4 * 64
    assert figures["teacher"]["training_s"] > 0 and figures["temperature"] == 4.0
    student = run_of(record, tmp_path)
    state = torch.load(student / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    plain = run_of(frugal.run([*TINY]), tmp_path)
    assert set(artefact.read(student)[0]) == set(artefact.read(plain)[0]) == {k.removeprefix("network.") for k in state}
    assert (student / "model.safetensors").read_bytes() != (plain / "model.safetensors").read_bytes()
    unweighted = run_of(frugal.run([*words, "distillation.weight=0.0"]), tmp_path)
    weights = [artefact.read(folder)[0] for folder in (unweighted, plain)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_teacher_that_is_trained_first(tmp_path: Path) -> None:
    """Its time is in a bucket of its own, and it is a function of the settings."""
    words = [*TINY, "distillation=soft_targets", "distillation.teacher_model=lenet_300_100", "distillation.weight=1.0"]
    words += ["distillation.teacher_epochs=2"]
    first, again = (frugal.run([*words, "run.experiment=" + name]) for name in ("a", "b"))
    figures = first.techniques["distillation"]["teacher"]
    assert figures["source"] == "model=lenet_300_100" and 0 < figures["val/accuracy"] <= 1
    assert first.time.ledger_s["distillation"] == pytest.approx(figures["training_s"], abs=0.1)
    assert sum(first.time.ledger_s.values()) == pytest.approx(first.time.wall_s, rel=0.01)
    files = [(run_of(record, tmp_path) / "model.safetensors").read_bytes() for record in (first, again)]
    assert files[0] == files[1] and first.run.steps_executed == 4


def test_the_teachers_time_is_in_a_bucket_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a teacher that sleeps through each batch; the student's steps are not charged for it."""

    def sleep(x: Tensor) -> Tensor:
        time.sleep(0.05)
        return torch.zeros(len(x), 10)

    monkeypatch.setattr("frugal.distillation.base.train_teacher", lambda *_: Teacher(nn.Flatten(), adapt=sleep))
    for cache, asked in ((False, 6), (True, 21)):
        words = [*TINY, "data.source.size=8", "model=lenet_300_100", "trainer.limit_train_batches=6"]
        words += ["distillation=soft_targets", "distillation.teacher_model=linear", f"distillation.cache={cache}"]
        ledger_s = frugal.run(words).time.ledger_s
        assert 0.05 * asked <= ledger_s["distillation"] < 0.05 * asked + 0.3
        assert ledger_s["train_step"] + ledger_s["warmup"] < 0.3


@pytest.mark.parametrize("option", ["soft_targets", pytest.param("hidden", marks=pytest.mark.slow)])
def test_what_the_teacher_said_is_kept(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample is asked for once; the student learns what it would have learnt."""
    digits = [*TINY, "data.source.size=8", "model=lenet_300_100", "trainer.max_epochs=2"]
    teacher = run_of(frugal.run(digits), tmp_path)
    asked: list[int] = []
    original = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, x: (asked.append(len(x)), original(self, x))[1])
    layers = ["distillation.layers={layers.1: layers.1}"] if option == "hidden" else []
    words = [*digits, f"distillation={option}", f"distillation.teacher={teacher}", "seed=1", *layers]
    weights = []
    for cache, times in ((False, 8), (True, 21)):
        asked.clear()
        record = frugal.run([*words, f"distillation.cache={cache}"])
        assert len(asked) == times
        weights.append(artefact.read(run_of(record, tmp_path))[0])
    figures = record.techniques["distillation"]
    size = {"soft_targets": 10, "hidden": 300}[option]
    assert figures["cached_samples"] == sum(asked) and figures["cache_bytes"] == sum(asked) * size * 4
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-6)


def test_by_the_bytes_of_the_input() -> None:
    cache = Cache()
    cache.keep(torch.tensor([[3, 4, 0], [5, 0, 0]]), [torch.tensor([[1.0], [2.0]])])
    cache.keep(torch.tensor([[6, 7]]), [torch.tensor([[3.0]])])
    (found,) = cache.find(torch.tensor([[6, 7, 0, 0], [3, 4, 0, 0]])) or []  # a text with more padding is the same
    assert found.tolist() == [[3.0], [1.0]] and cache.bytes == 12
    assert cache.find(torch.tensor([[3, 4], [8, 9]])) is None


def test_what_cannot_be_kept() -> None:
    words = [*TINY, "distillation=soft_targets", "distillation.teacher_model=lenet_300_100", "distillation.cache=true"]
    with pytest.raises(RefusedError, match=r"^distillation\.cache=true: inputs are augmented"):
        frugal.run([*words, "preprocess=shifts"])
    with pytest.raises(RefusedError, match=r"^distillation\.cache=true: language_modeling has outputs of"):
        frugal.run([*words, "data=pydocs", "data.batch_size=4", "data.block_size=16"])
    with pytest.raises(SettingsError, match=r"^distillation\.cache=true: needs one of Frugal's data modules"):
        Trainer(callbacks=[SoftTargets("it", cache=True)], logger=False, enable_checkpointing=False).fit(
            Pairs(), DataLoader([(X, Y)], batch_size=None)
        )


def test_of_text(tmp_path: Path) -> None:
    """Language models, whose logits are of each token."""
    words = [*TINY, "data=pydocs", "data.batch_size=4", "data.block_size=16", "data.eval_batch_size=16"]
    words += ["trainer.limit_val_batches=2", "trainer.limit_test_batches=2"]
    words += [f"model.network.{word}" for word in ("layers=1", "heads=2", "width=16")]
    teacher = run_of(frugal.run(words), tmp_path)
    record = frugal.run([*words, "distillation=soft_targets", f"distillation.teacher={teacher}", "seed=1"])
    assert record.techniques["distillation"]["samples_taught"] == 16 and record.quality["train/loss"] > 0
    with pytest.raises(SettingsError, match=r"teacher=.*: was trained for vocabulary=.*, and this data has"):
        frugal.run([*words, "distillation=soft_targets", f"distillation.teacher={teacher}", "tokenizer=bytes"])


def test_inputs_are_rescaled_for_a_teacher_that_knows_them_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ArrayDataModule(Digits(), Preprocess())
    data.setup()
    node: dict[str, Any] = {"_target_": "frugal.data.preprocess.Preprocess", "shift": 2}
    description = SimpleNamespace(
        dims={"input_shape": [1, 28, 28], "classes": 10},
        preprocess=node,
        state={"preprocess": data.preprocess.state_dict()},
    )
    monkeypatch.setattr(artefact, "load", lambda path: (small_teacher(), description))
    monkeypatch.setattr(artefact, "find_weights", lambda path: path)
    assert load_teacher("some/run", data).adapt is None
    description.preprocess = {**node, "normalize": False}
    description.state = {"preprocess": {"mean": [], "std": []}}
    x = data.splits["train"][0][:5]
    adapt = load_teacher("some/run", data).adapt
    assert adapt is not None
    torch.testing.assert_close(adapt(data.preprocess(x, False)), x / 255, rtol=0, atol=1e-5)
    description.dims["classes"] = 9
    with pytest.raises(SettingsError, match=r"teacher=some/run: was trained for classes=9, and this data"):
        load_teacher("some/run", data)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"teacher=null, teacher_model=null: nobody teaches"):
        SoftTargets()
    with pytest.raises(SettingsError, match=r"two would teach"):
        SoftTargets(teacher="a", teacher_model="b")
    with pytest.raises(SettingsError, match=r"distillation\.temperature=0: needs to be above 0"):
        SoftTargets("a", temperature=0)
    with pytest.raises(SettingsError, match=r"distillation\.teacher: .*gone.*does not exist"):
        frugal.run([*TINY, "distillation=soft_targets", "distillation.teacher=gone"])
    with pytest.raises(SettingsError, match=r"distillation\.teacher_model=gpt: needs data\.task"):
        frugal.run([*TINY, "distillation=soft_targets", "distillation.teacher_model=gpt"])
