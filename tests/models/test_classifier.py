"""`Classifier` in Lightning's Trainer: updates, losses and metrics against numbers computed by hand."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from frugal.errors import SettingsError
from frugal.models.classifier import Classifier, macro_f1
from frugal.models.simple_net import SimpleNet
from frugal.optim.optimizers import SGD, Adam, AdamW
from frugal.optim.schedules import Step


class Batches:
    """A loader of fixed batches that goes on where the trainer's progress says, as a data module's loader does."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches
        self.trainer: Trainer | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready if self.trainer else 0
        return iter(self.batches[done % len(self.batches) :])


def trainer(**settings: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{"accelerator": "cpu", "max_epochs": 1, **quiet, **settings})


def fit(module: LightningModule, batches: list[tuple[Tensor, Tensor]], **settings: Any) -> Trainer:
    used = trainer(**settings)
    used.fit(module, Batches(batches))
    return used


def samples(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def split(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def linear(network: nn.Module) -> nn.Linear:
    """The first linear layer of a SimpleNet."""
    return next(layer for layer in network.modules() if isinstance(layer, nn.Linear))


def seeded_net(hidden: tuple[int, ...] = (5,)) -> SimpleNet:
    torch.manual_seed(0)
    return SimpleNet((4,), 3, hidden=hidden)


# One sample x = (1, 2) of class 0 and a linear layer with rows u·(1, 2), -u·(1, 2) and biases u, -u: the two logits
# differ by 12 u, every gradient is -(1 - p) times its own (1, 2 or bias 1), so that u alone tells the whole network.
ONE_SAMPLE = (torch.tensor([[1.0, 2.0]]), torch.tensor([0]))


def one_number_net(u: float = 0.0) -> SimpleNet:
    network = SimpleNet((2,), 2, hidden=[])
    with torch.no_grad():
        linear(network).weight.copy_(torch.tensor([[u, 2 * u], [-u, -2 * u]]))
        linear(network).bias.copy_(torch.tensor([u, -u]))
    return network


def miss(u: float) -> float:
    """1 minus the probability of the right class."""
    return 1 / (1 + math.exp(12 * u))


def plain_steps() -> list[float]:
    first = 0.1 * 0.5
    return [first, first + 0.1 * miss(first)]


def momentum_steps() -> list[float]:
    first = 0.1 * 0.5
    return [first, first + 0.1 * (0.9 * 0.5 + miss(first))]


def nesterov_steps() -> list[float]:
    first = 0.1 * (0.5 + 0.9 * 0.5)
    velocity = 0.9 * 0.5 + miss(first)
    return [first, first + 0.1 * (miss(first) + 0.9 * velocity)]


@pytest.mark.parametrize("fused", [None, False, True])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, plain_steps()),
        ({"momentum": 0.9}, momentum_steps()),
        ({"momentum": 0.9, "nesterov": True}, nesterov_steps()),
    ],
    ids=["sgd", "momentum", "nesterov"],
)
def test_two_steps_of_sgd_by_hand(options: dict[str, Any], expected: list[float], fused: bool | None) -> None:
    for steps in (1, 2):
        module = Classifier(one_number_net(), functools.partial(SGD, lr=0.1, fused=fused, **options))
        fit(module, [ONE_SAMPLE], max_epochs=steps)
        u = expected[steps - 1]
        weight, bias = linear(module).weight, linear(module).bias
        torch.testing.assert_close(weight.detach(), torch.tensor([[u, 2 * u], [-u, -2 * u]]))
        torch.testing.assert_close(bias.detach(), torch.tensor([u, -u]))


