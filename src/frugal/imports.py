"""Importing Lightning without half a second that nobody asked for."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator


@contextlib.contextmanager
def without_scipy_signal() -> Iterator[None]:
    """Keep torchmetrics (1.9) from importing `scipy.signal`, a fifth of the time it takes to import Lightning.

    It does so only to give that module a name, `hamming`, which a library for speech wants. A stand-in has the name
    already and goes away at the end; whoever imports `scipy.signal` later gets the real one.
    """
    if "scipy.signal" in sys.modules or "torchmetrics" in sys.modules:
        yield
        return
    stand_in = types.ModuleType("scipy.signal")
    stand_in.hamming = None  # type: ignore[attr-defined]
    sys.modules["scipy.signal"] = stand_in
    try:
        yield
    finally:
        if sys.modules.get("scipy.signal") is stand_in:
            del sys.modules["scipy.signal"]
        scipy = sys.modules.get("scipy")
        if scipy is not None and vars(scipy).get("signal") is stand_in:
            del scipy.signal
