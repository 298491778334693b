"""A sign of life about once a second, so that a resumed run knows how much a kill took away.

A daemon thread writes `{"wall_s": ..., "step": ...}` to a small file (written beside and renamed, not synced: losing
a second in a power cut is no harm). It costs the training loop no hook. A run that ends well removes the file.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

from frugal.measure.ledger import Ledger


class Heartbeat:
    """Writes the ledger's wall time to `path` every `every_s` seconds, from `start` to `stop`.

    `start` reads what an earlier, cut-off process left there and carries it over as lost time, so that a second kill
    forgets nothing; the ledger's `load_state_dict` then moves what the checkpoint saved to its own buckets.
    """

    def __init__(self, path: str | Path, ledger: Ledger, every_s: float = 1.0) -> None:
        self.path = Path(path)
        self.ledger = ledger
        self.every_s = every_s
        self.step: Callable[[], int] = lambda: 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is not None:
            return
        earlier = read_heartbeat(self.path)
        if earlier is not None:
            self.ledger.carry(earlier[0])
        self.beat()
        self._done.clear()
        self._thread = threading.Thread(target=self._run, name="frugal-heartbeat", daemon=True)
        self._thread.start()

    def stop(self, remove: bool = False) -> None:
        """Write once more and end. `remove=True` once the record is written: there is nothing left to lose."""
        if self._thread is not None:
            self._done.set()
            self._thread.join()
            self._thread = None
            self.beat()
        if remove:
            self.path.unlink(missing_ok=True)

    def beat(self) -> None:
        text = json.dumps({"wall_s": round(self.ledger.wall_s(), 3), "step": self.step()})
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            beside.write_text(text)
            os.replace(beside, self.path)
        except OSError:
            # A full disk must not end a training run for the sake of its clock.
            beside.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._done.wait(self.every_s):
            self.beat()


def read_heartbeat(path: str | Path) -> tuple[float, int] | None:
    """Wall seconds and optimizer step of the last sign of life, or None where there is none."""
    try:
        content = json.loads(Path(path).read_text())
        return float(content["wall_s"]), int(content["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
