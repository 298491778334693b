"""`frugal.compress` of a plain torch module, with data that Frugal knows nothing of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import frugal
from frugal.compression.plain import load
from frugal.errors import FrugalError, RunError, SettingsError
from frugal.pruning.magnitude import MagnitudePruning


class Net(nn.Module):
    """Nothing of Frugal's; the allow-list does not know it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 40), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def samples(count: int) -> TensorDataset:
    draw = torch.Generator().manual_seed(count)
    x = torch.randn(count, 12, generator=draw)
    return TensorDataset(x, x[:, :3].argmax(1))


class Own(LightningDataModule):
    """Doubles its inputs on their way, so that whoever forgets its hooks is found out."""

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(samples(600), 50)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(samples(200), 200)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        return 2 * batch[0], batch[1]


@pytest.fixture
def network() -> Net:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(8):
        for x, y in DataLoader(samples(600), 50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(2 * x), y).backward()
            optimizer.step()
    return net


def test_three_lines_with_an_own_data_module(network: Net, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    small = frugal.compress(
        network, Own(), "quantization=weight_int8", "coding=entropy", file=tmp_path / "small", metric="accuracy"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert small.file == tmp_path / "small.frugal" and small.file.stat().st_size == small.size.file_bytes
    assert small.size.compression_ratio > 2.5 and small.size.parameters == 643  # type: ignore[operator]
    assert small.status == "simulated" and small.techniques["quantization"]["levels"] == 255
    x, y = samples(200).tensors
    found = {net: float((net(2 * x).argmax(1) == y).float().mean()) for net in (network, small.network)}
    assert small.quality == {"before": found[network], "after": found[small.network]} and small.quality["before"] > 0.9
    assert len(small.network.first.weight[0].unique()) > 5
    again = load(small.file, like=Net())
    assert torch.equal(again(x), small.network(x))
    assert str(small).startswith(f"{small.file}: {small.size.file_bytes:,} bytes, ")


def test_pruned_in_training_with_a_loader_and_itself_as_teacher(network: Net, tmp_path: Path) -> None:
    words = (
        "pruning=gradual",
        "pruning.density=0.25",
        "pruning.every=1",
        "distillation=soft_targets",
        "coding=entropy",
    )
    loader = DataLoader(samples(600), 50)
    small = frugal.compress(
        network, loader, *words, file=tmp_path / "m", epochs=2, metric=mean_margin, validation=loader
    )
    assert small.status == "masked" and small.sparsity.prunable == pytest.approx(0.75, abs=1e-3)
    assert small.techniques["pruning"]["prunings"] > 5
    assert small.techniques["distillation"]["teacher"]["source"] == "the network itself"
    assert small.techniques["distillation"]["samples_taught"] == 2 * 600
    assert small.quality["before"] == pytest.approx(sum(mean_margin(network(x), y) * 50 for x, y in loader) / 600)


def mean_margin(output: Tensor, y: Tensor) -> float:
    return float(output.gather(1, y[:, None]).mean().detach())


def test_units_that_go_are_gone_from_the_file(network: Net, tmp_path: Path) -> None:
    batches = [(x, y) for x, y in DataLoader(samples(100), 50)]
    small = frugal.compress(network, batches, "pruning=structured", "pruning.density=0.5", file=tmp_path / "m")
    assert small.status == "converted" and small.file.suffix == ".safetensors"
    assert tuple(small.network.first.weight.shape) == (20, 12) and small.size.parameters == 20 * 13 + 3 * 21
    assert tuple(load(small.file, like=network).first.weight.shape) == (20, 12)
    assert tuple(network.first.weight.shape) == (40, 12)


@pytest.mark.slow
def test_int8_by_onnx_runtime(network: Net, tmp_path: Path) -> None:
    loader = DataLoader(samples(600), 50)
    small = frugal.compress(network, loader, "quantization=static_int8", file=tmp_path / "m.bin")
    assert small.file == tmp_path / "m.onnx" and small.status == "converted"
    x, _ = samples(200).tensors
    assert (load(small.file, like=network)(x).argmax(1) == network(x).argmax(1)).float().mean() > 0.95


def test_technique_objects_act_in_the_order_of_the_stages(network: Net, tmp_path: Path) -> None:
    pruning = MagnitudePruning(density=0.5)
    small = frugal.compress(
        network, [(torch.zeros(2, 12), torch.zeros(2))], "coding=zstd", pruning, file=tmp_path / "m"
    )
    assert list(small.techniques) == ["pruning", "coding"] and small.sparsity.prunable == pytest.approx(0.5, abs=1e-2)


@pytest.mark.parametrize(
    ("words", "more", "says"),
    [
        (["prunning=gradual"], {}, "prunning=gradual: is none of"),
        (["pruning=gradul"], {}, "did you mean gradual?"),
        (["pruning=snip"], {}, "scores weights in training, and there was none"),
        (["distillation=soft_targets"], {}, "distillation: acts in training; set epochs"),
        ([object()], {}, "a object is no technique"),
        ([MagnitudePruning(), "pruning=magnitude"], {}, "techniques: two of pruning"),
        ([], {"epochs": -1}, "epochs=-1"),
        ([], {"metric": "accuracy"}, "metric: there are no validation batches"),
        ([], {"metric": "f1"}, "metric=f1"),
    ],
)
def test_bad_input_is_one_line(words: list[object], more: dict[str, object], says: str, tmp_path: Path) -> None:
    data = DataLoader(samples(60), 20)
    with pytest.raises(FrugalError) as error:
        frugal.compress(Net(), data, *words, file=tmp_path / "m", **more)  # type: ignore[arg-type]
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.glob("m*"))


def test_batches_that_can_be_gone_through_once_and_files_of_others(network: Net, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="data: is a generator; give a LightningDataModule"):
        frugal.compress(network, (batch for batch in DataLoader(samples(60), 20)))
    with pytest.raises(SettingsError, match="network: is a dict"):
        frugal.compress({}, DataLoader(samples(60), 20))  # type: ignore[arg-type]
    small = frugal.compress(network, DataLoader(samples(60), 20), file=tmp_path / "m")
    with pytest.raises(RunError, match="holds another network"):
        load(small.file, like=nn.Linear(3, 3))
