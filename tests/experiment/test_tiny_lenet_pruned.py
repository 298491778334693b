"""The smallest LeNet-300-100 of pruning, quantization-aware training and coding, by the command of its file."""

from __future__ import annotations

from pathlib import Path

import pytest

import frugal

pytest_plugins = ("users_home",)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1800)
def test_it_is_150_times_smaller(data_dir: Path, home: Path, tmp_path: Path) -> None:
    if not (data_dir / "mnist").exists():
        pytest.skip("FRUGAL_DATA_DIR holds no mnist/")
    record = frugal.run(["experiment=tiny_lenet_pruned", "seed=1001", "measure=none"])
    file = tmp_path / "logs" / "tiny_lenet_pruned" / record.run.name / "model.frugal"
    assert record.size.file_bytes == file.stat().st_size <= 1_066_440 // 150
    assert 100 * (1 - record.quality["test/accuracy"]) <= 1.64
