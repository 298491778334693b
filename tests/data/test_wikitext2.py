"""WikiText-2: fetched from a server on this machine, cut into articles, refused where it is not what it should be."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import threading
import zipfile

import pytest

from frugal.data.wikitext2 import ARCHIVE, MEMBERS, WikiText2, articles
from frugal.errors import DataError

FIRST = " \n = Robert Boulter = \n \n Robert is an actor . \n \n = = Career = = \n \n He had a guest role . \n \n"
SECOND = " = Du Fu = \n \n Du Fu was a poet = a great one = \n \n"
TEXT = FIRST + SECOND


def archive(members: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members.items():
            file.writestr(name, text)
    return content.getvalue()


def mini(content: bytes):
    class Mini(WikiText2):
        checksums = {ARCHIVE: hashlib.md5(content).hexdigest()}

    return Mini


@pytest.fixture
def server(tmp_path):
    """The address of a folder, and the folder."""
    folder = tmp_path / "server"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()


def test_it_is_fetched_once_and_gives_its_own_three_splits(server, tmp_path):
    address, folder = server
    content = archive({MEMBERS["train"]: TEXT, MEMBERS["val"]: SECOND, MEMBERS["test"]: FIRST})
    (folder / ARCHIVE).write_bytes(content)
    source = mini(content)(str(tmp_path / "data"), mirrors=["http://127.0.0.1:9/", address])
    source.prepare()
    (folder / ARCHIVE).unlink()
    source.prepare()
    assert source.splits == ("train", "val", "test")
    assert [piece.text for piece in source.documents("train")] == [FIRST, SECOND]
    assert [piece.text for piece in source.documents("val")] == [SECOND]
    assert all(piece.last for piece in source.documents("test"))


@pytest.mark.parametrize(
    "content", [b"not a zip", archive({"other": TEXT}), archive({MEMBERS["test"]: "x"})], ids=["no zip", "other", "one"]
)
def test_another_archive_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / ARCHIVE).write_bytes(content)
    with pytest.raises(DataError, match="not the archive of WikiText-2") as caught:
        list(mini(content)(str(tmp_path), mirrors=[]).documents("train"))
    assert ARCHIVE in str(caught.value) and "\n" not in str(caught.value)


def test_only_titles_between_blank_lines_begin_an_article():
    lines = [" \n", " = One = \n", " \n", " text \n", " = not a title = \n", " \n", " = = Section = = \n", " = x \n"]
    assert [piece.text for piece in articles(iter(lines))] == ["".join(lines)]
    assert [piece.text for piece in articles(iter([*lines, " \n", *lines[1:]]))] == [
        "".join(lines) + " \n",
        "".join(lines[1:]),
    ]
    assert list(articles(iter([" \n", " \n"]))) == []
