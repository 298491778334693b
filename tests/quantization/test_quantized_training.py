"""In a Trainer: from `begin` on, with masks, on through a kill, to an artefact of plain weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from frugal.callbacks.ema import EMA
from frugal.callbacks.exact import ExactRandomness
from frugal.coding.encoding import encodings_of
from frugal.pruning.masks import add_masks
from frugal.quantization.codebook import Codebook
from frugal.quantization.fake import QuantizedTraining
from frugal.quantization.qat_int4 import QATInt4
from frugal.quantization.qat_int8 import QATInt8
from frugal.quantization.rate import Rate


class Small(LightningModule):
    def __init__(self, masked: bool = False, adam: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.adam, self.seen = adam, []
        if masked:
            for mask in add_masks(self.network).values():
                mask.mask[:, ::2] = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(len(self.network[0].weight.unique()))
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        if self.adam:
            return torch.optim.AdamW(self.parameters(), lr=0.02, fused=True)
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, fused=True)


X, Y = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
MAKE = {
    "qat_int8": lambda: QATInt8(begin=2),
    "qat_int4": lambda: QATInt4(begin=2, group=3),
    "learned": lambda: QATInt4(begin=2, levels=7, scale="learned", bias_levels=15),
    "codebook": lambda: Codebook(bits=2, begin=2),
    "rate": lambda: Rate(bits_weight=1e-3, begin=2, refresh=2, largest=3),
}


class Save(Callback):
    """Before an average takes the place of the weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit(
    module: Small, technique: QuantizedTraining, folder: Path, steps: int, resume: Path | None = None, *more: Callback
) -> None:
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[ExactRandomness(0), technique, *more, Save(folder)], logger=False,
        accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    # an epoch a step: a plain loader begins its epoch anew on a resume
    trainer.fit(module, DataLoader([(X, Y)], batch_size=None), ckpt_path=resume, weights_only=True)


@pytest.mark.parametrize("option", MAKE)
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_it_begins_when_it_should_and_keeps_masks(option: str, adam: bool, tmp_path: Path) -> None:
    module, technique = Small(masked=True, adam=adam), MAKE[option]()
    fit(module, technique, tmp_path, 9)
    values = {"qat_int8": 25, "qat_int4": 25, "learned": 7, "codebook": 5, "rate": 7}[option]
    assert module.seen[:2] == [25, 25] and all(seen <= values for seen in module.seen[2:])  # 24 weights and zero
    assert module.seen[-1] > 1 and technique.first_step == 2
    network = technique.finalize(module.network, [])
    found = encodings_of(network)  # checks codes against the weights, bit for bit
    assert {"0.weight", "3.weight"} <= set(found)
    assert not network[0].weight[:, ::2].any() and network[0].weight[:, 1::2].any()
    assert technique.figures()["begin_step"] == 2 and technique.figures()["not_quantized"] == []
    assert set(network.state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize("option", MAKE)
@pytest.mark.parametrize("cut", [1, 4], ids=["before", "after"])
def test_a_resume_is_exact(option: str, cut: int, tmp_path: Path) -> None:
    whole = Small()
    fit(whole, MAKE[option](), tmp_path, 7)
    fit(Small(), MAKE[option](), tmp_path, cut)
    resumed, technique = Small(), MAKE[option]()
    fit(resumed, technique, tmp_path, 7, tmp_path / f"{cut}.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    network = Small().network
    other = MAKE[option]()
    other.prepare(network)  # as somebody does who loads a checkpoint for use
    network.load_state_dict({k.removeprefix("network."): v for k, v in resumed.state_dict().items()})
    assert torch.equal(network[0].weight, resumed.network[0].weight)


@pytest.mark.parametrize("option", ["qat_int4", "learned", "rate"])
def test_a_resume_with_an_average_of_weights_is_exact(option: str, tmp_path: Path) -> None:
    found = []
    for parts in ([7], [4, 7]):
        for steps, resume in zip(parts, [None, tmp_path / "4.ckpt"], strict=False):
            module, technique = Small(masked=True), MAKE[option]()
            fit(module, technique, tmp_path, steps, resume, EMA(decay=0.5))
        network = technique.finalize(module.network, [])
        assert not network[0].weight[:, ::2].any() and network[0].weight.any()
        found.append(encodings_of(network)["0.weight"])
    assert torch.equal(found[0].codes, found[1].codes) and torch.equal(found[0].scale, found[1].scale)


def test_shared_values_are_trained(tmp_path: Path) -> None:
    module, technique = Small(), Codebook(bits=2, begin=0, gradient="sum")
    technique.prepare(module.network)
    fit(module, technique, tmp_path, 1)
    table = technique.quantizers["0.weight"].table.detach().clone()
    codes = technique.quantizers["0.weight"].codes.clone()
    fit(module, technique, tmp_path, 3)
    assert not torch.equal(technique.quantizers["0.weight"].table, table)
    assert torch.equal(technique.quantizers["0.weight"].codes, codes)


def test_bits_that_cost_much_go_away_and_may_come_back(tmp_path: Path) -> None:
    """At a high price hardly a weight is worth it; without one the loss brings many back."""
    module = Small()
    module.network = nn.Sequential(nn.Linear(6, 3))
    fit(module, Rate(bits_weight=0.05, begin=0, refresh=3, largest=3, learn_step=False), tmp_path, 60)
    assert int(module.network[0].weight.count_nonzero()) <= 2
    fit(module, Rate(bits_weight=0.0, begin=0, largest=3, learn_step=False), tmp_path, 60)
    assert int(module.network[0].weight.count_nonzero()) >= 6


def test_a_run_too_short_to_begin(tmp_path: Path) -> None:
    module, technique = Small(), QATInt4(begin=100)
    fit(module, technique, tmp_path, 2)
    assert module.seen == [48, 48]
    network = technique.finalize(module.network, [])
    assert int(encodings_of(network)["0.weight"].codes.abs().max()) == 7
