"""The fixture `home`, for test modules that say `pytest_plugins = ("users_home",)`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import command
import project


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's project as the working directory, with an empty folder for logs, `tmp_path / "logs"`, beside it."""
    path = project.make(tmp_path / "home")
    with command.inside(path, tmp_path / "logs", monkeypatch):
        yield path
