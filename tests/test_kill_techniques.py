"""Runs with masks, quantization in training, averages of weights and teachers, killed at a step drawn by lot and
continued: they end in the bits of the uninterrupted run, artefact, checkpoint and what techniques remember."""

from __future__ import annotations

import functools
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import project
from frugal.record import Record
from project import bits, run_of

# 3 epochs of 21 batches; a checkpoint every fifth step
COMMON = [
    "data.source.size=8", "model=dropout_net", "measure=none", "trainer.max_epochs=3", "schedule=cosine",
    "run.checkpoint_every_steps=5",
]  # fmt: skip
STEPS, BATCHES = 63, 21
GPT = [
    "data=pydocs", "data.batch_size=4", "data.block_size=16", "data.eval_batch_size=4", "model=gpt_mini",
    "model.network.layers=1", "model.network.heads=2", "model.network.width=16", "model.network.dropout=0.2",
    f"trainer.limit_train_batches={BATCHES}", "trainer.limit_val_batches=2", "trainer.limit_test_batches=2",
]  # fmt: skip
GRADUAL = ["pruning=gradual", "pruning.every=2", "pruning.density=0.2"]
AVERAGE = ["callbacks=ema", "callbacks.ema.decay=0.9", "callbacks.ema.every=3"]
TAUGHT = ["distillation.teacher_model=lenet_300_100", "distillation.teacher_epochs=1"]
JOBS = {
    "gradual, int8 and an average": [*GRADUAL, "quantization=qat_int8", "quantization.begin=40%", *AVERAGE],
    "gradual": [*GRADUAL, "optim=adamw"],
    "iterative": ["pruning=iterative", "pruning.density=0.2"],
    "lottery": ["pruning=lottery", "pruning.rounds=2", "pruning.rewind=3", "pruning.control=random_mask"],
    "movement": ["pruning=movement", "pruning.every=2", "pruning.density=0.3"],
    "structured": ["pruning=structured"],
    "qat_int4": ["quantization=qat_int4", "optim=adamw"],
    "activations": ["quantization=qat_int8", "quantization.activations=true", "quantization.begin=30%", *AVERAGE],
    "codebook": ["quantization=codebook", "quantization.begin=50%", "quantization.bits=3"],
    "rate": ["quantization=rate", "quantization.refresh=7", "optim=adam"],
    "average": AVERAGE,
    "hidden": ["distillation=hidden", *TAUGHT, "optim=adamw"],
    "soft targets": ["distillation=soft_targets", "distillation.cache=true", *TAUGHT],
    "all at once": [*GRADUAL, "quantization=rate", "quantization.begin=30%", "distillation=hidden", *TAUGHT, *AVERAGE],
    "text": [*GPT, *GRADUAL, "quantization=qat_int4", "quantization.begin=40%", *AVERAGE],
}
QUICK = "gradual, int8 and an average"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project.make(tmp_path_factory.mktemp("home"))


def die_at(step: int) -> None:
    from frugal.callbacks import exact

    original = exact.ExactRandomness.on_train_batch_start

    def dying(self, trainer, *rest):  # type: ignore[no-untyped-def]
        # a teacher that is trained first has steps of its own
        if trainer.global_step == step and trainer.max_epochs == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, trainer, *rest)

    exact.ExactRandomness.on_train_batch_start = dying  # type: ignore[method-assign]


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All of a checkpoint's, wherever they lie."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(part, f"{path}/{key}")


@pytest.mark.parametrize("job", [pytest.param(j, marks=[] if j == QUICK else [pytest.mark.slow]) for j in JOBS])
def test_killed_at_any_step(job: str, home: Path, tmp_path: Path) -> None:
    draw, words = random.Random(job), [*COMMON, *JOBS[job]]
    if job == "text":
        words.remove("model=dropout_net")
        words.remove("data.source.size=8")
    whole = tmp_path / "whole"
    whole.mkdir()
    assert project.finish(project.start(home, whole, words)) == 0, (whole / "output.txt").read_text()
    expected = dict(tensors(torch.load(run_of(whole) / "checkpoints" / "last.ckpt", weights_only=True)))
    assert Record.read(run_of(whole)).run.steps_executed == STEPS
    for trial in range(1 if job == QUICK else 2):
        logs, step = tmp_path / str(trial), draw.randrange(6, STEPS)
        logs.mkdir()
        killed = project.start(home, logs, words, before=functools.partial(die_at, step))
        assert project.finish(killed) == -signal.SIGKILL, (logs / "output.txt").read_text()
        again = project.start(home, logs, [*words, "run.resume=true"])
        assert project.finish(again) == 0, (logs / "output.txt").read_text()
        (at,) = Record.read(run_of(logs)).run.resumed_at_step
        assert 0 < at <= step, "a restart from zero would end in the same bits"
        assert bits(run_of(logs)) == bits(run_of(whole)), f"killed at {step}, continued at {at}"
        found = dict(tensors(torch.load(run_of(logs) / "checkpoints" / "last.ckpt", weights_only=True)))
        assert found.keys() == expected.keys()
        different = [name for name in expected if not torch.equal(found[name], expected[name])]
        assert not different, f"killed at {step}, continued at {at}: {different}"
