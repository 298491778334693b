"""What one run prints at its end."""

from __future__ import annotations

from pathlib import Path

from made_up import record

from frugal.console import plain
from frugal.record import Latency, Record
from frugal.report import summary


def shown(made: Record) -> list[str]:
    return plain(summary(made, Path("logs/exp/run"))).splitlines()


def line(lines: list[str], head: str) -> str:
    return next(text for text in lines if text.startswith(head))


def test_every_figure_is_there() -> None:
    made = record(accuracy=0.97521, train=10.0)
    made.memory.private_before_bytes, made.memory.peak_rss_bytes = 200_000_000, 400_000_000
    made.compute.flops_per_step, made.compute.flops_total = 90_000_000, 1_500_000_000_000
    made.compute.mfu, made.compute.peak_flops, made.compute.peak_source = 0.123, 1.5e11, "measured"
    made.diagnosis = "25 % of the time went to waiting for data: try data.workers=2."
    lines = shown(made)
    assert "test/accuracy 97.52 %, test/loss 0.3000" in line(lines, "Quality")
    assert "100 samples/s" in line(lines, "Throughput")
    assert "20.0 s in all, 10.0 s of it training" in line(lines, "Wall time")
    assert "300 MB private at the peak (200 MB before training), 400 MB resident" in line(lines, "Memory")
    assert "smaller" not in line(lines, "Size")
    made.size.compression_ratio = 40.2
    assert "1.00 kB on disk, 40.2 times smaller than dense fp32" in line(shown(made), "Size")
    assert "1.00 kB on disk" in line(lines, "Size") and "235,146 parameters" in line(lines, "Size")
    assert "90.0 MFLOP a step, 1.50 TFLOP in all; MFU 12.3 % of 150 GFLOP/s (measured)" in line(lines, "Compute")
    assert any(text.split()[:5] == ["eager", "8", "0.400", "0.0600", "0.100"] for text in lines)
    assert made.diagnosis in lines
    assert lines[-1] == "Record: logs/exp/run/record.json"


def test_the_ledger_is_bars_with_shares() -> None:
    made = record()
    made.time.ledger_s = {"train_step": 60.0, "data_wait": 30.0, "startup": 9.8, "checkpoint": 0.1, "other": 0.1}
    lines = shown(made)
    bars = {name: next(text for text in lines if f"{name} " in text) for name in ("train_step", "data_wait", "startup")}
    assert bars["train_step"].count("█") == 2 * bars["data_wait"].count("█") == 24
    assert "60 %" in bars["train_step"] and "30 %" in bars["data_wait"] and "1 min 00 s" not in bars["data_wait"]
    assert any("2 others" in text and "<1 %" in text for text in lines)


def test_what_is_absent_says_why() -> None:
    made = Record(absent={"compute.mfu": "unknown device", "latency": "measure=none", "throughput": "too few steps"})
    made.energy.reason = "no counter that can be read"
    lines = shown(made)
    assert line(lines, "Latency").endswith("– (measure=none)")
    assert "MFU – (unknown device)" in line(lines, "Compute")
    assert line(lines, "Throughput").endswith("– (too few steps)")
    assert line(lines, "Energy").endswith("– (no counter that can be read)")
    assert line(lines, "Memory").endswith("–")  # never 0


def test_a_failed_and_resumed_run_says_so() -> None:
    made = record(status="failed", error="RuntimeError: [red]x[/red]\ny", name="[b]name[/b]")
    made.run.resumed, made.run.resumed_at_step = 2, [10, 30]
    lines = shown(made)
    assert any("[b]name[/b]  failed, seed 0, resumed 2 times at step 10, 30" in text for text in lines)
    assert "RuntimeError: [red]x[/red] y" in lines


def test_a_speed_up_is_claimed_for_converted_artefacts_alone() -> None:
    made = record()
    made.latency = [
        Latency("eager", 1, 2, "masked", 1.0, 1.0, 1.0, speedup_theoretical=10.0, speedup_realized=1.5),
        Latency("onnxruntime", 1, 1, "converted", 0.2, 0.2, 0.2, speedup_realized=5.0),
    ]
    lines = shown(made)
    masked = next(text for text in lines if "masked" in text)
    assert "10.0 times fewer multiply-adds" in masked and "faster" not in masked
    assert any("converted, 1 thread, 5.00 times faster" in text for text in lines)
