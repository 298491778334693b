"""Fetching data files: mirrors in turn, checksum verified, whole or not at all; no file of the user's is replaced."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from frugal.errors import DataError

CONNECT_S = 5.0  # a mirror that does not answer within this time is left for the next
STALL_S = 10.0  # so is one that within this time sends nothing, or less than SLOWEST
SLOWEST = 1_000  # bytes/s

Report = Callable[[int, int], None]  # bytes so far, bytes in all (0: unknown)


class Fetched:
    """A source whose files lie in `root`/`folder`: fetched where they are missing, verified whenever they are read.

    `mirrors` are base addresses that are tried in turn; None: `public_mirrors`.
    """

    folder: ClassVar[str]
    checksums: ClassVar[Mapping[str, str]]  # by file name: an md5 or, where none is published, a sha256
    public_mirrors: ClassVar[tuple[str, ...]]
    cut: ClassVar[str] = ""  # how splits are made of the files, where that is not theirs to say

    def __init__(self, root: str, mirrors: list[str] | None = None) -> None:
        self.root = root
        self.mirrors = list(self.public_mirrors) if mirrors is None else list(mirrors)
        self.dropped: Any = {}  # counts by reason; files that are what they should be hold nothing to drop

    def sha256(self) -> str:
        # files are verified whenever they are read, so their checksums are their identity
        listed = " ".join(f"{name}={checksum}" for name, checksum in sorted(self.checksums.items()))
        return hashlib.sha256(" ".join(filter(None, (self.folder, listed, self.cut))).encode()).hexdigest()

    def prepare(self) -> None:
        fetch(self.checksums, Path(self.root).expanduser() / self.folder, self.mirrors)

    def path(self, name: str) -> Path:
        return Path(self.root).expanduser() / self.folder / name

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises DataError."""
        return read_verified(self.path(name), self.checksums[name])


def algorithm(checksum: str) -> str:
    """What made a checksum, told by its length: md5 (32 digits) or sha256 (64)."""
    return {32: "md5", 64: "sha256"}[len(checksum)]


def _digest(checksum: str) -> hashlib._Hash:
    return hashlib.new(algorithm(checksum), usedforsecurity=False)


