"""Fetching against a server on this machine: good, gone, refused, cut short, altered, stalled, trickling."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections import Counter

import pytest

from frugal.data.fetch import fetch
from frugal.errors import DataError

CONTENT = bytes(range(256)) * 800
MD5 = hashlib.md5(CONTENT).hexdigest()
NAME = "file.gz"
REFUSED = "http://127.0.0.1:9/"  # the discard port: nobody listens


class Handler(http.server.BaseHTTPRequestHandler):
    """The first part of the path says what goes wrong."""

    def do_GET(self):
        way, name = self.path.strip("/").split("/")
        self.server.asked[way] += 1
        if way == "gone":
            return self.send_error(404)
        if way == "silent":
            return self.server.release.wait(20)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if way == "good" and name == NAME:
            self.wfile.write(CONTENT)
        elif way == "altered":
            self.wfile.write(CONTENT[:-1] + b"!")
        elif way == "truncated":
            self.wfile.write(CONTENT[:1000])
        elif way == "stalled":
            self.wfile.write(CONTENT[:1000])
            self.server.release.wait(20)
        elif way == "trickle":
            for byte in CONTENT[:200]:
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
        running.url = lambda way: f"http://127.0.0.1:{running.server_port}/{way}/"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
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


@pytest.mark.parametrize("way", ["gone", "altered", "truncated", "stalled", "silent", "trickle", "refused"])
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
