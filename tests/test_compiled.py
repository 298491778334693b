"""Compiled networks: the same numbers, clean keys, counted graphs, compile time apart, and a loud failure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import frugal as package
from frugal.compiled import Compiled, check, graphs
from frugal.compose import compose
from frugal.errors import RefusedError, RunError

pytest_plugins = ("users_home",)
SHORT = ["trainer.max_epochs=1", "trainer.limit_train_batches=12", "measure=none", "logger=none", "trainer.threads=1"]


def test_a_run_compiles_counts_and_says_what_it_cost(home: Path, tmp_path: Path) -> None:
    plain = package.run(SHORT)
    record = package.run([*SHORT, "compile=default"])
    figures = record.techniques["compile"]
    assert figures["graphs"] >= 1 and figures["compile_s"] == record.time.ledger_s["compile"] > 0.1
    saved = figures["eager_step_s"] - figures["compiled_step_s"]
    assert figures["break_even_steps"] == (round(figures["compile_s"] / saved) if saved > 0 else None)
    assert record.quality["test/loss"] == pytest.approx(plain.quality["test/loss"], rel=1e-4)
    folder = tmp_path / "logs" / "default" / record.run.name
    names = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert set(names) == {f"network.layers.{i}.{part}" for i in (1, 3, 5) for part in ("weight", "bias")}


def test_a_sequential_is_compiled_and_made_eager_again() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    x = torch.randn(8, 4)
    expected = network(x)
    before = graphs()
    compiled = Compiled(network, "default")
    assert torch.allclose(network(x), expected, atol=1e-6)
    assert graphs() > before
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    compiled.take_off()
    assert compiled.graphs == graphs() - before and network._compiled_call_impl is None
    figures = compiled.figures(x, compile_s=2.0)
    assert figures["eager_step_s"] > 0 and figures["compiled_step_s"] > 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_nothing_compiled_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(2, 2)
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    compiled = Compiled(network, "default")
    network(torch.ones(1, 2))
    with pytest.raises(RunError, match=r"compile\.mode=default: torch\.compile made no graph of Linear"):
        compiled.on_train_batch_end(None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_graphs_need_cuda() -> None:
    cfg, _ = compose("train", ["compile=cuda_graphs"])
    with pytest.raises(RefusedError, match="CUDA graphs need CUDA, this run would be on cpu"):
        check(cfg)
