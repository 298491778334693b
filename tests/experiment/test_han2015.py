"""Han et al. 2015, table 2, by the command that the option's file names."""

from __future__ import annotations

from pathlib import Path

import pytest

import frugal
from frugal.compose import compose

pytest_plugins = ("users_home",)
EPOCH = 938  # steps: 60,000 images, 64 a batch


@pytest.mark.parametrize(("experiment", "epochs"), [("han2015", 41), ("han2016", 42)])
def test_rounds_and_restarts_are_after_20_27_and_34_epochs(home: Path, experiment: str, epochs: int) -> None:
    cfg, _ = compose("train", [f"experiment={experiment}"])
    steps = epochs * EPOCH
    assert cfg.trainer.max_epochs == epochs
    restarts = [round(fraction * steps) for fraction in cfg.schedule.restarts]
    assert restarts == [20 * EPOCH, 27 * EPOCH, 34 * EPOCH, 41 * EPOCH][: len(restarts)]
    assert [round(float(at.rstrip("%")) / 100 * steps) for at in cfg.pruning.at] == restarts[:3]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1800)
def test_the_pruned_network_is_as_good_as_the_papers(data_dir: Path, home: Path) -> None:
    if not (data_dir / "mnist").exists():
        pytest.skip("FRUGAL_DATA_DIR holds no mnist/")
    record = frugal.run(["experiment=han2015", "seed=1001", "measure=none"])
    assert record.size.nonzero_parameters == 22_186 and record.size.parameters == 266_610
    assert 100 * (1 - record.quality["test/accuracy"]) == pytest.approx(1.59, abs=0.35)
    assert record.techniques["pruning"]["last_pruned_at"] == 34 * EPOCH
