"""The files of public data sets in miniature, and what packs them."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile

import numpy as np


def idx(array: np.ndarray) -> bytes:
    """A gzipped idx file of bytes."""
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


def tar_gz(members: dict[str, bytes]) -> bytes:
    """A gzipped tar archive of plain files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            head = tarfile.TarInfo(name)
            head.size = len(content)
            tar.addfile(head, io.BytesIO(content))
    return packed.getvalue()


def cifar_batches(images: int) -> dict[str, bytes]:
    """CIFAR-10's six files with so many images each. Image i of file f is of class (i + f) % 10; its red, green and
    blue are i, f and 255, but the last of each row is 0."""
    folder = "cifar-10-batches-bin"
    files = {f"{folder}/batches.meta.txt": b"airplane\n"}
    for f, name in enumerate([f"data_batch_{f}.bin" for f in (5, 4, 3, 2, 1)] + ["test_batch.bin"]):  # in no order
        rows = np.empty((images, 1 + 3 * 1024), dtype=np.uint8)
        rows[:, 0] = (np.arange(images) + f) % 10
        pixels = rows[:, 1:].reshape(images, 3, 32, 32)
        pixels[:, 0], pixels[:, 1], pixels[:, 2] = np.arange(images)[:, None, None], f, 255
        pixels[:, :, :, -1] = 0
        files[f"{folder}/{name}"] = rows.tobytes()
    return files


def housing(blocks: int) -> dict[str, bytes]:
    """The file of California housing with so many blocks, no two alike; values in dollars go up with the income."""
    draw = np.random.Generator(np.random.PCG64(0))
    columns = [
        draw.uniform(-124, -114, blocks), draw.uniform(32, 42, blocks), draw.integers(1, 52, blocks),
        draw.integers(800, 3000, blocks), draw.integers(100, 600, blocks), draw.integers(300, 4000, blocks),
        draw.integers(50, 500, blocks), draw.uniform(0.5, 15, blocks),
    ]  # fmt: skip
    table = np.stack([*columns, 30_000 * columns[-1]], axis=1)
    text = "".join(",".join(f"{value:.6f}" for value in row) + "\n" for row in table)
    return {"CaliforniaHousing/cal_housing.domain": b"", "CaliforniaHousing/cal_housing.data": text.encode()}
