"""Training in 8-bit floats: refused without hardware before a step is made, and, emulated, the roundings by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import frugal
from frugal.errors import RefusedError, SettingsError
from frugal.quantization.fp8 import FP8, no_kernels

torchao = pytest.importorskip("torchao")
SHORT = ["trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.threads=1", "measure=none", "logger=none"]


def test_hardware_without_it_is_refused_in_one_line() -> None:
    if no_kernels(torch.device("cuda" if torch.cuda.is_available() else "cpu")) is None:
        pytest.skip("this machine computes in 8-bit floats")
    with pytest.raises(RefusedError, match=r"^quantization=fp8: needs .*8\.9.*quantization\.emulate=true"):
        frugal.run([*SHORT, "quantization=fp8"])


def test_products_by_hand() -> None:
    """Both operands are scaled so that their largest becomes 448, then rounded to three bits behind the leading one."""
    network = nn.Sequential(nn.Linear(16, 16, bias=False))
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[0, 0], network[0].weight[0, 1] = 448.0, 17.0  # 17 lies between 16 and 18: to even, 16
    technique = FP8(emulate=True)
    technique.convert(network)
    x = torch.zeros(16, 16)
    x[0, 0], x[1, 1] = 448.0, 1.0
    found = network(x)
    assert found[0, 0].item() == pytest.approx(448.0 * 448.0) and found[1, 0].item() == pytest.approx(16.0)
    plain = technique.finalize(network, [])
    assert type(plain[0]) is nn.Linear and plain(x)[1, 0].item() == 17.0  # type: ignore[index]


def test_what_does_not_fit_stays_and_is_listed() -> None:
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Linear(16, 32), nn.Linear(32, 10), nn.Linear(32, 16))
    technique = FP8(emulate=True, exclude=["3"])
    assert technique.choose(network) == (["1"], ["0", "2", "3"])
    with pytest.raises(SettingsError, match=r"no linear layer fits .*\['0', '1', '2', '3'\]"):
        FP8(exclude=["1", "3"]).convert(network)
    with pytest.raises(SettingsError, match="no layer is called head"):
        FP8(exclude=["head"]).choose(network)


def test_an_emulated_run_leaves_a_plain_network(tmp_path: Path) -> None:
    record = frugal.run([*SHORT, "quantization=fp8", "quantization.emulate=true"])
    assert record.techniques["quantization"] | {"layers": 0} == {
        "option": "fp8", "training": "e4m3 and e5m2", "layers": 0, "emulated": True,
        "not_quantized": record.techniques["quantization"]["not_quantized"],
    }  # fmt: skip
    assert record.techniques["quantization"]["not_quantized"] == ["layers.5"]  # to ten classes
    assert record.size.parameters == 235_146
