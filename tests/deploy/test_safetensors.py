"""`deploy=safetensors`: floats, whatever made them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import frugal
from frugal.deploy.safetensors import Safetensors
from frugal.errors import SettingsError
from frugal.quantization.weight_int4 import WeightInt4


def test_whole_numbers_are_written_as_what_they_stand_for(tmp_path: Path) -> None:
    words = [
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=4",
        "trainer.threads=1",
        "measure=none",
        "logger=none",
    ]
    record = frugal.run([*words, "quantization=weight_int4", "deploy=safetensors"])
    state = load_file(tmp_path / "logs" / "default" / record.run.name / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    weight = next(tensor for tensor in state.values() if tensor.ndim == 2)
    assert len(weight[0, :28].unique()) <= 15  # of one group
    assert record.techniques["deploy"] == {
        "option": "safetensors", "format": "safetensors", "largest_difference": 0.0, "compared": 64,
        "largest_output": record.techniques["deploy"]["largest_output"],
    }  # fmt: skip
    assert record.size.compression_ratio == pytest.approx(1.0, abs=0.01)


def test_a_quantized_network_gives_its_codes_up() -> None:
    network = WeightInt4(group=None).finalize(torch.nn.Sequential(torch.nn.Linear(4, 2)), [])
    assert network.frugal_encodings
    assert Safetensors().finalize(network, [torch.ones(2, 4)]) is not None and not network.frugal_encodings


@pytest.mark.onnx
def test_an_int8_file_is_refused() -> None:
    from frugal.quantization.static_int8 import StaticInt8

    x = torch.ones(2, 4)
    with pytest.raises(SettingsError, match="is an ONNX file already"):
        Safetensors().finalize(StaticInt8().finalize(torch.nn.Sequential(torch.nn.Linear(4, 2)), [x]), [x])
