"""FLOPs by hand, against a real step, and MFU where it has a meaning."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from frugal import record
from frugal.measure import compute_figures, count_flops, mfu, peak_flops
from frugal.measure.flops import StepFlops, gpu_peak
from frugal.models.gpt import GPT

CPU = torch.device("cpu")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 10))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 144, 10)
    )


def real_step(network: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(x).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("build", [mlp, conv_net])
def test_it_equals_a_real_step(build: object) -> None:
    network, x = build(), torch.rand(16, 1, 28, 28)  # type: ignore[operator]
    assert count_flops(network, x).step == real_step(copy.deepcopy(network), x)


def test_it_equals_numbers_by_hand() -> None:
    batch = 16
    forward = 2 * batch * (784 * 256 + 256 * 10)
    # Backward: gradients of all weights, and of all inputs but the first layer's.
    assert count_flops(mlp(), torch.rand(batch, 784)) == StepFlops(forward, 3 * forward - 2 * batch * 784 * 256)
    conv = 2 * batch * 24 * 24 * 8 * 25
    head = 2 * batch * 8 * 144 * 10
    assert count_flops(conv_net(), torch.rand(batch, 1, 28, 28)) == StepFlops(conv + head, 2 * conv + 3 * head)


def test_nothing_moves() -> None:
    network, x = nn.Sequential(conv_net(), nn.Dropout()), torch.rand(4, 1, 28, 28)
    network.eval()
    before = copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()
    count_flops(network, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_that_cannot_live_on_meta_is_counted_on_a_real_copy() -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4)
            self.mask = torch.ones(4, 8)  # no buffer: it does not move with the module

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.linear.weight * self.mask)

    network, x = Holds(), torch.rand(2, 8)
    random = torch.get_rng_state()
    assert count_flops(network, x).forward == 2 * 2 * 8 * 4
    assert torch.equal(torch.get_rng_state(), random)


def test_attention_is_counted_and_the_loss_is_asked() -> None:
    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert count_flops(Attends(), torch.rand(1, 2, 16, 8)).forward == 2 * (2 * 2 * 16 * 16 * 8)
    asked = []
    count_flops(mlp(), torch.rand(2, 784), loss_fn=lambda output: asked.append(output.shape) or output.mean())
    assert asked == [torch.Size([2, 10])]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": False},
        {"positions": "rotary", "norm": "rmsnorm", "qk_norm": True},
        {"activation": "swiglu", "width": 192},
        {"separator": 3, "positions": "relative"},
        {"bias": True, "checkpointing": True},
    ],
    ids=str,
)
def test_a_transformer_costs_6n_and_12lhqt_a_token(options: dict[str, Any]) -> None:
    """Forward and backward, for each token: 6 N + 12 L H Q T (Chowdhery et al. 2022, appendix B), with N all weights
    that a token is multiplied with: no positions, and the embedding only where it is the head; L layers, H heads of
    size Q, T tokens in a block. The whole T x T products count, also what causality leaves out.

    N here holds gains and biases too, which are no matrix products: hence the tolerance. Computing activations anew
    is left out: it is no work of the model's.
    """
    T, batch = 64, 3
    network = GPT(65, T, **options)
    left_out = ["position.weight", "relative.weight", *([] if network.head is None else ["embedding.weight"])]
    N = sum(p.numel() for name, p in network.named_parameters() if name not in left_out)
    LHQ = len(network.blocks) * network.embedding.embedding_dim
    counted = count_flops(network, torch.zeros(batch, T, dtype=torch.long))
    assert counted.step / (batch * T) == pytest.approx(6 * N + 12 * LHQ * T, rel=0.01)
    assert counted.step == 3 * counted.forward
    matrices = sum(p.numel() for name, p in network.named_parameters() if name not in left_out and p.ndim == 2)
    assert counted.step == batch * T * (6 * matrices + 12 * LHQ * T)  # and exactly so without them


@pytest.mark.parametrize(
    ("gpu", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "tf32", 494.7e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("Tesla T4", "fp16", 65e12),
        ("NVIDIA A10", "fp32", 31.2e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2e12),
        ("Tesla T4", "bf16", None),
        ("NVIDIA A1000 Laptop GPU", "bf16", None),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("Imaginary GPU", "fp32", None),
    ],
)
def test_an_unknown_gpu_is_never_taken_for_another(gpu: str, dtype: str, peak: float | None) -> None:
    found, source = gpu_peak(gpu, dtype)
    assert found == peak
    assert source.startswith("data sheet" if peak else "no ")


def test_the_cpu_peak_is_measured_said_so_and_cached() -> None:
    random = torch.get_rng_state()
    peak, source = peak_flops(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), random)
    assert peak > 1e8
    assert "measured" in source
    assert peak_flops(CPU, torch.float32)[0] == peak
    assert peak_flops(CPU, torch.float8_e4m3fn)[0] is None


def test_mfu_above_one_is_withheld_with_the_reason() -> None:
    assert mfu(50.0, 100.0) == (0.5, None)
    value, reason = mfu(150.0, 100.0)
    assert value is None
    assert "1.50" in reason


def test_compute_figures() -> None:
    rate = record.Throughput(samples_per_s=1000.0)
    compute, absent = compute_figures(
        StepFlops(100, 300), 10, rate, CPU, torch.float32, samples_trained=1990, samples_per_step=40, devices=2
    )
    assert (compute.flops_per_step, compute.flops_total) == (1200, 59_700)
    assert compute.mfu == pytest.approx(30 * 1000 / (2 * compute.peak_flops))
    assert absent == {"compute.flops_per_token": "the batches hold no tokens"}
    mixed, absent = compute_figures(StepFlops(100, 300), 10, rate, CPU, torch.float32, mixed=True)
    assert mixed.mfu is None
    assert "mixes" in absent["compute.mfu"]
    spared, absent = compute_figures(
        StepFlops(100, 300), 10, rate, CPU, torch.float32, samples_trained=25, no_peak="because"
    )
    assert (spared.flops_per_step, spared.flops_total, spared.mfu, spared.peak_flops) == (300, 750, None, None)
    because = {f"compute.{name}": "because" for name in ("mfu", "peak_flops", "peak_source")}
    assert absent == because | {"compute.flops_per_token": "the batches hold no tokens"}
    nothing, absent = compute_figures(None, 10, rate, CPU, torch.float32, flops_reason="because")
    assert nothing.flops_per_step is None
    assert absent["compute.flops_total"] == "because"
    impossible, absent = compute_figures(
        StepFlops(10**15, 10**18), 1, record.Throughput(samples_per_s=1e9), CPU, torch.float32
    )
    assert impossible.mfu is None
    assert "peak" in absent["compute.mfu"]


def test_the_work_on_text_is_counted_by_its_tokens() -> None:
    # 10 samples of 5 tokens in the counted batch, so 6 operations a token; samples of the run were shorter
    rate = record.Throughput(samples_per_s=1000.0, tokens_per_s=3000.0)
    compute, absent = compute_figures(
        StepFlops(100, 300), 10, rate, CPU, torch.float32, 1990, tokens_per_sample=5, tokens_trained=7000
    )
    assert (compute.flops_per_token, compute.flops_per_step, compute.flops_total) == (6, 300, 42_000)
    assert compute.mfu == pytest.approx(6 * 3000 / compute.peak_flops)
    assert absent == {}


def test_no_operation_that_counts_is_absent_and_not_zero() -> None:
    network = torch.nn.EmbeddingBag(10, 3, mode="sum")
    counted = count_flops(network, torch.zeros(2, 4, dtype=torch.long))
    assert counted.step == 0
    compute, absent = compute_figures(counted, 2, record.Throughput(samples_per_s=1.0), CPU, torch.float32)
    assert compute.flops_per_step is None and compute.mfu is None
    assert "only these count" in absent["compute.flops_per_step"]
