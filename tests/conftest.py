"""What every test may count on: one thread, fixed seeds, logs in a folder of its own, no network, no key for W&B."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path

import pytest

# Before torch is imported: two tests side by side on a small machine must not fight for its cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A developer's own key must never take test runs online; tests of the online path bring a server of their own.
for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
    os.environ.pop(variable, None)
os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", NETRC=os.devnull)

MARKED_MODULES = {
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "pandas"),
    "torchao": ("torchao",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, modules in MARKED_MODULES.items():
        if item.get_closest_marker(marker):
            absent = [name for name in modules if importlib.util.find_spec(name) is None]
            if absent:
                pytest.skip(f"{', '.join(absent)} not installed: pip install 'frugal-ml[{marker}]'")
    if item.get_closest_marker("data") and not os.environ.get("FRUGAL_DATA_DIR"):
        pytest.skip("FRUGAL_DATA_DIR does not name a folder with the public data sets")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def _own_logs_and_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRUGAL_LOG_DIR", str(tmp_path / "logs"))
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def data_dir() -> Path:
    """The folder of the public data sets."""
    folder = os.environ.get("FRUGAL_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FRUGAL_DATA_DIR does not name a folder with the public data sets")
    return Path(folder)


@pytest.fixture
def repository() -> Path:
    """The checkout that the tests lie in."""
    return Path(__file__).parents[1]