@pytest.mark.parametrize("optimizer", [Adam, AdamW])
def test_one_step_of_adam_by_hand(optimizer: type[Adam] | type[AdamW]) -> None:
    u, lr, decay, eps = 0.1, 0.01, 0.5, 0.5  # a large eps, so that the size of the gradient shows
    module = Classifier(one_number_net(u), functools.partial(optimizer, lr=lr, weight_decay=decay, eps=eps))
    fit(module, [ONE_SAMPLE])
    gradient = -2 * miss(u)  # of the weight 2 u
    if optimizer is Adam:
        gradient += decay * 2 * u
        expected = 2 * u - lr * gradient / (abs(gradient) + eps)
    else:
        expected = 2 * u * (1 - lr * decay) - lr * gradient / (abs(gradient) + eps)
    assert linear(module).weight[0, 1].item() == pytest.approx(expected, abs=1e-7)


def test_label_smoothing_is_of_the_training_loss_only() -> None:
    u, smoothing = 0.05, 0.2
    module = Classifier(one_number_net(u), functools.partial(SGD, lr=0.0), label_smoothing=smoothing)
    used = fit(module, [ONE_SAMPLE])
    right, wrong = -math.log(1 - miss(u)), -math.log(miss(u))
    smoothed = (1 - smoothing / 2) * right + smoothing / 2 * wrong
    assert used.callback_metrics["train/loss"].item() == pytest.approx(smoothed, rel=1e-6)
    assert module.last_loss is not None
    assert module.last_loss.item() == pytest.approx(smoothed, rel=1e-6)
    assert not module.last_loss.requires_grad
    tested = trainer().test(module, Batches([ONE_SAMPLE]), verbose=False)[0]
    assert tested["test/loss"] == pytest.approx(right, rel=1e-6)
    with pytest.raises(SettingsError, match="label_smoothing"):
        Classifier(one_number_net(), label_smoothing=1.0)


def test_metrics_are_those_of_the_whole_set_with_an_uneven_last_batch() -> None:
    x, y = samples(103)
    network = seeded_net()
    logits = network(x).detach()
    loss, correct = F.cross_entropy(logits.double(), y).item(), int((logits.argmax(1) == y).sum())
    module = Classifier(network, functools.partial(SGD, lr=0.0))
    batches = split(x, y, 20)  # five of 20 and one of 3
    assert len(batches[-1][0]) == 3

    used = trainer()
    used.fit(module, Batches(batches), Batches(batches))
    for stage in ("train", "val"):
        assert used.callback_metrics[f"{stage}/loss"].item() == pytest.approx(loss, rel=1e-6)
        assert used.callback_metrics[f"{stage}/accuracy"].item() == correct / 103
    tested = trainer().test(module, Batches(batches), verbose=False)[0]
    assert tested["test/loss"] == pytest.approx(loss, rel=1e-6)
    assert tested["test/accuracy"] == correct / 103
    assert set(tested) == {"test/loss", "test/accuracy", "test/macro_f1"}


def test_agrees_with_torchmetrics_and_logs_those_that_were_asked_for() -> None:
    x, y = samples(50)
    network = seeded_net()
    metrics: dict[str, Metric] = {"micro": MulticlassAccuracy(3, average="micro"), "f1": MulticlassF1Score(3)}
    used = trainer()
    used.test(Classifier(network, metrics=metrics), Batches(split(x, y, 8)), verbose=False)
    logged = used.callback_metrics
    assert logged["test/micro"].item() == pytest.approx(logged["test/accuracy"].item(), abs=1e-7)
    assert logged["test/f1"].item() == pytest.approx(MulticlassF1Score(3)(network(x), y).item(), abs=1e-6)


class SaveAt(Callback):
    """Saves a checkpoint at one moment of epoch 1."""

    def __init__(self, path: Path, moment: str) -> None:
        self.path, self.moment = path, moment

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, i: int) -> None:
        self._save(trainer, f"batch {i}")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save(trainer, "epoch")

    def _save(self, trainer: Trainer, moment: str) -> None:
        if trainer.current_epoch == 1 and moment == self.moment:
            trainer.save_checkpoint(self.path)


