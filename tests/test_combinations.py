"""What docs/combinations.md says works together is run, what it says is refused is asked for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import frugal
from frugal.errors import RefusedError
from frugal.record import Record

DOCS = Path(__file__).parents[1] / "docs"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("combinations", DOCS / "combinations.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAID = load()
TINY = [
    "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=4", "trainer.limit_val_batches=1",
    "measure=none", "logger=none", "trainer.threads=1", "data=pydocs", "data.batch_size=8", "data.block_size=16",
    "data.eval_batch_size=8", "model=gpt", "model.network.layers=1", "model.network.heads=2", "model.network.width=32",
]  # fmt: skip


def test_the_page_is_what_the_rules_say() -> None:
    page = SAID.page()
    assert SAID.PAGE.read_text() == page, "run `make docs` and commit docs/combinations.md"
    assert page.count("| – (") >= 1 and page.count("– (") >= 18 and page.count(" yes |") >= 45


@pytest.mark.parametrize(
    "pair",
    [
        ("precision=fp16", "strategy=fsdp"), ("precision=fp8", "strategy=tensor_parallel"),
        ("strategy=fsdp_tp", "compile=default"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_refused_says_why(pair: tuple[str, str]) -> None:
    with pytest.raises(RefusedError, match=r"cannot be combined with .*: .*choose "):
        frugal.run([*TINY, *SAID.words(*pair)])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("pair", [p for p in SAID.combinations() if not SAID.NEEDS_CUDA & set(p)], ids=" ".join)
def test_what_works_runs(pair: tuple[str, str], tmp_path: Path) -> None:
    if SAID.refusal(*pair) is not None:
        pytest.skip("the rules refuse it")
    words = [*TINY, *SAID.words(*pair), f"paths.log_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "frugal", "train", "-m", *words, "seed=0,1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    records = [Record.read(path) for path in tmp_path.glob("default/*/record.json")]
    assert [record.status for record in records] == ["completed"] * 2
    for word in pair:
        group, _, option = word.partition("=")
        assert group == "launch" or records[0].config["choices"][group] == option
