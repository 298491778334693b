"""`OnnxNetwork`: the file says what the network says, at any batch size, and its bytes follow from it alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

import frugal
from frugal import artefact
from frugal.deploy.onnx_network import OnnxNetwork, described, export
from frugal.errors import RunError
from frugal.models.lenet5 import LeNet5

pytestmark = pytest.mark.onnx


@pytest.fixture(scope="module")
def network() -> LeNet5:
    torch.manual_seed(0)
    network = LeNet5([1, 28, 28], 10).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # the exporter leaves biases of zeros out
    return network


@pytest.fixture(scope="module")
def content(network: LeNet5) -> bytes:
    return export(network, torch.zeros(2, 1, 28, 28))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_it_says_what_the_network_says(network: LeNet5, content: bytes, batch: int) -> None:
    x = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        torch.testing.assert_close(OnnxNetwork(content)(x), network(x), atol=1e-3, rtol=1e-4)


def test_weights_are_counted_as_they_are_stored(network: LeNet5, content: bytes) -> None:
    weights = OnnxNetwork(content).plain_weights()
    assert sum(weight.numel() for weight in weights.values()) == 431_080
    assert torch.equal(weights["conv1.weight"], network.conv1.weight.detach())


def test_bytes_follow_from_graph_and_description(content: bytes) -> None:
    once, again = described(content, "{}"), described(described(content, "other"), "{}")
    assert once == again and OnnxNetwork(once).description() == "{}"
    assert str(Path(__file__).parents[2]).encode() not in once  # no path of this machine


def test_it_can_be_copied_and_follows_the_threads(content: bytes) -> None:
    network = OnnxNetwork(content)
    x = torch.ones(1, 1, 28, 28)
    expected, threads = network(x), torch.get_num_threads()
    assert torch.equal(copy.deepcopy(network)(x), expected)
    try:
        torch.set_num_threads(2)
        torch.testing.assert_close(network(x), expected)
        assert network._threads == 2
    finally:
        torch.set_num_threads(threads)


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not an ONNX network"):
        OnnxNetwork(b"no protobuf at all")
    file = tmp_path / "model.onnx"
    file.write_bytes(b"\0" * 100)
    with pytest.raises(RunError, match="ONNX"):
        artefact.load(file)


def test_a_file_without_a_description_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(RunError, match="was not written by Frugal"):
        artefact.load(tmp_path / "model.onnx")


def test_a_run_leaves_an_int8_file_that_is_tested_and_timed(tmp_path: Path) -> None:
    words = ["model=lenet_300_100", "trainer.max_epochs=4", "trainer.threads=1", "measure.batches=[1]"]
    plain = frugal.run(words)
    record = frugal.run([*words, "quantization=static_int8"])
    folder = tmp_path / "logs" / "default" / record.run.name
    assert not (folder / "model.safetensors").exists()
    file = folder / "model.onnx"
    assert record.size.file_bytes == file.stat().st_size < plain.size.file_bytes / 3.8  # type: ignore[operator]
    assert record.size.parameters == 266_610 and record.size.compression_ratio > 3.8  # type: ignore[operator]
    # the whole test set of 360 digits: int8 costs at most three of them
    assert record.quality["test/accuracy"] == pytest.approx(plain.quality["test/accuracy"], abs=3.1 / 360)
    rows = {row.backend: row for row in record.latency}
    assert set(rows) == {"eager", "onnxruntime int8"}
    assert (rows["eager"].status, rows["onnxruntime int8"].status) == ("dense", "converted")
    assert (
        record.techniques["quantization"]["quantized"] == {"Gemm": 3} and not record.techniques["quantization"]["left"]
    )
    again = frugal.run([f"source={folder}", "measure=none"], verb="evaluate")
    assert again.quality["test/accuracy"] == record.quality["test/accuracy"]
    assert again.size.file_bytes == record.size.file_bytes
    network, description = artefact.load(file)
    assert isinstance(network, OnnxNetwork) and description.dims["classes"] == 10
    assert json.loads(str(network.description()))["task"] == "classification"
