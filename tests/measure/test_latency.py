"""Latency against planted sleeps, who may claim a speed-up, and the backends that are built."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frugal.errors import SettingsError
from frugal.measure.latency import LEVELS, build_backends, measure_latency


def slow(seconds: float) -> Any:
    return lambda x: time.sleep(seconds)


def make_input(batch: int) -> Tensor:
    return torch.linspace(0, 1, batch * 6).view(batch, 6)


def test_percentiles_of_planted_sleeps_in_milliseconds() -> None:
    rows = measure_latency({"a": slow(0.004), "b": slow(0.012)}, make_input, batches=(1, 8), seconds=0.1, warmup=1)
    assert [(row.backend, row.batch) for row in rows] == [("a", 1), ("b", 1), ("a", 8), ("b", 8)]
    for row in rows:
        least = 4.0 if row.backend == "a" else 12.0
        assert least <= row.p50_ms < least + 6
        assert row.p50_ms <= row.p90_ms <= row.p99_ms
        assert row.threads == torch.get_num_threads()
        assert row.status == "dense"


def test_calls_take_turns_and_are_warmed_up_in_inference_mode() -> None:
    calls: list[str] = []

    def backend(name: str) -> Any:
        def call(x: Tensor) -> None:
            assert torch.is_inference_mode_enabled()
            calls.append(name)
            time.sleep(0.002)

        return call

    measure_latency({"a": backend("a"), "b": backend("b")}, make_input, batches=(1,), seconds=0.1, warmup=10)
    assert calls[:20] == ["a"] * 10 + ["b"] * 10
    timed = calls[20:]
    assert timed.count("a") >= 10 <= timed.count("b")
    assert sum(one != two for one, two in itertools.pairwise(timed)) >= 8


def test_at_least_ten_timed_calls() -> None:
    calls: list[int] = []
    measure_latency({"a": lambda x: calls.append(len(x))}, make_input, batches=(1, 2), seconds=0.0, warmup=3)
    assert calls.count(1) >= 13
    assert calls.count(2) >= 13


def test_a_speed_up_is_claimed_for_converted_only_and_where_the_level_allows_it() -> None:
    backends = {"eager": slow(0.01), "int8": slow(0.002)}
    options: dict[str, Any] = {"batches": (1,), "seconds": 0.05, "warmup": 1, "reference": "eager"}
    options["speedup_theoretical"] = 4.0
    status: dict[str, Any] = {"eager": "dense", "int8": "converted"}
    eager, int8 = measure_latency(backends, make_input, status=status, claims=True, **options)
    assert eager.speedup_realized is None
    assert eager.speedup_theoretical is None
    assert 2 < int8.speedup_realized <= 5.5
    assert int8.speedup_theoretical == 4.0
    status["int8"] = "masked"
    assert measure_latency(backends, make_input, status=status, claims=True, **options)[1].speedup_realized is None
    assert measure_latency(backends, make_input, status="converted", **options)[1].speedup_realized is None


def test_levels_claim_from_standard_up() -> None:
    assert set(LEVELS) == {"none", "quick", "standard", "thorough"}
    assert [name for name, level in LEVELS.items() if level.claims] == ["standard", "thorough"]
    assert LEVELS["none"].backends == ()
    assert LEVELS["quick"].seconds == 0.3


def test_progress_is_told() -> None:
    told: list[tuple[int, int, str]] = []
    measure_latency(
        {"a": slow(0.0), "b": slow(0.0)},
        make_input,
        batches=(1, 8),
        seconds=0.0,
        on_progress=lambda done, total, label: told.append((done, total, label)),
    )
    assert [done for done, _, _ in told] == [0, 1, 2, 3, 4]
    assert {total for _, total, _ in told} == {4}
    assert told[1][2] == "b, batch 1"


@pytest.mark.onnx
def test_onnxruntime_agrees_with_eager_at_every_batch_size() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))
    backends, absent = build_backends(network, ("eager", "onnxruntime"), make_input)
    assert absent == {}
    assert not network.training
    for batch in (1, 8, 64):
        with torch.inference_mode():
            expected = backends["eager"](make_input(batch))
        found = torch.from_numpy(backends["onnxruntime"](make_input(batch))[0])
        assert torch.allclose(expected, found, atol=1e-5)


def test_a_backend_that_cannot_be_had_is_absent_with_one_line() -> None:
    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise TypeError("not today\nnor tomorrow")

    backends, absent = build_backends(Stubborn(), ("eager", "torch.compile"), make_input)
    assert set(backends) == {"eager"}
    assert "not today" in absent["latency.torch.compile"]
    assert "\n" not in absent["latency.torch.compile"]
    with pytest.raises(SettingsError, match="tensorrt"):
        build_backends(nn.ReLU(), ("tensorrt",), make_input)


@pytest.mark.slow
def test_torch_compile_agrees_with_eager() -> None:
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    backends, absent = build_backends(network, ("eager", "torch.compile"), make_input, batches=(1, 8))
    if absent:
        pytest.skip(absent["latency.torch.compile"])
    with torch.inference_mode():
        assert torch.allclose(backends["eager"](make_input(8)), backends["torch.compile"](make_input(8)), atol=1e-5)
