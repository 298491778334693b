"""Activations that are rounded in training: ranges and codes by hand, from `begin` to `freeze`, in a copy, a checkpoint
and the artefact."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import frugal
from frugal import artefact
from frugal.errors import SettingsError
from frugal.quantization.qat_int8 import QATInt8, QuantizedInput, quantize_inputs, remove_inputs

X, Y = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


def test_a_range_by_hand() -> None:
    """-1 to 4.1: steps of 0.02, zero is the code 50. A range follows the next batch by a hundredth, until it is frozen;
    beyond it there is no gradient."""
    rounding = QuantizedInput(torch.zeros(1))
    x = torch.tensor([-1.0, 0.0, 0.013, 4.1], requires_grad=True)
    assert torch.equal(rounding(x), x) and not rounding.seen  # not yet active
    rounding.active.fill_(True)
    torch.testing.assert_close(rounding(x), torch.tensor([-1.0, 0.0, 0.02, 4.1]))
    assert rounding(x)[1] == 0.0
    rounding(torch.tensor([1.0, 5.1]))
    assert float(rounding.low) == pytest.approx(-0.99) and float(rounding.high) == pytest.approx(4.11)
    rounding.frozen.fill_(True)
    found = rounding(torch.tensor([-9.0, 1.0, 9.0]))
    assert float(rounding.low) == pytest.approx(-0.99) and float(found[0]) == pytest.approx(-0.98)  # the code 0
    (gradient,) = torch.autograd.grad(rounding(y := torch.tensor([-9.0, 1.0, 9.0], requires_grad=True)).sum(), y)
    assert gradient.tolist() == [0.0, 1.0, 0.0]
    rounding.eval()
    rounding(torch.tensor([100.0]))
    assert float(rounding.high) == pytest.approx(4.11)
    empty = QuantizedInput(torch.zeros(1))
    empty.active.fill_(True)
    assert empty(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]  # a range of nothing is no NaN


class Small(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_from_begin_to_freeze_in_a_trainer_of_ones_own() -> None:
    module, technique = Small(), QATInt8(begin=2, freeze=4, activations=True)
    seen: list[tuple[bool, bool, float]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
            found = module.network[2].quantized_input
            seen.append((bool(found.active), bool(found.frozen), float(found.high)))
            twin = copy.deepcopy(module.network).eval()
            assert torch.equal(twin(X), module.network.eval()(X))
            module.network.train()
            twin[2].quantized_input.high.fill_(99.0)
            assert float(found.high) < 99

    Trainer(
        max_steps=7, max_epochs=-1, callbacks=[technique, Watch()], logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, DataLoader([(X, Y)], batch_size=None))  # fmt: skip
    assert [row[0] for row in seen] == [False] * 2 + [True] * 5 and [row[1] for row in seen] == [False] * 4 + [True] * 3
    assert seen[0][2] == 0.0 and seen[2][2] != seen[3][2] and len({row[2] for row in seen[3:]}) == 1
    network = technique.finalize(module.network.eval(), [])
    first = network(X)
    assert (
        technique.figures()["activations"]["2"] == [0.0, seen[-1][2]] and technique.figures()["status"] == "simulated"
    )
    low, high = technique.figures()["activations"]["0"]
    assert low == pytest.approx(float(X.min())) and high == pytest.approx(float(X.max()))
    assert torch.equal(technique.finalize(network, [])(X), first)  # once more changes nothing
    assert set(remove_inputs(network).state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert not torch.equal(network(X), first)


def test_without_a_training_the_samples_say() -> None:
    network, technique = Small().network.eval(), QATInt8(activations=True)
    wanted = network(X)
    technique.finalize(network, [X])
    assert technique.figures()["activations"]["0"] == [float(X.min()), float(X.max())]
    torch.testing.assert_close(network(X), wanted, rtol=0, atol=0.05)
    assert not torch.equal(network(X), wanted)


def test_an_embedding_takes_tokens() -> None:
    technique = QATInt8(activations=True, embeddings=True)
    technique.prepare(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)))
    assert list(technique.inputs) == ["1"] and quantize_inputs({}) == {}


def test_the_artefact_and_the_checkpoint_compute_as_was_trained(tmp_path: Path) -> None:
    words = ["measure=none", "trainer.threads=1", "trainer.max_epochs=1", "trainer.limit_train_batches=6"]
    words += ["data.source.size=8", "model=small_cnn", "model.network.widths=[4,8,8]"]
    record = frugal.run([*words, "quantization=qat_int8", "quantization.activations=true"])
    run = tmp_path / "logs" / "default" / record.run.name
    ranges = record.techniques["quantization"]["activations"]
    assert len(ranges) == 4 and all(low <= 0 < high for low, high in ranges.values())
    x = torch.randn(5, 1, 8, 8)
    outputs = []
    for file in (run / "model.safetensors", run / "checkpoints" / "last.ckpt"):
        network, _ = artefact.load(file)
        assert sum(isinstance(module, QuantizedInput) for module in network.modules()) == 4
        outputs.append(network(x))
        assert not torch.equal(remove_inputs(network)(x), outputs[-1])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    again = frugal.run([*words, "trainer.max_epochs=0", f"model.init_from={run}", "run.experiment=again"])
    assert again.quality["test/accuracy"] >= 0


def test_a_freeze_before_the_beginning() -> None:
    with pytest.raises(SettingsError, match=r"^quantization\.freeze=10%: is step 1, but quantization\.begin=50% is 3"):
        Trainer(
            max_steps=6, callbacks=[QATInt8(activations=True, freeze="10%")], logger=False, accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(Small(), DataLoader([(X, Y)], batch_size=None))  # fmt: skip
