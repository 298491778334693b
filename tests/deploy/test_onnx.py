"""`deploy=onnx`: fp32 files, what pruning and quantization left of the network in them, and what cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import frugal
from frugal import artefact
from frugal.deploy.onnx import Onnx
from frugal.deploy.onnx_network import OnnxNetwork, put_together, taken_apart
from frugal.errors import RefusedError, RunError, SettingsError
from frugal.models.text_encoder import TextEncoder
from frugal.quantization.static_int8 import StaticInt8

pytestmark = pytest.mark.onnx
SHORT = ["model=lenet_300_100", "trainer.max_epochs=1", "trainer.threads=1", "logger=none"]


def test_a_text_classifier_takes_texts_of_any_length_up_to_its_own() -> None:
    torch.manual_seed(0)
    network = TextEncoder(31, 2, 12, width=16, heads=2).eval()
    tokens = torch.randint(1, 31, (3, 12))
    technique = Onnx()
    written = technique.finalize(network, [tokens])
    assert isinstance(written, OnnxNetwork) and not written.converted and written.backend == "onnxruntime"
    figures = technique.figures()
    assert figures["compared"] == 3 and figures["largest_difference"] < 1e-5 and figures["backend"] == "onnxruntime"
    with torch.no_grad():
        torch.testing.assert_close(written(tokens[:, :5]), network(tokens[:, :5]), atol=1e-5, rtol=1e-4)


def test_what_quantization_made_an_onnx_file_stays_as_it_is() -> None:
    x = torch.randn(4, 6)
    int8 = StaticInt8().finalize(nn.Sequential(nn.Linear(6, 3)), [x])
    technique = Onnx()
    assert technique.finalize(int8, [x]) is int8 and technique.figures() == {"format": "onnx"}


def test_an_int8_file_is_coded_and_comes_back_to_the_bit() -> None:
    torch.manual_seed(0)
    int8 = StaticInt8().finalize(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), [torch.randn(5, 8)])
    content = int8.described("")
    state, encodings = taken_apart(content)
    assert sorted(tuple(encoding.codes.shape) for encoding in encodings.values()) == [(2, 4), (4, 8)]
    assert put_together(state) == content
    with pytest.raises(RunError, match="not an ONNX network"):
        put_together({**state, "onnx.graph": torch.zeros(9, dtype=torch.uint8)})


@pytest.mark.slow
def test_a_coded_int8_file_is_tested_with_its_kernels(tmp_path: Path) -> None:
    record = frugal.run([*SHORT, "quantization=static_int8", "coding=entropy", "measure.batches=[1]"])
    folder = tmp_path / "logs" / "default" / record.run.name
    file = folder / "model.frugal"
    assert [path.name for path in folder.glob("model.*")] == ["model.frugal"]
    assert record.size.file_bytes == file.stat().st_size
    assert record.size.compression_ratio > 4  # type: ignore[operator]
    assert {row.backend: row.status for row in record.latency} == {"eager": "dense", "onnxruntime int8": "converted"}
    again = frugal.run([f"source={file}", "measure=none"], verb="evaluate")
    assert again.quality["test/accuracy"] == record.quality["test/accuracy"]
    with pytest.raises(RunError, match="coded, has no weights to read"):
        artefact.plain_state(file)


@pytest.mark.slow
def test_a_masked_network_is_masked_in_its_file_too(tmp_path: Path) -> None:
    words = ["pruning=magnitude", "pruning.density=0.1", "deploy=onnx", "measure.batches=[1]"]
    record = frugal.run([*SHORT, *words])
    assert {row.backend: row.status for row in record.latency} == {"eager": "dense", "onnxruntime": "masked"}
    assert record.sparsity.prunable == pytest.approx(0.9, abs=0.01)
    file = tmp_path / "logs" / "default" / record.run.name / "model.onnx"
    assert artefact.load(file)[0].plain_weights()["layers.1.weight"].count_nonzero() < 30_000  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("deploy", ["onnx", "torch_export", "safetensors"])
def test_a_network_that_shrank_keeps_its_shapes(deploy: str, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    words = ["pruning=structured", "pruning.density=0.5", "trainer.limit_train_batches=4", f"deploy={deploy}"]
    record = frugal.run([*SHORT, *words, "measure.batches=[1]"])
    assert record.status == "completed" and {row.status for row in record.latency} == {"dense", "converted"}
    folder = tmp_path / "logs" / "default" / record.run.name
    again = frugal.run([f"source={folder}", "measure.batches=[1]"], verb="evaluate")
    assert again.quality["test/accuracy"] == record.quality["test/accuracy"]
    assert again.size == record.size and {row.status for row in again.latency} == {"dense", "converted"}


@pytest.mark.slow
@pytest.mark.parametrize("deploy", ["onnx", "torch_export"])
def test_a_language_model_and_a_classifier_of_texts(deploy: str, tmp_path: Path) -> None:
    rows = "".join(f"film {i} is {'good' if i % 2 else 'bad'},{i % 2}\n" for i in range(90))
    (tmp_path / "reviews.csv").write_text("text,label\n" + rows)
    small = ["trainer.max_epochs=1", "trainer.limit_train_batches=4", "trainer.limit_test_batches=2", "logger=none"]
    gpt = ["model=gpt_mini", "model.network.layers=1", "model.network.heads=2", "model.network.width=16"]
    for words in (
        ["data=pydocs", "data.batch_size=4", "data.block_size=16", "data.eval_batch_size=4", *gpt],
        ["data=csv_text", f"data.source.path={tmp_path}/reviews.csv", "model=text_encoder", "data.max_length=40"],
    ):
        record = frugal.run([*words, *small, "trainer.threads=1", f"deploy={deploy}", "measure=none"])
        assert record.status == "completed" and record.techniques["deploy"]["largest_difference"] < 1e-3
        dense = frugal.run([*words, *small, "trainer.threads=1", "measure=none"])
        assert record.quality["test/loss"] == pytest.approx(dense.quality["test/loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["deploy=onnx", "precision=bf16_true"],
            "cannot be combined with precision.mode=bf16-true",
        ),
        (["deploy=torch_export", "coding=zstd"], "deploy=torch_export cannot be combined with coding=zstd: a .pt2"),
        (["deploy=torch_export", "quantization=static_int8"], "choose deploy=onnx"),
        (["deploy=safetensors", "coding=entropy"], "a coded file is no safetensors file"),
        (["deploy=safetensors", "quantization=dynamic_int8"], "choose deploy=onnx"),
        (["deploy=onnx", "coding=huffman"], "an ONNX file of floats"),
    ],
)
def test_combinations_without_meaning_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        frugal.run([*SHORT, *words])


def test_a_network_that_cannot_be_exported_is_refused() -> None:
    class Decides(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(SettingsError, match=r"^deploy=onnx: Decides cannot be exported .*; choose deploy=none$"):
        Onnx().finalize(Decides(), [torch.ones(2, 3)])
