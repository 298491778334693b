"""Files of known size out of a .tar.gz in memory: nothing is written to disk, no more is unpacked than is expected."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Mapping

BESIDE = 1 << 20  # bytes that heads and members that are not asked for may take


def read_members(archive: bytes, largest: Mapping[str, int]) -> dict[str, bytes]:
    """The contents of the members named in `largest`, which says how many bytes each may have.

    Raises ValueError where one is missing, comes twice, is no plain file or is larger, and where the archive is cut
    short, no archive, or unpacks to more than all of them and a megabyte.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=_Bounded(archive, sum(largest.values()) + BESIDE), mode="r|", bufsize=1 << 20) as tar:
            for member in tar:
                if member.name not in largest:
                    continue
                if member.name in found:
                    raise ValueError(f"it holds {member.name} twice")
                if not member.isreg():
                    raise ValueError(f"{member.name} in it is not a plain file")
                if member.size > largest[member.name]:
                    raise ValueError(f"{member.name} in it has {member.size:,} bytes")
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    # tarfile follows chains of heads by recursion
    except (tarfile.TarError, EOFError, OSError, zlib.error, RecursionError) as error:
        raise ValueError(str(error)) from None
    for name in largest:
        if name not in found:
            raise ValueError(f"it holds no {name}")
    return found


class _Bounded(io.RawIOBase):
    """What `archive` unpacks to, up to `limit` bytes: where there is more, reading raises a ValueError."""

    def __init__(self, archive: bytes, limit: int) -> None:
        self.file, self.left = gzip.GzipFile(fileobj=io.BytesIO(archive)), limit

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        # a bounded piece at a time, whatever is asked for
        content = self.file.read(min(size if size >= 0 else self.left + 1, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise ValueError("it unpacks to far more than it should")
        return content
