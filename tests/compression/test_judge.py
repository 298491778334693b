"""What a network loses is counted sample by sample, and the mean over samples is the run's own figure."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import frugal
from command import TINY
from frugal.compression.judge import Judge, difference
from frugal.errors import RunError

pytest_plugins = ("users_home",)


def test_a_paired_difference_by_hand() -> None:
    one, other = torch.tensor([1.0, 1, 0, 1]), torch.tensor([1.0, 0, 1, 0])
    # differences 0, 1, -1, 1; their squares about 1/4 add up to 2.75
    assert difference(one, other, whole=False) == (0.25, pytest.approx(math.sqrt(2.75 / 4 / 3)))
    assert difference(one, other, whole=True) == (0.25, pytest.approx(math.sqrt(3.75 / 4 / 3)))
    assert difference(one, one, whole=False) == (0.0, 0.0)
    assert difference(one, one, whole=True)[1] == pytest.approx(math.sqrt(1 / 12))  # four alike prove little


@pytest.mark.parametrize(
    ("words", "figure", "sign"),
    [
        (["model=simple_net"], "val/accuracy", 1),
        (["data=diabetes", "trainer.check_val_every_n_epoch=1"], "val/loss", -1),
        (
            ["data=text_file", "data.source.path=book.txt", "data.batch_size=4", "data.block_size=16"]
            + [f"model.network.{word}" for word in ("layers=1", "heads=2", "width=16")],
            "val/loss",
            -1,
        ),
    ],
)
def test_the_mean_over_samples_is_the_figure_of_the_run(
    words: list[str], figure: str, sign: int, home: Path, tmp_path: Path
) -> None:
    (home / "book.txt").write_text("".join(f"Verse {i} of {i * i}.\n" for i in range(400)))
    record = frugal.run([*TINY, *words])
    file = next((tmp_path / "logs" / "default").glob("*/model.safetensors"))
    judge = Judge(words, file)
    assert sign * float(judge.scores(file).mean()) == pytest.approx(record.quality[figure], rel=1e-5)
    assert judge.samples > 10 and judge.drop(file)[0] == 0


def test_without_validation_data_nothing_is_chosen(home: Path) -> None:
    with pytest.raises(RunError, match=r"train it with data\.val_fraction=0\.1"):
        Judge(["model=simple_net", "data.val_fraction=0"], Path("model.safetensors"))
