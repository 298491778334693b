"""Strategies beside other options, on two ranks: what one process reaches, within the rounding of what is rounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import frugal
import rank_jobs as jobs
from frugal.record import Record

pytestmark = pytest.mark.slow

COMMON = ["trainer.accelerator=cpu", "trainer.threads=1", "measure=none", "trainer.max_epochs=2", "logger=none"]
EXACT, HALF = 1e-4, 2e-2  # relative, of losses: of fp32 in another order, and of bf16
# Options beside the strategy, the strategies that they are tried with, and how far a loss may be off.
TOGETHER: list[tuple[list[str], list[str], float]] = [
    (["pruning=gradual", "callbacks=ema"], ["ddp"], EXACT),
    (["quantization=qat_int8"], ["ddp"], EXACT),
    (["precision=fp16"], ["ddp"], HALF),
    (["compile=default"], ["ddp"], EXACT),
    (["precision=bf16"], ["ddp", "fsdp", "tensor_parallel"], HALF),
    (["precision=bf16_true"], ["fsdp"], HALF),
    (["run.weights=best", "coding=entropy"], ["fsdp"], EXACT),
    (["optim=adamw", "schedule=one_cycle", "data.workers=1"], ["ddp", "fsdp"], EXACT),
    (["budget.samples=1500", "schedule=cosine"], ["ddp", "fsdp"], EXACT),
    (["data=diabetes"], ["ddp", "fsdp"], EXACT),
]
OWN = {"bf16": (["strategy=ddp", "strategy.communicate=bf16"], HALF), "kept": (
    ["strategy=fsdp", "strategy.reshard_after_forward=false"], EXACT)}  # fmt: skip


def cases() -> list[dict[str, Any]]:
    found = [
        {"name": f"{i}-{strategy}", "words": [*COMMON, *words, f"strategy={strategy}", "trainer.devices=2"]}
        for i, (words, strategies, _) in enumerate(TOGETHER)
        for strategy in strategies
    ]
    return found + [{"name": n, "words": [*COMMON, *words, "trainer.devices=2"]} for n, (words, _) in OWN.items()]


def test_strategies_beside_other_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = jobs.make_home(tmp_path / "home")
    (home / "cases.json").write_text(json.dumps(cases()))
    out = jobs.torchrun(2, home, "cases.json", "results.json")
    results = json.loads((home / "results.json").read_text())
    assert {name: result["error"] for name, result in results.items() if result["error"]} == {}, out
    expected = [frugal.run([*COMMON, *words]) for words, _, _ in TOGETHER]
    plain = frugal.run(COMMON)
    for case in cases():
        name = case["name"]
        (folder,) = results[name]["folders"]
        record = Record.read(folder)
        if name in OWN:
            reference, tolerance = plain, OWN[name][1]
        else:
            index = int(name.partition("-")[0])
            reference, tolerance = expected[index], TOGETHER[index][2]
        assert record.quality["test/loss"] == pytest.approx(reference.quality["test/loss"], rel=tolerance), name
        assert record.run.steps_executed == reference.run.steps_executed, name
        assert record.budget == reference.budget, name