class Logged(Callback):
    """Epoch -> the means that were logged at its end."""

    def __init__(self) -> None:
        self.epochs: dict[int, tuple[float, float]] = {}

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._note(trainer, trainer.current_epoch - 1)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._note(trainer, trainer.current_epoch - 1)

    def _note(self, trainer: Trainer, epoch: int) -> None:
        if "train/loss" in trainer.callback_metrics:
            metrics = trainer.callback_metrics
            self.epochs[epoch] = (metrics["train/loss"].item(), metrics["train/accuracy"].item())


@pytest.mark.parametrize("moment", ["batch 0", "batch 2", "batch 5", "validation", "epoch"])
def test_epoch_means_after_a_resume_are_those_of_the_whole_epoch(tmp_path: Path, moment: str) -> None:
    batches = split(*samples(103), 20)
    path = tmp_path / "a.ckpt"

    def run(**settings: Any) -> tuple[dict[int, tuple[float, float]], Classifier]:
        logged = Logged()
        module = Classifier(seeded_net(), functools.partial(SGD, lr=0.1, momentum=0.9))
        loader = Batches(batches)
        callbacks = [logged, *settings.pop("callbacks", [])]
        used = loader.trainer = trainer(max_epochs=3, callbacks=callbacks, num_sanity_val_steps=0)
        used.fit(module, loader, Batches(batches), **settings)
        return logged.epochs, module

    whole, uninterrupted = run(callbacks=[SaveAt(path, moment)])
    resumed, module = run(ckpt_path=path, weights_only=True)
    assert set(whole) == {0, 1, 2}
    # From a checkpoint of an epoch's last batch or end, Lightning goes on with the next epoch.
    assert set(resumed) == ({2} if moment in ("batch 5", "epoch") else {1, 2})
    assert resumed == {epoch: whole[epoch] for epoch in resumed}
    for p, q in zip(uninterrupted.parameters(), module.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_second_fit_starts_its_sums_anew() -> None:
    x, y = samples(40)
    module = Classifier(seeded_net(), functools.partial(SGD, lr=0.0))
    first = fit(module, split(x, y, 10), max_steps=2, max_epochs=-1)
    assert first.callback_metrics["train/loss"].item() == pytest.approx(
        F.cross_entropy(module.network(x[:20]), y[:20]).item(), rel=1e-6
    )
    second = fit(module, split(x[20:], y[20:], 10))
    assert second.callback_metrics["train/loss"].item() == pytest.approx(
        F.cross_entropy(module.network(x[20:]), y[20:]).item(), rel=1e-6
    )


def test_accumulation_equals_the_big_batch() -> None:
    x, y = samples(64)
    big = Classifier(seeded_net(), functools.partial(SGD, lr=0.1, momentum=0.9))
    fit(big, split(x, y, 32))
    small = Classifier(seeded_net(), functools.partial(SGD, lr=0.1, momentum=0.9))
    used = fit(small, split(x, y, 8), accumulate_grad_batches=4)
    assert used.global_step == 2
    for p, q in zip(big.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradient_clipping_by_hand(algorithm: str) -> None:
    """At u = 0 the gradients are 0.5 times (1, 2, 1) and their negatives: a norm of sqrt(3)."""
    module = Classifier(one_number_net(), functools.partial(SGD, lr=1.0))
    fit(module, [ONE_SAMPLE], gradient_clip_val=0.6, gradient_clip_algorithm=algorithm)
    scale = 0.6 / math.sqrt(3)
    expected = [0.5 * scale, 1.0 * scale] if algorithm == "norm" else [0.5, 0.6]
    weight = linear(module).weight
    torch.testing.assert_close(weight[0].detach(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_schedule_is_stepped_once_an_optimizer_step() -> None:
    x, y = samples(64)
    rates: list[float] = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    schedule = functools.partial(Step, milestones=[0.5], gamma=0.1)
    module = Classifier(seeded_net(), functools.partial(SGD, lr=1.0), schedule)
    fit(module, split(x, y, 8), accumulate_grad_batches=2, max_epochs=2, callbacks=[Rates()])
    assert rates == pytest.approx([1.0] * 4 + [0.1] * 4)


def test_only_parameters_that_require_gradients_are_optimized() -> None:
    network = seeded_net()
    linear(network).weight.requires_grad_(False)
    before = linear(network).weight.clone()
    module = Classifier(network, functools.partial(SGD, lr=0.1, weight_decay=0.1))
    used = fit(module, split(*samples(20), 10))
    assert len(used.optimizers[0].param_groups[0]["params"]) == 3
    assert torch.equal(linear(network).weight, before)


def test_a_network_without_parameters_is_evaluated() -> None:
    class Converted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3]

    x, y = samples(30)
    tested = trainer().test(Classifier(Converted()), Batches(split(x, y, 7)), verbose=False)[0]
    assert tested["test/accuracy"] == int((x[:, :3].argmax(1) == y).sum()) / 30


def test_half_precision_networks_have_their_loss_in_single() -> None:
    x, y = samples(64)
    network = seeded_net().bfloat16()
    logits = network(x.bfloat16()).detach().float()
    tested = trainer(precision="bf16-true").test(Classifier(network), Batches(split(x, y, 64)), verbose=False)[0]
    assert tested["test/loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)


def test_settings_that_cannot_train_are_refused() -> None:
    with pytest.raises(SettingsError, match="no optimizer"):
        fit(Classifier(seeded_net()), split(*samples(8), 4))
    with pytest.raises(SettingsError, match=r"trainer.max_epochs or trainer.max_steps"):
        fit(Classifier(seeded_net(), functools.partial(SGD, lr=0.1), Step), split(*samples(8), 4), max_epochs=-1)


def test_count_batch() -> None:
    assert Classifier(seeded_net()).count_batch(samples(7)) == (7, None)


def test_nothing_is_logged_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    log: Callable[..., None] = LightningModule.log

    def counting(self: LightningModule, name: str, *args: Any, **kwargs: Any) -> None:
        calls.append(name)
        log(self, name, *args, **kwargs)

    monkeypatch.setattr(LightningModule, "log", counting)
    fit(Classifier(seeded_net(), functools.partial(SGD, lr=0.1)), split(*samples(100), 4), max_epochs=2)
    assert calls == ["train/loss", "train/accuracy"] * 2


def test_lightning_has_nothing_to_warn_of() -> None:
    module = Classifier(seeded_net(), functools.partial(SGD, lr=0.1), Step)
    used = trainer(max_epochs=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        used.fit(module, Batches(split(*samples(20), 10)), Batches(split(*samples(20), 10)))
    about_module = [str(w.message) for w in caught if "log(" in str(w.message) or "scheduler" in str(w.message)]
    assert about_module == []


def test_macro_f1_by_hand() -> None:
    # class 0: 3 right of 4, one taken for it wrongly: 2*3 / (4 + 4); class 1: 2 right of 3 and of 3; class 2: not there
    confusion = torch.tensor([[3, 1, 0], [1, 2, 0], [0, 0, 0]])
    assert float(macro_f1(confusion)) == pytest.approx((6 / 8 + 4 / 6) / 2)


def test_macro_f1_and_confusion_are_those_of_all_batches() -> None:
    network, (x, y) = seeded_net(), samples(50)
    model = Classifier(network)
    used = trainer()
    (figures,) = used.test(model, Batches(split(x, y, 16)), verbose=False)
    with torch.no_grad():
        predicted = network(x).argmax(1)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for true, taken in zip(y.tolist(), predicted.tolist(), strict=True):
        expected[true, taken] += 1
    assert torch.equal(model.confusion, expected)
    reference = MulticlassF1Score(3, average="macro")(predicted, y)
    assert figures["test/macro_f1"] == pytest.approx(float(reference))


def test_a_text_has_as_many_tokens_as_are_no_padding() -> None:
    tokens = torch.tensor([[4, 2, 0, 0], [7, 7, 7, 1]])
    assert Classifier(nn.Identity()).count_batch((tokens, torch.zeros(2, dtype=torch.long))) == (2, 6)
    assert Classifier(nn.Identity()).count_batch((torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))) == (3, None)
