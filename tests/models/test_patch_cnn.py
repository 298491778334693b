"""PatchCNN: filters by hand, fitted once, in training time, never trained; the whole fast recipe exact on a resume."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import project
from command import die_in_training
from frugal.data.datamodule import ArrayDataModule
from frugal.data.digits import Digits
from frugal.data.preprocess import Preprocess
from frugal.errors import SettingsError
from frugal.measure import TimeLedger
from frugal.models.patch_cnn import PatchClassifier, PatchCNN
from frugal.record import Record
from project import bits, run_of

SHAPE = (1, 28, 28)  # of `Digits` too


def small() -> PatchCNN:
    return PatchCNN(SHAPE, 10, filters=4, widths=[4, 4, 4])


def two_channels() -> Tensor:
    """Images (2, 2, 6, 6) of pixels 3 a (0.6, 0.8) + b (-0.8, 0.6), where a and b are 1 and -1 in equal parts."""
    a = torch.tensor([1.0, -1.0, 1.0, -1.0]).repeat(18).view(2, 1, 6, 6)
    b = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(18).view(2, 1, 6, 6)
    return 3 * a * torch.tensor([0.6, 0.8]).view(2, 1, 1) + b * torch.tensor([-0.8, 0.6]).view(2, 1, 1)


def test_filters_are_the_principal_components_by_hand() -> None:
    network, x = PatchCNN((2, 6, 6), 3, filters=2, patch=1, stride=1), two_channels()
    network.fit([x[:1], x[1:]])
    first, second = network.filters.flatten(1)
    for found, expected in ((first, torch.tensor([0.6, 0.8])), (second, torch.tensor([-0.8, 0.6]))):
        torch.testing.assert_close(found * torch.sign(found @ expected), expected)
    assert bool(network.fitted)
    # a pixel of 3 (0.6, 0.8) + (-0.8, 0.6): 3 and 1 long in the two directions, each in the channel of its sign
    seen = sorted(network.first_layer(x)[0, :, 0, 0].tolist())
    assert seen == pytest.approx([0, 0, 1, 3], abs=1e-6)
    assert network(x).shape == (2, 3)


def test_fit_takes_patches_at_the_stride_and_in_the_order_of_the_convolution() -> None:
    """Images that are brightest in the upper left of each 3x3 patch at stride 3: so is the first filter."""
    x = torch.zeros(2, 1, 18, 18)
    x[:, :, ::3, ::3], x[:, :, 0::3, 1::3] = 2.0, 1.0
    network = PatchCNN((1, 18, 18), 2, filters=1, patch=3, stride=3)
    network.fit([x])
    length = math.hypot(2, 1)
    expected = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]) / length
    torch.testing.assert_close(network.filters[0, 0].abs(), expected, atol=1e-6, rtol=0)
    response = network.first_layer(x).amax(dim=1)
    torch.testing.assert_close(response, torch.full((2, 6, 6), length))


def data() -> ArrayDataModule:
    return ArrayDataModule(Digits(), Preprocess(shift=1), batch_size=64)


def fit(module: PatchClassifier, callbacks: list[pl.Callback]) -> None:
    pl.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=data())


@pytest.mark.filterwarnings("ignore")
def test_fitted_once_in_training_time_and_never_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, taken = small(), data()
    taken.setup("fit")
    expected.fit(taken.calibration_batches(50))
    fitted, original = [], PatchCNN.fit

    def slow(self, batches) -> None:  # type: ignore[no-untyped-def]
        fitted.append(True)
        time.sleep(0.3)
        original(self, batches)

    monkeypatch.setattr(PatchCNN, "fit", slow)
    network, ledger = small(), TimeLedger()
    module = PatchClassifier(network, lambda p: torch.optim.SGD(p, lr=0.1), fit_samples=50)
    fit(module, [ledger])
    assert ledger.figures()["warmup"] + ledger.figures()["train_step"] >= 0.3
    assert torch.equal(network.filters, expected.filters) and len(fitted) == 1
    assert "filters" in network.state_dict() and "filters" not in dict(network.named_parameters())
    with torch.no_grad():
        network.filters.mul_(2)
    fit(module, [])  # goes on from weights that were learned behind these
    assert torch.equal(network.filters, 2 * expected.filters) and len(fitted) == 1


def test_data_without_training_images_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"model=patch_cnn takes its first layer from .* call network\.fit"):
        module = PatchClassifier(small())
        module._trainer = SimpleNamespace(
            datamodule=None, is_global_zero=True, world_size=1, distributed_sampler_kwargs=None
        )  # type: ignore[assignment]
        module.on_train_start()
        module.training_step((torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.int64)), 0)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 14, 28), {}, r"at least 15x15 \(by model\.network\.patch=5 and stride=2\), not \[1, 14, 28\]"),
        ((64,), {}, r"at least 15x15"),
        (SHAPE, {"filters": 26}, r"model\.network\.filters=26: patches of 25 numbers have 1 to 25 components"),
        (SHAPE, {"patch": 0}, r"model\.network\.patch=0: must be at least 1"),
        (SHAPE, {"stride": 0}, r"model\.network\.stride=0: must be at least 1"),
        (SHAPE, {"widths": [8, 8]}, r"model\.network\.widths=\[8, 8\]: needs three numbers"),
    ],
)
def test_errors_name_the_option(shape: tuple[int, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        PatchCNN(shape, 10, **options)  # type: ignore[arg-type]
    assert PatchCNN((1, 15, 15), 10)(torch.zeros(2, 1, 15, 15)).shape == (2, 10)
    with pytest.raises(SettingsError, match=r"model\.fit_samples=0"):
        PatchClassifier(small(), fit_samples=0)


RECIPE = [
    "model=patch_cnn", "model.network.filters=4", "model.network.widths=[8,8,8]", "model.label_smoothing=0.1",
    "preprocess=shifts", "preprocess.shift=1", "optim=nesterov_bf16", "optim.lr=0.1", "optim.weight_decay=0.0005",
    "schedule=wsd", "schedule.warmup=0.2", "schedule.decay=0.8", "precision=bf16_true", "trainer.max_epochs=1",
    "measure=none", "run.checkpoint_every_steps=2",
]  # fmt: skip


def test_the_recipe_killed_and_continued_ends_bit_for_bit(tmp_path: Path) -> None:
    home = project.make(tmp_path / "home")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for logs in (whole, cut):
        logs.mkdir()
    assert project.finish(project.start(home, whole, RECIPE)) == 0, (whole / "output.txt").read_text()
    project.finish(project.start(home, cut, RECIPE, before=die_in_training))
    assert Record.read(run_of(cut)).status == "running"
    assert project.finish(project.start(home, cut, [*RECIPE, "run.resume=true"])) == 0
    record = Record.read(run_of(cut))
    assert record.run.resumed_at_step == [2]
    assert bits(run_of(cut)) == bits(run_of(whole))
    state = load_file(run_of(cut) / "model.safetensors")
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.bfloat16} and bool(state["fitted"])
    checkpoint = torch.load(run_of(cut) / "checkpoints" / "last.ckpt", weights_only=True)
    masters = [s["master"] for s in checkpoint["optimizer_states"][0]["state"].values()]
    assert len(masters) == 11 and {m.dtype for m in masters} == {torch.float32}
