"""When something happens: as a step, a share of the run or epochs."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from frugal.errors import SettingsError
from frugal.steps import Steps


def trainer(total: float = 1000, batches: float = 7, accumulate: int = 1) -> Any:
    return SimpleNamespace(
        estimated_stepping_batches=total, num_training_batches=batches, accumulate_grad_batches=accumulate
    )


@pytest.mark.parametrize(
    ("value", "step"),
    [(0, 0), (300, 300), ("300", 300),
     ("30%", 300), ("0%", 0), ("100%", 1000), ("12.5%", 125), ("2ep", 14), ("0.5ep", 4)],
)  # fmt: skip
def test_what_a_value_means(value: int | str, step: int) -> None:
    assert Steps.parse(value).resolve(trainer()) == step


def test_an_epoch_has_fewer_steps_where_batches_accumulate() -> None:
    assert Steps.parse("2ep").resolve(trainer(batches=7, accumulate=3)) == 2 * 3


@pytest.mark.parametrize("value", ["30 percent", "-3", -3, "101%", 1.5, "1.5", True, None, "", "ep"])
def test_a_wrong_value_is_named(value: Any) -> None:
    with pytest.raises(SettingsError, match=r"^pruning\.at=") as caught:
        Steps.parse(value, "pruning.at")
    assert "\n" not in str(caught.value)


def test_a_share_needs_an_end() -> None:
    with pytest.raises(SettingsError, match=r"^pruning\.at=30%: .*trainer\.max_epochs"):
        Steps.parse("30%", "pruning.at").resolve(trainer(total=float("inf")))
    with pytest.raises(SettingsError, match=r"^pruning\.at=2ep: "):
        Steps.parse("2ep", "pruning.at").resolve(trainer(batches=float("inf")))
    assert Steps.parse(5).resolve(trainer(total=float("inf"))) == 5


def test_it_reads_as_it_was_written() -> None:
    assert [str(Steps.parse(value)) for value in (300, "30%", "2ep", "0.5ep")] == ["300", "30%", "2ep", "0.5ep"]


def test_no_torch_is_needed() -> None:
    code = "import sys, frugal.steps; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
