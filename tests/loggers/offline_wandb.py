"""Reads a W&B offline run back. Its format is private to W&B, so this serves tests only."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any


def offline_records(folder: Path) -> list[Any]:
    """The records of the one offline run in `folder`, once W&B's service has written the last, the run's exit."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    last = time.monotonic() + 10
    records = parse(path.read_bytes())
    while not any(r.WhichOneof("record_type") == "exit" for r in records) and time.monotonic() < last:
        time.sleep(0.01)
        records = parse(path.read_bytes())
    return records


def parse(data: bytes) -> list[Any]:
    """Records in LevelDB's log framing, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as messages

    position, part, records = 7, b"", []
    while position < len(data):
        left = 32_768 - position % 32_768
        if left < 7:
            position += left
            continue
        if len(data) - position < 7:
            break
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + length > len(data):  # still being written
            break
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(messages.Record.FromString(part))
            part = b""
    return records


def items(updates: Any) -> dict[str, Any]:
    return {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in updates}
