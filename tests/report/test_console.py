"""What is said, on terminals and elsewhere, and in the run's log."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frugal import console
from frugal.errors import RunError


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Terminal]]:
    """Makes stdout a terminal when it is called: before the test itself runs pytest would put its own stream back."""

    def make(encoding: str = "utf-8") -> Terminal:
        stream = Terminal(encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console._console.cache_clear()
    yield make
    console._console.cache_clear()


@pytest.fixture(autouse=True)
def no_log() -> Iterator[None]:
    yield
    console.set_log(None)


def wide_table() -> object:
    from rich.table import Table

    table = Table("name", "value", title="a table")
    table.add_row("[red]n[/red]" and "n" * 500, "1 ± 2")
    return table


def test_text_is_printed_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("[red]not markup[/red] :smile: " + "x" * 500)
    assert capsys.readouterr().out == "[red]not markup[/red] :smile: " + "x" * 500 + "\n"


def test_no_row_is_cut_and_no_color_is_written_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    console.say(wide_table())  # type: ignore[arg-type]
    console.say("styled", style="red")
    out = capsys.readouterr().out
    assert any("n" * 500 in line and "1 ± 2" in line for line in out.splitlines())
    assert "\x1b" not in out and "…" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_a_rule_is_no_wider_than_a_page() -> None:
    from rich.rule import Rule

    assert len(console.plain(Rule("x"))) <= 80


def test_a_terminal_has_color_unless_no_color_is_set(
    terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = terminal()
    console.say("hello", style="red")
    assert "\x1b[31m" in stream.text()
    monkeypatch.setenv("NO_COLOR", "1")
    before = len(stream.text())
    console.say("hello", style="red")
    assert stream.text()[before:] == "hello\n"


def test_an_ascii_terminal_gets_signs_that_it_has(
    monkeypatch: pytest.MonkeyPatch, terminal: Callable[..., Terminal]
) -> None:
    stream = terminal("ascii")
    console.say("★ 97.5 ± 0.3 – µs → 中")
    assert stream.text() == "* 97.5 +-0.3 - us > ?\n"
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", plain)
    console.say(wide_table())  # type: ignore[arg-type]
    assert "+-2" in plain.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]


def test_translation_keeps_columns() -> None:
    assert all(len(str(to) if isinstance(to, str) else chr(to)) == 1 for to in console._ASCII.values())


def test_the_log_has_plain_text_and_is_appended(tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    stream, file = terminal(), tmp_path / "run.log"
    console.set_log(file)
    console.say("first", style="red")
    console.set_log(None)
    console.say("not logged")
    console.set_log(file)
    console.say(wide_table())  # type: ignore[arg-type]
    console.log("for the log alone")
    text = file.read_text()  # before it is closed: a kill loses nothing
    assert text.startswith("first\n") and "n" * 500 in text and "\x1b" not in text and "not logged" not in text
    assert text.endswith("for the log alone\n") and "for the log alone" not in stream.text()


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="log file cannot be written"):
        console.set_log(tmp_path / "missing" / "run.log")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_ends_the_log_and_not_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_log("/dev/full")
    console.say("one")
    console.say("two")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "one" and out[1].startswith("log file closed") and out[2] == "two"


def test_progress_off_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress("jobs", total=100) as bar:
        for _ in range(100):
            now[0] += 0.5
            bar.advance()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "jobs: 4/100, 4% after 2 s"
    assert lines[-1] == "jobs: 100/100, 100% after 50 s"
    assert len(lines) == 6  # at 2, 12, 22, 32, 42 and 50 s


def test_the_last_line_is_not_said_twice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress("one", total=1) as bar:
        now[0] = 3.0
        bar.advance()
    assert capsys.readouterr().out == "one: 1/1, 100% after 3 s\n"


def test_what_is_over_at_once_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("quick", total=3) as bar:
        bar.advance(3)
    assert capsys.readouterr().out == ""


def test_a_bar_is_what_a_download_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress("file.gz", unit="B") as bar:  # as pooch's HTTPDownloader does it
        bar.total = 9_912_422
        now[0] = 3.0
        bar.update(5_000_000)
        bar.reset()
        bar.update(9_912_422)
        bar.close()
    assert capsys.readouterr().out.splitlines()[0] == "file.gz: 5.0 / 9.9 MB, 50% after 3 s"


def test_bars_on_a_terminal_nest_and_go_away(terminal: Callable[..., Terminal]) -> None:
    stream = terminal()
    with console.progress("[outer]", total=2) as outer:
        outer.advance()
        with console.progress("inner", total=4) as inner:
            inner.advance(2)
            assert console._live is not None
            console._live.refresh()
            console.say("a line between")
        assert console._live is not None and len(console._live.tasks) == 1
    assert console._live is None
    text = stream.text()
    assert "[outer]" in text and "inner" in text and "a line between" in text


def test_a_bar_goes_away_when_the_work_fails(terminal: Callable[..., Terminal]) -> None:
    terminal()
    with pytest.raises(ZeroDivisionError), console.progress("x", total=1):
        raise ZeroDivisionError
    assert console._live is None


@pytest.mark.parametrize(
    ("room", "shown"),
    [(80, "epoch 3/10  loss 0.21  9,000/s"), (29, "epoch 3/10  loss 0.21"), (20, "epoch 3/10"), (6, "epoch…")],
)
def test_a_description_is_shortened_by_whole_parts(room: int, shown: str) -> None:
    assert console.fit("epoch 3/10  loss 0.21  9,000/s", room) == shown


IN_A_TERMINAL = """
import time
from frugal import console

try:
    with console.progress("epoch 59/2000  loss 0.00243  val/accuracy 0.9861  134,415/s", 42_000, "steps") as bar:
        for _ in range(200):
            bar.advance(100)
            time.sleep(0.1)
except KeyboardInterrupt:
    console.say("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_bar_fits_80_columns_and_ctrl_c_takes_it_away() -> None:
    import fcntl
    import pty
    import struct
    import subprocess
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path)}

    def in_front() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job, as the tests may be, ignores Ctrl-C

    child = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        preexec_fn=in_front,
    )
    os.close(theirs)
    output, pressed = b"", False
    try:
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not read:
                break
            output += read
            if not pressed and output.count(b"steps") >= 3:
                os.write(ours, b"\x03")
                pressed = True
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    before, _, after = output.decode().partition("^C")
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", before)]
    bars = [line.rstrip() for line in plain if "steps" in line]
    assert len(bars) >= 3 and max(map(len, bars)) <= 77, "there is room for ^C"
    assert all("val/accuracy 0.9861" in line and "/42,000 steps" in line and "…" not in line for line in bars)
    assert "\x1b[2K" in after and "\x1b[?25h" in after, "the bar is wiped, the cursor is back"
    assert re.split(r"[\r\n]+", after.rstrip())[-1] == "interrupted"
