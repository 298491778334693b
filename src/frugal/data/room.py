"""Whether data fit into this machine's memory, asked before they are read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from frugal.errors import DataError

SHARE = 0.5  # of the memory, for data: cutting a validation split takes as much again for a moment
CGROUP = Path("/sys/fs/cgroup/memory.max")  # a container's limit


def memory() -> int | None:
    """Bytes of memory that this process may have at most; None where the system does not say."""
    found = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # it may also say "max"
        found.append(int(CGROUP.read_text()))
    return min(found, default=None)


def refuse_too_large(what: str, size: int, way_out: str) -> None:
    """Raises DataError with the figures where `size` bytes are more than `SHARE` of the memory."""
    there = memory()
    if there is not None and size > SHARE * there:
        raise DataError(
            f"{what}: {size / 1e9:,.1f} GB in memory, and this machine has {there / 1e9:,.1f} GB; {way_out}"
        )
