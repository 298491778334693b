"""`metrics.csv`: what is in it after new metrics, kills and resumes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from frugal.errors import RunError
from frugal.loggers.csv import CSVMetrics


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_in_the_file_when_the_call_returns(tmp_path: Path) -> None:
    logger = CSVMetrics(str(tmp_path / "run"))
    logger.log_metrics({"epoch": 0, "train/loss_step": 0.5, "lr": 0.1}, step=49)
    assert (tmp_path / "run" / "metrics.csv").read_text() == "step,epoch,train/loss_step,lr\n49,0,0.5,0.1\n"


def test_values_read_back_as_the_same_numbers(tmp_path: Path) -> None:
    logger = CSVMetrics(str(tmp_path))
    values = {"a": 1 / 3, "b": torch.tensor(0.1), "c": float("nan"), "d": 7, "e": torch.tensor(1e-30)}
    logger.log_metrics(values, step=0)
    (row,) = table(tmp_path)
    assert float(row["a"]) == 1 / 3
    assert float(row["b"]) == torch.tensor(0.1).item()
    assert row["c"] == "nan"
    assert row["d"] == "7"
    assert float(row["e"]) == torch.tensor(1e-30).item()


def test_new_metrics_become_columns_and_same_steps_share_a_row(tmp_path: Path) -> None:
    logger = CSVMetrics(str(tmp_path))
    logger.log_metrics({"epoch": 0, "loss": 2.0}, step=0)
    logger.log_metrics({"epoch": 0, "loss": 1.0}, step=1)
    logger.log_metrics({"epoch": 0, "val/loss": 3.0}, step=1)
    logger.log_metrics({"epoch": 1, "loss": 0.5, "odd, name": 4.0}, step=2)
    assert table(tmp_path) == [
        {"step": "0", "epoch": "0", "loss": "2.0", "val/loss": "", "odd, name": ""},
        {"step": "1", "epoch": "0", "loss": "1.0", "val/loss": "3.0", "odd, name": ""},
        {"step": "2", "epoch": "1", "loss": "0.5", "val/loss": "", "odd, name": "4.0"},
    ]


def test_a_shorter_value_for_the_same_step_leaves_no_rest_behind(tmp_path: Path) -> None:
    logger = CSVMetrics(str(tmp_path))
    logger.log_metrics({"loss": 0.123456789}, step=0)
    logger.log_metrics({"loss": 1}, step=0)
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,loss\n0,,1\n"


def test_resume_drops_what_comes_again(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        logger = CSVMetrics(str(folder))
        for step in range(100):
            logger.log_metrics({"epoch": step // 10, "loss": 1 / (step + 1)}, step=step)
            if step % 10 == 9:
                logger.log_metrics({"epoch": step // 10, "val/loss": 2 / step}, step=step)
    logger = CSVMetrics(str(cut))
    logger.resume_at(40)
    assert [row["step"] for row in table(cut)] == [str(step) for step in range(40)]
    for step in range(40, 100):
        logger.log_metrics({"epoch": step // 10, "loss": 1 / (step + 1)}, step=step)
        if step % 10 == 9:
            logger.log_metrics({"epoch": step // 10, "val/loss": 2 / step}, step=step)
    assert (cut / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_resume_drops_the_test_of_a_finished_run(tmp_path: Path) -> None:
    logger = CSVMetrics(str(tmp_path))
    for step in range(3):
        logger.log_metrics({"loss": 1.0}, step=step)
    logger.log_metrics({"test/accuracy": 0.9}, step=0)  # a Trainer of its own counts from 0
    logger.resume_at(3)
    assert [(row["step"], row["test/accuracy"]) for row in table(tmp_path)] == [("0", ""), ("1", ""), ("2", "")]


def test_reading_gives_the_steps_below_as_numbers(tmp_path: Path) -> None:
    assert CSVMetrics(str(tmp_path)).read(3) == []
    (tmp_path / "metrics.csv").write_text("step,epoch,loss,val/loss\n0,0,0.5,\n1,0,,2.0\n2,1,0.25,\n0,,,9.0\n3,1,0.")
    rows = CSVMetrics(str(tmp_path)).read(3)
    assert rows == [
        {"step": 0, "epoch": 0, "loss": 0.5},
        {"step": 1, "epoch": 0, "val/loss": 2.0},
        {"step": 2, "epoch": 1, "loss": 0.25},
    ]
    assert CSVMetrics(str(tmp_path)).read(1) == rows[:1]


def test_without_resume_an_existing_file_is_continued(tmp_path: Path) -> None:
    CSVMetrics(str(tmp_path)).log_metrics({"loss": 1.0}, step=5)
    CSVMetrics(str(tmp_path)).log_metrics({"test/accuracy": 0.5}, step=0)
    assert [(row["step"], row["loss"], row["test/accuracy"]) for row in table(tmp_path)] == [
        ("5", "1.0", ""),
        ("0", "", "0.5"),
    ]


def test_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    logger = CSVMetrics(str(tmp_path))
    logger.resume_at(0)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    logger.finalize("success")
    logger.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.csv", "precious.txt"]


@pytest.mark.parametrize("tail", ["2,0", "2,0,0.2", "2,0,0.25\n3,", ""])
def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,loss\n0,0,1.0\n1,0,0.5\n" + tail)
    logger = CSVMetrics(str(tmp_path))
    logger.log_metrics({"loss": 0.1}, step=9)
    complete = ["0", "1", "2", "9"] if "\n" in tail else ["0", "1", "9"]
    assert [row["step"] for row in table(tmp_path)] == complete


def test_no_row_is_lost_to_a_kill(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from frugal.loggers.csv import CSVMetrics\n"
        "logger = CSVMetrics(sys.argv[1])\n"
        "for step in range(57): logger.log_metrics({'loss': step / 2, f'at/{step // 20}': 1}, step=step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=os.environ | {"PYTHONPATH": source})
    assert done.returncode == -signal.SIGKILL
    assert [float(row["loss"]) for row in table(tmp_path)] == [step / 2 for step in range(57)]


def test_a_foreign_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("name,price\nbread,2\n")
    with pytest.raises(RunError, match=r"metrics\.csv: not a table"):
        CSVMetrics(str(tmp_path)).log_metrics({"loss": 1.0}, step=0)
    assert path.read_text() == "name,price\nbread,2\n"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written") as caught:
        CSVMetrics(str(tmp_path / "file" / "run")).log_metrics({"loss": 1.0}, step=0)
    assert "\n" not in str(caught.value)
