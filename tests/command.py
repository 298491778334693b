"""Frugal's command line called inside the test's own process, in a made-up project: a call costs what the work costs.

The fixture `home` is in `users_home.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from frugal import cli

# One training batch, nothing measured: what most tests need of a run.
TINY = ("measure=none", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.threads=1")


@dataclass
class Outcome:
    """What `frugal WORDS` did: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that an error may be; fails where there are more, or none."""
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("frugal: "), self.err
        assert self.code != 0
        return lines[0]


def frugal(*words: str) -> Outcome:
    """Call `frugal WORDS` in this process. Logging, arguments and Hydra's state are as before afterwards."""
    from hydra.core.global_hydra import GlobalHydra

    out, err = io.StringIO(), io.StringIO()
    root, own, argv = logging.getLogger(), logging.getLogger("frugal"), sys.argv
    handlers, level = (list(root.handlers), list(own.handlers)), own.level
    GlobalHydra.instance().clear()
    sys.argv = ["frugal"]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as leaving:
            cli.main(list(words))
    finally:
        sys.argv = argv
        root.handlers[:], own.handlers[:] = handlers
        own.setLevel(level)
        logging.captureWarnings(False)
        GlobalHydra.instance().clear()
    assert isinstance(leaving.value.code, int)
    return Outcome(leaving.value.code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def inside(path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in `path` as a process of its own would: nothing of another test's project is remembered."""
    monkeypatch.chdir(path)
    monkeypatch.setenv("FRUGAL_LOG_DIR", str(logs))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it for good; here it is taken back
    monkeypatch.setattr(sys, "path", list(sys.path))
    forget()
    yield
    forget()


def forget() -> None:
    """Drop what this process remembers of a project: its packages and whatever was computed once."""
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    for module in [module for name, module in sys.modules.items() if re.fullmatch(r"frugal\.\w+", name)]:
        for computed_once in [value for value in vars(module).values() if hasattr(value, "cache_clear")]:
            computed_once.cache_clear()


def runs(logs: Path, experiment: str = "default") -> list[Path]:
    """The folders of runs, by name."""
    return sorted(path.parent for path in (logs / experiment).glob("*/record.json"))


def snapshot(*folders: Path) -> dict[str, str]:
    """Every file (with its bytes' hash) and folder below `folders`: two are equal when nothing changed."""
    found = {}
    for path in (path for folder in folders if folder.exists() for path in folder.rglob("*")):
        if "__pycache__" not in path.parts:
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


# --------------------------------------------------------------------------- what a child of project.start does first
KILLED_AT = 3  # steps


def die_in_training() -> None:
    """SIGKILL itself before the fourth step."""
    _at_step(KILLED_AT, lambda: os.kill(os.getpid(), signal.SIGKILL))


def wait_in_training() -> None:
    """Stop before the fourth step, say so by the file `waiting` among the logs, and go on when there is a file `go`."""
    _at_step(KILLED_AT, _wait)


def _wait() -> None:
    logs = Path(os.environ["FRUGAL_LOG_DIR"])
    (logs / "waiting").touch()
    while not (logs / "go").exists():
        time.sleep(0.02)


def _at_step(step: int, action: Callable[[], None]) -> None:
    from frugal.callbacks.exact import ExactRandomness

    original = ExactRandomness.on_train_batch_start

    def acting(self, trainer, *rest):  # type: ignore[no-untyped-def]
        if trainer.global_step == step:
            action()
        original(self, trainer, *rest)

    ExactRandomness.on_train_batch_start = acting  # type: ignore[method-assign]


def until(path: Path, timeout: float = 60) -> None:
    """Wait until `path` is there."""
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)
