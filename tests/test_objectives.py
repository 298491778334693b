"""What a search optimizes, read from a record."""

from __future__ import annotations

import math

import pytest

from frugal.errors import SettingsError
from frugal.objectives import NAMES, Objective, reached
from frugal.record import Latency, Record


def record() -> Record:
    made = Record(quality={"val/accuracy": 0.75, "val/loss": 0.5, "val/macro_f1": math.nan})
    made.size.file_bytes, made.memory.peak_private_bytes = 1000, 5_000_000
    made.time.ledger_s = {"startup": 9.0, "train_step": 1.5, "data_wait": 0.5, "validation": 4.0}
    made.latency = [Latency("eager", 1, 1, "dense", 0.25, 0.3, 0.4)]
    return made


def test_names() -> None:
    values = {name: Objective.parse(name).value(record()) for name in NAMES}
    assert values == {
        "accuracy": 0.75, "loss": 0.5, "size": 1000.0, "latency": 0.25, "time": 2.0, "memory": 5e6,
    }  # fmt: skip
    assert [name for name in NAMES if Objective.parse(name).maximize] == ["accuracy"]


def test_reached() -> None:
    assert reached(record(), ["loss"]) == 0.5
    assert reached(record(), ["accuracy", "min size.parameters"]) is None
    assert reached(record(), ["accuracy", "size"]) == [0.75, 1000.0]
    assert reached(record(), ["max val/macro_f1"]) is None  # not a number
    assert reached(record(), ["max val/perplexity"]) is None


@pytest.mark.parametrize("text", ["acuracy", "up val/accuracy", "max", "max size", "max size.byte", "min wall_s"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(SettingsError, match=r"sweep\.objectives"):
        Objective.parse(text)
