"""Several ranks train what one process trains: metrics, each parameter and the optimizer's state, in float64.

One set of processes under torchrun does all the jobs of two ranks, another those of four (`rank_jobs.py`): they fit,
validate, test, are stopped, and go on, also on other strategies. What is expected comes from this process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import frugal
import rank_jobs as jobs
from frugal.record import Record

pytestmark = pytest.mark.slow

# fp64 rounds at 1e-16: a sum over ranks has another order than one over samples.
TOLERANCE = 1e-13
COMMON = [
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "precision=fp64",
    "measure=none",
    "seed=3",
    "trainer.gradient_clip_val=0.5",
    "run.checkpoint_every_steps=5",
]
# 21 batches of 64, the last of 14 samples, which four ranks cannot divide; two a step, the last step of one
SIMPLE = [*COMMON, "model=simple_net", "preprocess=shifts", "trainer.max_epochs=2", "trainer.accumulate_grad_batches=2"]
GPT = [
    *COMMON,
    "data=pydocs",
    "model=gpt",
    "model.network={layers:2,width:32,qk_norm:true,positions:rotary}",
    "data.block_size=32",
    "data.batch_size=8",
    "data.eval_batch_size=256",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=24",
]
NETWORKS = {"simple": SIMPLE, "gpt": GPT}
STOP = 12  # the checkpoint before it is of step 10
STRATEGIES = {2: ("ddp", "fsdp", "tensor_parallel"), 4: ("ddp", "fsdp", "tensor_parallel", "fsdp_tp")}
# Where a run goes on that two or four ranks began.
ELSEWHERE = {"ddp": "fsdp", "fsdp": "tensor_parallel", "tensor_parallel": "ddp", "fsdp_tp": "fsdp"}


def cases(ranks: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for net, words in NETWORKS.items():
        for strategy in STRATEGIES[ranks]:
            own = [*words, f"strategy={strategy}", f"trainer.devices={ranks}"]
            if strategy == "fsdp":
                own += ["strategy.activation_checkpointing=true"] if net == "gpt" else ["strategy.checkpoint=full"]
            cut = f"{net}-{strategy}-cut"
            found.append({"name": f"{net}-{strategy}", "words": own})
            found.append({"name": cut, "words": own, "stop_at": STOP})
            found.append({"name": f"{net}-{strategy}-on", "words": [], "goes_on_from": cut})
            there = [f"strategy={ELSEWHERE[strategy]}"]
            found.append({"name": f"{net}-{strategy}-elsewhere", "words": there, "goes_on_from": cut})
    return found


class Done:
    """The jobs of some ranks, and the folder of each."""

    def __init__(self, ranks: int, home: Path) -> None:
        self.ranks, self.home = ranks, home
        (home / "cases.json").write_text(json.dumps(cases(ranks)))
        out = jobs.torchrun(ranks, home, "cases.json", "results.json")
        self.results: dict[str, Any] = json.loads((home / "results.json").read_text())
        assert set(self.results) == {case["name"] for case in cases(ranks)}, out

    def folder(self, name: str) -> Path:
        result = self.results[name]
        assert result["error"] is None, result["error"]
        (folder,) = result["folders"]
        return Path(folder)


@pytest.fixture(scope="module", params=[2, 4])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(request.param, jobs.make_home(tmp_path_factory.mktemp("ranks") / "home"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What one process leaves, by network."""
    logs = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRUGAL_LOG_DIR", str(logs))
        for net, words in NETWORKS.items():
            frugal.run([*words, f"run.experiment={net}"])
    return {net: next((logs / net).glob("*/record.json")).parent for net in NETWORKS}


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list | tuple):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{key}/{name}")
    elif isinstance(tree, torch.Tensor):
        yield key, tree


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Parameters and what the optimizer keeps of each, from the one file that is left."""
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return dict(leaves({key: checkpoint[key] for key in ("state_dict", "optimizer_states")}))


def furthest(one: Path, two: Path) -> float:
    a, b = state(one), state(two)
    assert a.keys() == b.keys() and len(a) > 10
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def networks_and_strategies() -> list[tuple[str, str]]:
    return [(net, strategy) for net in NETWORKS for strategy in STRATEGIES[4]]


@pytest.mark.parametrize("how", ["", "-on", "-elsewhere"])
@pytest.mark.parametrize(("net", "strategy"), networks_and_strategies())
def test_ranks_end_where_one_process_ends(
    done: Done, alone: dict[str, Path], net: str, strategy: str, how: str
) -> None:
    if strategy not in STRATEGIES[done.ranks]:
        pytest.skip("a grid needs four ranks")
    folder = done.folder(f"{net}-{strategy}{how}")
    assert furthest(folder, alone[net]) < TOLERANCE
    record, expected = Record.read(folder), Record.read(alone[net])
    assert record.quality.keys() == expected.quality.keys() and "test/loss" in record.quality
    for name, value in expected.quality.items():
        # of float32 and rounded once more than in one process, at most
        assert record.quality[name] == pytest.approx(value, rel=1e-6), name
    steps = expected.run.steps_executed
    # steps 11 and 12 are done twice, and the test stops the first 12 before it is counted
    assert record.run.steps_executed == (steps + 1 if how else steps)
    assert record.run.resumed_at_step == ([10] if how else [])
    assert record.compute.flops_total == expected.compute.flops_total
    assert record.size.file_bytes == expected.size.file_bytes


@pytest.mark.parametrize(("net", "strategy"), networks_and_strategies())
def test_a_resume_on_the_same_ranks_is_exact(done: Done, net: str, strategy: str) -> None:
    if strategy not in STRATEGIES[done.ranks]:
        pytest.skip("a grid needs four ranks")
    if strategy == "ddp" and done.ranks > 2:
        pytest.skip("torch's buckets: see strategy.ddp")
    assert furthest(done.folder(f"{net}-{strategy}-on"), done.folder(f"{net}-{strategy}")) == 0.0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor_parallel"])
@pytest.mark.parametrize("net", NETWORKS)
def test_one_process_goes_on_from_several(
    done: Done, alone: dict[str, Path], net: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.home)
    monkeypatch.setenv("FRUGAL_LOG_DIR", str(done.home / "logs"))
    name = f"{net}-{strategy}-alone-{done.ranks}"
    words = ["strategy=single", "trainer.devices=1"]
    case = {"name": name, "words": words, "goes_on_from": str(done.home / "logs" / f"{net}-{strategy}-cut")}
    result = jobs.run_case(case)
    assert result["error"] is None
    (folder,) = result["folders"]
    assert furthest(Path(folder), alone[net]) < TOLERANCE
