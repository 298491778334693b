"""Han et al. 2016, table 2, by the command that the option's file names."""

from __future__ import annotations

from pathlib import Path

import pytest

import frugal

pytest_plugins = ("users_home",)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1800)
def test_the_file_is_as_small_as_the_papers(data_dir: Path, home: Path, tmp_path: Path) -> None:
    if not (data_dir / "mnist").exists():
        pytest.skip("FRUGAL_DATA_DIR holds no mnist/")
    record = frugal.run(["experiment=han2016", "seed=1001", "measure=none"])
    file = tmp_path / "logs" / "han2016" / record.run.name / "model.frugal"
    assert record.size.file_bytes == file.stat().st_size <= 28_900
    assert record.size.nonzero_parameters <= 22_186  # a shared value may have become zero
    assert 100 * (1 - record.quality["test/accuracy"]) <= 1.73
    assert record.techniques["quantization"]["bits"] == {"layers.1": 6, "layers.3": 6, "layers.5": 6}
