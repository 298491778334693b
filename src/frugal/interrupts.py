"""How a run is told to stop: Ctrl-C, SIGTERM, and SIGUSR1, by which SLURM gives notice. Torch-free.

Each ends what runs as a KeyboardInterrupt does: a training stops after its step with a checkpoint, the record says
`interrupted`, and the same command goes on later. On SLURM the job is put back into the queue.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

# The last signal that asked this process to stop; None where none did.
last: signal.Signals | None = None


def note(signum: int) -> None:
    global last
    last = signal.Signals(signum)


def reason() -> str:
    """For the record."""
    return "interrupted" if last is None else f"interrupted by {last.name}"


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 raise KeyboardInterrupt as SIGINT does, in the main thread."""
    global last
    last = None
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> Any:
        note(signum)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def requeue() -> str | None:
    """Put this SLURM job back into the queue after SIGUSR1 or SIGTERM; a line that says so, or why not.

    None outside SLURM, after Ctrl-C, and where submitit (`launch=slurm`) does it itself. A job that was cancelled gets
    a SIGTERM too, and stays cancelled.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or last not in (signal.SIGUSR1, signal.SIGTERM) or "SUBMITIT_EXECUTOR" in os.environ:
        return None
    try:
        if "JobState=CANCELLED" in _scontrol("show", "job", job):
            return None
        _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        return f"scontrol requeue {job} failed: {said[0] if said else error}"
    return f"queued again as SLURM job {job}"


def _scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60, check=True).stdout


def requeued() -> bool:
    """Whether SLURM started this job before: then the same command goes on where it was cut off."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
