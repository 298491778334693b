"""The confusion matrix: read back from a run's file, refused where it is none, drawn for the best run of a report."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frugal.errors import RunError
from frugal.report.confusion import confusion_png, read


def write(path: Path, names: list[str], counts: list[list[int]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["true", *names])
        table.writerows([name, *row] for name, row in zip(names, counts, strict=True))
    return path


def test_names_and_counts_come_back(tmp_path: Path) -> None:
    names, counts = ["good, or so", 'the "bad"'], [[5, 1], [0, 7]]
    assert read(write(tmp_path / "confusion.csv", names, counts)) == (names, counts)


@pytest.mark.parametrize(
    "text",
    ["", "true,a,b\na,1,2\n", "true,a\na,x\n", "true,a,b\na,1\nb,2\n"],
    ids=["empty", "a row", "no number", "ragged"],
)
def test_what_is_no_matrix_is_refused_by_its_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "confusion.csv").write_text(text)
    with pytest.raises(RunError, match=r"confusion\.csv: not a confusion matrix"):
        read(tmp_path / "confusion.csv")


def test_the_diagonal_of_a_good_classifier_is_dark(tmp_path: Path) -> None:
    def darkness(counts: list[list[int]]) -> float:
        png = confusion_png(write(tmp_path / "confusion.csv", ["a", "b"], counts), "run")
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        return float((pixels[:, :, 2] - pixels[:, :, 0] > 60).mean())  # of blue

    # all samples in two of four cells, and in one column only: as much blue; spread evenly: a paler one
    assert darkness([[9, 0], [0, 9]]) == pytest.approx(darkness([[9, 0], [9, 0]]), rel=0.1)
    with Image.open(io.BytesIO(confusion_png(tmp_path / "confusion.csv", "run"))) as image:
        assert min(image.size) > 300


def test_more_classes_than_can_be_named_are_drawn_too(tmp_path: Path) -> None:
    names = [f"class number {i}" for i in range(60)]
    counts = np.eye(60, dtype=int).tolist()
    assert confusion_png(write(tmp_path / "confusion.csv", names, counts), "run").startswith(b"\x89PNG")
