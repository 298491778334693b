"""`EMA`: averages by hand, validated in the weights' place, kept apart from them in checkpoints."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

import frugal
import project
from command import TINY
from frugal import artefact
from frugal.callbacks.ema import EMA
from frugal.errors import SettingsError
from frugal.models.linear import Linear
from frugal.models.regressor import Regressor
from frugal.optim.optimizers import SGD

SAMPLE = TensorDataset(torch.ones(1, 1), torch.ones(1))


class Seen(Callback):
    """The bias as it is after each step, and as it is validated."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validated: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: object) -> None:
        self.steps.append(pl_module.network.layer.bias.item())  # type: ignore[union-attr]

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: object) -> None:
        self.validated.append(pl_module.network.layer.bias.item())  # type: ignore[union-attr]


def trained(ema: EMA, steps: int) -> tuple[Seen, float]:
    seen, module = Seen(), Regressor(Linear((1,), 1), functools.partial(SGD, lr=0.1))
    Trainer(
        accelerator="cpu",
        max_epochs=steps,
        num_sanity_val_steps=0,
        callbacks=[ema, seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(SAMPLE), DataLoader(SAMPLE))
    return seen, module.network.layer.bias.item()


def test_averages_by_hand() -> None:
    seen, left = trained(EMA(decay=0.25), 4)  # of which the ramp, 2/11, 3/12, 4/13, reaches the second value
    average, expected = seen.steps[0], []  # the first update copies
    for step, bias in enumerate(seen.steps):
        decay = min(0.25, (1 + step) / (10 + step))
        average = bias if step == 0 else decay * average + (1 - decay) * bias
        expected.append(average)
    assert seen.validated == pytest.approx(expected)  # the average is validated, and the weights go on from themselves
    assert left == pytest.approx(expected[-1])  # and what is left is the average
    assert seen.steps[-1] != pytest.approx(left)


def test_start_and_every() -> None:
    seen, left = trained(EMA(decay=0.5, every=2, start=2), 6)
    assert left == pytest.approx(2 / 11 * seen.steps[2] + 9 / 11 * seen.steps[4])


def test_before_the_first_update_the_weights_are_validated() -> None:
    seen, _ = trained(EMA(decay=0.5, start=2), 4)
    assert seen.validated[:2] == pytest.approx(seen.steps[:2])


def test_a_start_behind_the_end_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"callbacks\.ema\.start=4: the run has 4 steps"):
        trained(EMA(start=4), 4)


@pytest.mark.parametrize("words", [{"decay": 1.0}, {"decay": -0.1}, {"every": 0}, {"start": -1}])
def test_bad_settings_are_refused(words: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=r"callbacks\.ema"):
        EMA(**words)  # type: ignore[arg-type]


def test_the_artefact_and_what_a_checkpoint_is_read_for_are_the_average(tmp_path: Path) -> None:
    record = frugal.run([*TINY, "callbacks=ema", "callbacks.ema.decay=0.5", "optim.lr=0.5"])
    folder = tmp_path / "logs" / "default" / record.run.name
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    written, _ = artefact.read(folder / "model.safetensors")
    weights = last["current_model_state"]
    for name, tensor in written.items():
        assert torch.equal(last["state_dict"][f"network.{name}"], tensor)
        assert not torch.equal(weights[f"network.{name}"], tensor)


def test_a_finished_run_trained_on_is_the_longer_run(tmp_path: Path) -> None:
    """The average does not take the weights' place in the last checkpoint, so training goes on from the weights."""
    words = ["callbacks=ema", "callbacks.ema.decay=0.9", "measure=none", "trainer.threads=1", "data.batch_size=512"]
    longer = frugal.run([*words, "trainer.max_epochs=3"])
    short = frugal.run([*words, "trainer.max_epochs=2"])
    folders = tmp_path / "logs" / "default"
    frugal.run([*words, f"run.resume={folders / short.run.name}", "trainer.max_epochs=3"])
    assert project.bits(folders / short.run.name) == project.bits(folders / longer.run.name)