def read_verified(path: Path, checksum: str) -> bytes:
    """The bytes of `path` if they are what `checksum` says; otherwise a DataError, and the file stays as it is."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {_way_out(path)}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_way_out(path)}") from None
    digest = _digest(checksum)
    digest.update(content)
    if digest.hexdigest() != checksum:
        raise DataError(
            f"{path}: {_altered(checksum, digest.hexdigest(), len(content))}; "
            "delete it and it is fetched anew, or set paths.data_dir (FRUGAL_DATA_DIR) to a folder with the right one"
        )
    return content


def fetch(
    files: Mapping[str, str],
    folder: Path,
    mirrors: Sequence[str],
    connect_s: float = CONNECT_S,
    stall_s: float = STALL_S,
) -> None:
    """Have all of `files` (name: checksum) in `folder`: verify those that are there, fetch the others.

    A mirror is an address that a file's name is put behind. Raises DataError in one line where a file is altered, or
    where no mirror gives what its checksum says.
    """
    for name, checksum in files.items():
        if _there(folder / name):
            read_verified(folder / name, checksum)
    missing = [name for name in files if not _there(folder / name)]
    if not missing:
        return
    with _Bar() as bar:
        for name in missing:
            reasons = []
            for mirror in mirrors:
                try:
                    _fetch_one(mirror, name, files[name], folder, bar.start(name, mirror), connect_s, stall_s)
                    break
                except _MirrorError as error:
                    reasons.append(f"{urlsplit(mirror).netloc}: {error}")
            else:
                tried = "; ".join(reasons) or "there is none to try"
                raise DataError(f"{folder / name}: missing, and no mirror gave it ({tried}); {_way_out(folder / name)}")


class _MirrorError(Exception):
    """Why one mirror did not give a file, in a few words."""


def _fetch_one(
    mirror: str, name: str, checksum: str, folder: Path, report: Report, connect_s: float, stall_s: float
) -> None:
    # pooch writes to a temporary file in `folder`, verifies, then renames it
    import pooch
    import requests

    def download(url: str, output_file: str, _: Any) -> None:
        digest = _digest(checksum)
        size = _stream(url, output_file, digest, report, connect_s, stall_s)
        if digest.hexdigest() != checksum:
            raise _MirrorError(_altered(checksum, digest.hexdigest(), size))

    pooch.get_logger().setLevel("WARNING")
    url = mirror.rstrip("/") + "/" + name
    try:
        pooch.retrieve(
            url, known_hash=f"{algorithm(checksum)}:{checksum}", fname=name, path=folder, downloader=download
        )
        os.chmod(folder / name, 0o644)  # a temporary file is its maker's alone
    except requests.HTTPError as error:
        raise _MirrorError(str(error).split(" for url")[0]) from None
    except requests.Timeout:
        raise _MirrorError("timed out") from None
    except requests.ConnectionError as error:
        raise _MirrorError("timed out" if "timed out" in str(error) else "no connection") from None
    except requests.RequestException as error:
        raise _MirrorError(type(error).__name__) from None
    except OSError as error:  # after requests' own errors, which derive from it
        raise DataError(
            f"{folder}: cannot write {name} there ({error.strerror}); set paths.data_dir (FRUGAL_DATA_DIR)"
        ) from None


def _stream(url: str, output_file: str, digest: hashlib._Hash, report: Report, connect_s: float, stall_s: float) -> int:
    """Write what `url` gives to `output_file` and into `digest`; its size in bytes."""
    import requests
    import urllib3

    size = 0
    # identity: the bytes as stored, since it is their checksum that is known
    headers = {"Accept-Encoding": "identity"}
    with requests.get(url, stream=True, timeout=(connect_s, stall_s), headers=headers) as response:
        response.raise_for_status()
        total = int(response.headers.get("Content-Length", 0))
        # read1 gives what has come, so that a trickle is seen too; `timeout` alone sees only silence
        read = getattr(response.raw, "read1", response.raw.read)
        window, received = time.monotonic(), 0
        with open(output_file, "wb") as file:
            while True:
                try:
                    chunk = read(1 << 16)
                except urllib3.exceptions.TimeoutError:
                    raise _MirrorError("timed out") from None
                except urllib3.exceptions.HTTPError:
                    raise _MirrorError(f"broke off after {size:,} of {total:,} bytes") from None
                if not chunk:
                    break
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                received += len(chunk)
                report(size, total)
                if (elapsed := time.monotonic() - window) > stall_s:
                    if received < SLOWEST * elapsed:
                        raise _MirrorError(f"too slow ({received / elapsed:.0f} bytes/s)")
                    window, received = time.monotonic(), 0
    if size < total:
        raise _MirrorError(f"broke off after {size:,} of {total:,} bytes")
    return size


class _Bar:
    """A progress bar on a terminal; elsewhere a plain line a file."""

    def __enter__(self) -> _Bar:
        self._progress = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._progress = Progress(*columns, console=Console(stderr=True))
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def start(self, name: str, mirror: str) -> Report:
        host = urlsplit(mirror).netloc
        if self._progress is None:
            print(f"fetching {name} from {host}", file=sys.stderr, flush=True)
            return lambda size, total: None
        progress, task = self._progress, self._progress.add_task(f"{name} from {host}", total=None)
        return lambda size, total: progress.update(task, completed=size, total=total or None)


def _altered(checksum: str, found: str, size: int) -> str:
    return f"altered or cut short: expected {algorithm(checksum)} {checksum}, found {found} ({size:,} bytes)"


def _there(path: Path) -> bool:
    return os.path.lexists(path)  # a dangling link is the user's too: named as unreadable, never written over


def _way_out(path: Path) -> str:
    return (
        f"set paths.data_dir or FRUGAL_DATA_DIR to a folder with {path.parent.name}/{path.name}, "
        "or take data=digits, which needs no network"
    )
