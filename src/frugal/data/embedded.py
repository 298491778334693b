"""Data files inside the installed scikit-learn, read without importing it: that would cost a second."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from frugal.errors import DataError


def embedded(name: str, option: str) -> Path:
    """Where scikit-learn's file `name` lies; `option` is what asks for it, for the message of the DataError."""
    found = importlib.util.find_spec("sklearn")
    for folder in (found.submodule_search_locations if found else None) or ():
        path = Path(folder, "datasets", "data", name)
        if path.is_file():
            return path
    raise DataError(f"data={option} reads datasets/data/{name} of scikit-learn: run pip install scikit-learn")
