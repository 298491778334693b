"""The stand-in for `scipy.signal` is gone after the import, and the real module comes when it is asked for."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from frugal.imports import without_scipy_signal
with without_scipy_signal():
    import torchmetrics
assert "scipy.signal" not in sys.modules
import scipy.signal
assert scipy.signal.butter(2, 0.1)[0].shape == (3,)
"""


def test_scipy_signal_is_left_for_later() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
