"""Energy from a power zone made up of files, and the reasons where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from frugal.measure import Energy
from frugal.measure.energy import CounterError, RaplCounter


def zone(folder: Path, number: str, name: str, microjoules: int, wraps_at: int = 1_000_000_000) -> Path:
    path = folder / f"intel-rapl:{number}"
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


class Burns(pl.Callback):
    """Adds a Joule to the counter with every batch."""

    def __init__(self, counter: Path) -> None:
        self.counter = counter

    def on_train_batch_start(self, *_: Any) -> None:
        self.counter.write_text(f"{int(self.counter.read_text()) + 1_000_000}\n")


def test_joules_of_the_steps_after_warmup(fit: Callable[..., Any], tmp_path: Path) -> None:
    counter = zone(tmp_path, "0", "package-0", 5)
    meter = Energy(warmup_steps=2, rapl_dir=str(tmp_path))
    fit([meter, Burns(counter)], epochs=1, batches=20)
    assert meter.figures().train_j == pytest.approx(18.0)
    assert meter.absent == {}


def test_counters_wrap_and_packages_are_summed_without_their_parts(tmp_path: Path) -> None:
    first = zone(tmp_path, "0", "package-0", 900, wraps_at=1000)
    second = zone(tmp_path, "1", "package-1", 0)
    zone(tmp_path, "0:0", "core", 0).write_text("777")
    platform = zone(tmp_path, "2", "psys", 0)
    counter = RaplCounter(tmp_path)
    first.write_text("100")
    second.write_text("50")
    platform.write_text("5000")
    assert counter() == pytest.approx(250e-6)
    first.write_text("150")
    assert counter() == pytest.approx(300e-6)
    counter.close()


def test_no_zones_or_no_permission_is_a_reason(fit: Callable[..., Any], tmp_path: Path) -> None:
    meter = Energy(rapl_dir=str(tmp_path / "nothing"))
    fit([meter], epochs=1)
    assert meter.figures().train_j is None
    assert "no power zones" in meter.figures().reason
    assert meter.absent["energy.train_j"] == meter.figures().reason
    zone(tmp_path, "0", "package-0", 5).unlink()
    with pytest.raises(CounterError, match="not readable"):
        RaplCounter(tmp_path)


def test_a_resumed_run_adds_up(fit: Callable[..., Any], tmp_path: Path) -> None:
    counter = zone(tmp_path, "0", "package-0", 5)
    meter = Energy(warmup_steps=0, rapl_dir=str(tmp_path))
    meter.load_state_dict({"train_j": 100.0})
    fit([meter, Burns(counter)], epochs=1, batches=5)
    assert meter.figures().train_j == pytest.approx(105.0)
    assert meter.state_dict()["train_j"] == pytest.approx(105.0)


def test_before_any_training_there_is_a_reason() -> None:
    assert Energy().figures().reason == "no training was measured"
