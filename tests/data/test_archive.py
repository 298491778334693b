"""Archives that are cut short, crafted, or unpack to far more than they should."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc

import pytest

from frugal.data.archive import read_members
from public_files import tar_gz

GOOD = {"folder/a.bin": b"a" * 700, "readme": b"not asked for", "folder/b.bin": b"b"}
ASKED = {"folder/a.bin": 700, "folder/b.bin": 9}


def tar_of(*heads: tuple[tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for head, content in heads:
            tar.addfile(head, io.BytesIO(content))
    return packed.getvalue()


def head(name: str, size: int = 0, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def test_what_is_asked_for_is_read_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_members(tar_gz(GOOD), ASKED) == {"folder/a.bin": b"a" * 700, "folder/b.bin": b"b"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (b"", "empty"),
        (b"no archive at all", "[Nn]ot a gzipped|gzip"),
        (gzip.compress(b"x" * 5000), "."),
        (tar_gz(GOOD)[:-40], "."),
        (tar_gz(GOOD)[:80], "."),
        (tar_gz({"folder/a.bin": b"a"}), "holds no folder/b.bin"),
        (tar_gz(GOOD | {"folder/a.bin": b"a" * 701}), "folder/a.bin in it has 701 bytes"),
        (tar_of((head("folder/a.bin"), b""), (head("folder/a.bin"), b"")), "folder/a.bin twice"),
        (tar_of((head("folder/a.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b"")), "not a plain file"),
        (tar_of((head("folder/a.bin", type=tarfile.DIRTYPE), b"")), "not a plain file"),
        (tar_of((head("../folder/a.bin", 1), b"x")), "holds no folder/a.bin"),
        (gzip.compress(head("././@LongLink", type=tarfile.GNUTYPE_LONGNAME).tobuf() * 2000), "recursion"),
    ],
    ids=map(str, range(11)),  # their bytes hold the time: workers of a parallel run must agree on names
)
def test_others_are_refused_with_the_reason(archive, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        read_members(archive, ASKED)
    assert "\n" not in str(caught.value)


def test_an_archive_cut_anywhere_is_refused():
    whole = tar_gz(GOOD)
    for end in range(0, len(whole) - 8, 7):
        with pytest.raises(ValueError):
            read_members(whole[:end], ASKED)


@pytest.mark.parametrize("where", ["a member", "a name"])
def test_a_bomb_takes_no_memory(where):
    zeros = 60 << 20
    if where == "a member":  # that is not asked for
        start = head("zeros", zeros).tobuf()
    else:  # of the form that tar takes for a long name, and reads whole
        start = head("././@LongLink", zeros, type=tarfile.GNUTYPE_LONGNAME).tobuf()
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(15):
            file.write(bytes(4 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="far more"):
            read_members(packed.getvalue(), ASKED)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
