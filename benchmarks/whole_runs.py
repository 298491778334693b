"""What the benchmarks of whole runs share: a `frugal train` in a process of its own, and its training time."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BUCKETS = ("warmup", "train_step", "data_wait", "callbacks", "compile")


def train(words: Sequence[str]) -> dict[str, Any]:
    """The record of `frugal WORDS`, run in a process of its own; leaves with its last line where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "FRUGAL_LOG_DIR": folder},
        )
        records = sorted(Path(folder).glob("**/record.json"))
        if done.returncode != 0 or len(records) != 1:
            last = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise SystemExit(f"{shlex.join(words)} failed: {last[-1]}")
        return json.loads(records[0].read_text())


def training_seconds(record: dict[str, Any]) -> float:
    """Of the ledger, what making the weights took."""
    return sum(record["time"]["ledger_s"][bucket] for bucket in BUCKETS)
