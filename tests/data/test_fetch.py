"""Fetching against a server on this machine: good, gone, refused, cut short, altered, stalled, trickling."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections import Counter

import pytest

from frugal.data.california_housing import CaliforniaHousing
from frugal.data.cifar10 import CIFAR10
from frugal.data.fetch import fetch
from frugal.errors import DataError
from public_files import cifar_batches, housing, tar_gz

CONTENT = bytes(range(256)) * 800
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()
NAME = "file.gz"
REFUSED = "http://127.0.0.1:9/"  # the discard port: nobody listens


class Handler(http.server.BaseHTTPRequestHandler):
    """The first part of the path says what goes wrong."""

    def do_GET(self):
        way, name = self.path.strip("/").split("/")
        self.server.asked[way] += 1
        if way == "gone":
            return self.send_error(404)
        if way == "forbidden":
            return self.send_error(403)
        if way == "silent":
            return self.server.release.wait(20)
        self.send_response(200)
        content = self.server.files[name]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if way == "good":
            self.wfile.write(content)
        elif way == "altered":
            self.wfile.write(content[:-1] + b"!")
        elif way == "truncated":
            self.wfile.write(content[: min(1000, len(content) // 2)])
        elif way == "stalled":
            self.wfile.write(content[:1000])
            self.server.release.wait(20)
        elif way == "trickle":
            for byte in content[:200]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.server.release.wait(0.1):
                    break

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads, running.handle_error = True, lambda *_: None  # clients hang up on purpose
        running.asked, running.release = Counter(), threading.Event()
        running.files = {NAME: CONTENT}
        running.url = lambda way: f"http://127.0.0.1:{running.server_port}/{way}/"
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.release.set()
        running.shutdown()


def test_a_good_mirror_gives_the_file_and_is_asked_once(server, tmp_path):
    for _ in range(2):
        fetch({NAME: MD5}, tmp_path / "new" / "folder", [server.url("good")])
    assert (tmp_path / "new" / "folder" / NAME).read_bytes() == CONTENT
    assert server.asked["good"] == 1
    assert (tmp_path / "new" / "folder" / NAME).stat().st_mode & 0o777 == 0o644


def test_a_sha256_is_told_by_its_length(server, tmp_path):
    fetch({NAME: SHA256}, tmp_path, [server.url("altered"), server.url("good")])
    assert (tmp_path / NAME).read_bytes() == CONTENT
    (tmp_path / NAME).write_bytes(b"mine")
    with pytest.raises(DataError, match=f"expected sha256 {SHA256}, found {hashlib.sha256(b'mine').hexdigest()}"):
        fetch({NAME: SHA256}, tmp_path, [server.url("good")])
    with pytest.raises(DataError, match=f"expected sha256 {SHA256}, found"):
        fetch({NAME: SHA256}, tmp_path / "new", [server.url("altered")])


def test_behind_a_number_sign_the_name_is_not_sent(server, tmp_path):
    server.files["5976036"] = CONTENT  # a store of numbered files
    fetch({NAME: SHA256}, tmp_path, [server.url("good") + "5976036#"])
    assert (tmp_path / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("original", "members"),
    [(CIFAR10, cifar_batches(3)), (CaliforniaHousing, housing(40))],
    ids=["md5", "sha256"],
)
def test_archives_come_whole_or_not_at_all(server, tmp_path, original, members):
    (name, checksum) = next(iter(original.checksums.items()))
    server.files[name] = tar_gz(members)
    made = hashlib.md5 if len(checksum) == 32 else hashlib.sha256
    fields = {"checksums": {name: made(server.files[name]).hexdigest()}, "batch": 3}
    source = type("Mini", (original,), fields)
    bad = [server.url(way) for way in ("forbidden", "truncated", "altered")]
    with pytest.raises(DataError, match=r"403.*broke off.*altered"):
        source(str(tmp_path), mirrors=bad).prepare()
    assert not list(tmp_path.rglob("*.*gz"))
    source = source(str(tmp_path), mirrors=[*bad, server.url("good")])
    source.prepare()
    assert [path.name for path in (tmp_path / original.folder).iterdir()] == [name]
    assert len(source.load()["train"]) == {CIFAR10: 15, CaliforniaHousing: 32}[original]


@pytest.mark.parametrize(
    "way", ["gone", "forbidden", "altered", "truncated", "stalled", "silent", "trickle", "refused"]
)
def test_after_a_bad_mirror_comes_the_next(server, tmp_path, way):
    first = REFUSED if way == "refused" else server.url(way)
    begin = time.monotonic()
    fetch({NAME: MD5}, tmp_path, [first, server.url("good")], connect_s=1, stall_s=1)
    assert time.monotonic() - begin < 15  # the server would hold on for 20
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.asked["good"] == 1
    assert server.asked[way] == (way != "refused")


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("gone", "404"),
        ("forbidden", "403"),
        ("altered", "altered or cut short: expected md5 " + MD5),
        ("truncated", "broke off after 1,000 of 204,800 bytes"),
        ("stalled", "timed out"),
        ("silent", "timed out"),
        ("trickle", "too slow"),
        ("refused", "no connection"),
    ],
)
def test_no_good_mirror_is_one_line_with_each_reason_and_leaves_nothing(server, tmp_path, way, reason):
    first = REFUSED if way == "refused" else server.url(way)
    with pytest.raises(DataError) as caught:
        fetch({NAME: MD5}, tmp_path, [first, server.url("gone")], connect_s=1, stall_s=1)
    line = str(caught.value)
    assert str(tmp_path / NAME) in line and reason in line and "404" in line and "data=digits" in line
    assert "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_an_altered_file_that_is_there_is_neither_fetched_anew_nor_touched(server, tmp_path):
    (tmp_path / NAME).write_bytes(b"mine")
    with pytest.raises(DataError, match="delete it") as caught:
        fetch({NAME: MD5, "other.gz": MD5}, tmp_path, [server.url("good")])
    assert hashlib.md5(b"mine").hexdigest() in str(caught.value) and MD5 in str(caught.value)
    assert (tmp_path / NAME).read_bytes() == b"mine"
    assert not server.asked


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write") as caught:
        fetch({NAME: MD5}, tmp_path / "file" / "mnist", [server.url("good")])
    assert "paths.data_dir" in str(caught.value)


def test_what_is_fetched_is_said(server, tmp_path, capsys):
    fetch({NAME: MD5}, tmp_path, [server.url("good")])
    assert NAME in capsys.readouterr().err
    fetch({NAME: MD5}, tmp_path, [server.url("good")])
    assert capsys.readouterr().err == ""
