"""The GPU benchmark's program, tried at small sizes where there is no GPU: the others need minutes and data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it compiles five networks
def test_the_gpu_benchmark_checks_and_times_every_side() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--small"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for side in ("fp32", "bf16, checkpointing", "bf16, compiled", "nanoGPT, bf16, compiled", "small_cnn, compiled"):
        assert f"  {side}" in done.stdout
    assert "nanoGPT's model in fp32: 0 of" in done.stdout  # the same function, to the last bit on a CPU


def test_without_a_gpu_it_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "no CUDA device here; --small" in done.stderr
