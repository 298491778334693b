"""Precision: what really ran, numerics against fp32, loss scaling on a CPU, float8's layers, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import frugal as package
from frugal.compose import compose
from frugal.errors import RefusedError, SettingsError
from frugal.precision import ScaledFloat16, check

pytest_plugins = ("users_home",)
SHORT = ["trainer.max_epochs=1", "measure=none", "logger=none", "trainer.threads=1"]


def losses(mode: str) -> tuple[float, float]:
    record = package.run([*SHORT, f"precision={mode}"])
    return record.quality["test/loss"], record.quality["val/loss"]


def test_losses_agree_with_those_of_fp64(home: Path) -> None:
    """An epoch of digits: fp32 to 1e-5 of fp64's loss, the mixed ones to 1 %, those in half throughout to 5 %."""
    exact = losses("fp64")
    for mode, tolerance in (("fp32", 1e-5), ("bf16", 1e-2), ("fp16", 1e-2), ("bf16_true", 5e-2), ("fp16_true", 5e-2)):
        found = losses(mode)
        assert found == pytest.approx(exact, rel=tolerance), mode
        assert mode == "fp32" or found != losses("fp32"), f"{mode} computed as fp32 does"


def test_what_ran_stands_in_the_record(home: Path) -> None:
    assert package.run([*SHORT, "precision=fp16"]).fingerprint.precision == "16-mixed"


@pytest.mark.parametrize(("scale", "kept"), [(1.0, False), (2.0**16, True)])
def test_loss_scaling_keeps_small_gradients(scale: float, kept: bool) -> None:
    """A gradient of 1e-8 is below half of float16's smallest number; 2**16 times as large it is not."""
    plugin = ScaledFloat16("cpu", scale)
    layer = nn.Linear(1, 1, bias=False)
    with plugin.forward_context():
        output = layer(torch.ones(1, 1))
    assert output.dtype is torch.float16
    assert plugin.scaler is not None
    plugin.scaler.scale((output.float() * 1e-8).sum()).backward()
    assert layer.weight.grad is not None
    assert bool(layer.weight.grad.any()) is kept
    if kept:
        assert float(layer.weight.grad) / scale == pytest.approx(1e-8, rel=1e-2)


def test_a_step_that_overflows_is_left_out_and_the_scale_halved() -> None:
    plugin = ScaledFloat16("cpu", 2.0**15)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    assert plugin.scaler is not None
    plugin.scaler.scale(weight.sum() * float("inf")).backward()
    plugin.scaler.step(optimizer)
    plugin.scaler.update()
    assert float(weight) == 1.0 and plugin.scaler.get_scale() == 2.0**14


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device may do these")
def test_what_this_machine_cannot_do_is_refused() -> None:
    cfg, _ = compose("train", ["precision=tf32"])
    with pytest.raises(RefusedError, match="TF32 needs an NVIDIA GPU"):
        check(cfg)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["precision.loss_scale=8"], "only precision=fp16 scales the loss"),
        (["precision=fp16", "precision.loss_scale=-1"], "needs dynamic or a number above 0"),
        (["precision=fp8", "quantization=qat_int8"], "precision=fp8 needs quantization._target_ to be"),
    ],
)
def test_bad_input(words: list[str], says: str, home: Path) -> None:
    with pytest.raises((SettingsError, RefusedError), match=says):
        package.run([*SHORT, *words])


@pytest.mark.gpu
def test_tf32_is_a_setting_of_this_job_alone(home: Path) -> None:
    package.run([*SHORT, "precision=tf32"])
    assert torch.get_float32_matmul_precision() == "highest"
