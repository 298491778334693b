"""What Frugal says: to the terminal, as plain lines where there is none, and to the log file of the open run.

What is given as `str` is printed as it stands: `[red]` in a run's name is a name, never markup.
Imports rich when first used.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from frugal.errors import RunError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID
    from rich.table import Table

# One column for one column, so that tables stay aligned where the output cannot show these.
_ASCII: dict[int, str | int] = {
    **str.maketrans("★–—−·×→…µ≥≤█", "*---.x>.u><#"),
    **dict.fromkeys(map(ord, "▏▎▍▌▋▊▉"), " "),
    **dict.fromkeys(map(ord, "─━╴╶"), "-"),
    **dict.fromkeys(map(ord, "│┃"), "|"),
    **dict.fromkeys(map(ord, "┼╇┏┓└┘├┤┴┬╭╮╰╯┌┐┡┩"), "+"),
}
_UNBOUNDED = 1_000_000  # columns; wide enough that nothing is wrapped or cut
_PLAIN_EVERY_S = 10.0  # between two plain progress lines
_PLAIN_AFTER_S = 2.0  # what ends sooner prints none

_log: TextIO | None = None


def is_terminal() -> bool:
    """Whether stdout can be redrawn. Asked of the stream itself: FORCE_COLOR does not make a terminal of a file."""
    try:
        return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    except ValueError:  # closed
        return False


def console() -> Console:
    """The Console for stdout: one while the output stays what it is."""
    return _console(is_terminal(), os.environ.get("NO_COLOR", "") != "")


@functools.lru_cache(maxsize=4)
def _console(terminal: bool, no_color: bool) -> Console:
    from rich.console import Console

    if terminal:
        return Console(no_color=no_color, highlight=False)
    return Console(force_terminal=False, color_system=None, no_color=True, highlight=False, width=_UNBOUNDED)


def say(message: RenderableType = "", style: str | None = None) -> None:
    """Print `message` (text or a rich renderable) to stdout, and its plain text to the log file of the open run."""
    if is_terminal():
        from rich.text import Text

        shown = Text(message, style=style or "") if isinstance(message, str) else message
        target = console()
        if _is_utf8(target.encoding):
            target.print(shown, soft_wrap=isinstance(message, str))
        else:
            with target.capture() as capture:
                target.print(shown, soft_wrap=isinstance(message, str))
            _write(capture.get())
    else:
        _write(plain(message) + "\n")
    log(message)


def plain(message: RenderableType) -> str:
    """`message` as plain text: no color codes, no row wrapped or cut however long, no blanks at the ends of lines."""
    if isinstance(message, str):
        return message
    from rich.console import Console
    from rich.measure import Measurement

    buffer = io.StringIO()
    wide = Console(
        file=buffer, force_terminal=False, color_system=None, no_color=True, highlight=False, width=_UNBOUNDED
    )
    # A rule or an expanded panel fills whatever width there is: give it what the contents need.
    needed = Measurement.get(wide, wide.options, message).maximum
    wide.print(message, width=min(max(needed, 80), _UNBOUNDED), crop=False, overflow="ignore")
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip("\n").split("\n"))


def set_log(path: Path | str | None) -> None:
    """Also write what is said to `path` (appended to, made where it is missing); None closes the log that is open."""
    global _log
    if _log is not None:
        with contextlib.suppress(OSError):
            _log.close()
        _log = None
    if path is not None:
        try:
            # line-buffered: what was said before a kill is on disk
            _log = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        except OSError as error:
            raise RunError(f"{path}: log file cannot be written ({error.strerror})") from None


def log(message: RenderableType) -> None:
    """Write to the log file of the open run alone. A disk that is full ends the log, not the run."""
    if _log is None:
        return
    try:
        _log.write(plain(message) + "\n")
    except (OSError, ValueError) as error:
        set_log(None)
        _write(f"log file closed: {error}\n")


def _write(text: str) -> None:
    try:
        file = console().file
        encoding = getattr(file, "encoding", None) or "utf-8"
        file.write(for_encoding(text, encoding))
        file.flush()
    except BrokenPipeError:  # `frugal report | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def for_encoding(text: str, encoding: str) -> str:
    """`text` in signs that `encoding` has: signs of the same width, then `?`."""
    if _is_utf8(encoding):
        return text
    text = text.replace("± ", "+-").translate(_ASCII)
    return text.encode(encoding, errors="replace").decode(encoding)


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("_", "-").startswith(("utf-8", "utf8"))


# --------------------------------------------------------------------------------------------------------- progress
class Bar:
    """One line of progress. Also what pooch takes as `progressbar`: `total` is set, then `update`, `reset`, `close`."""

    def __init__(self, description: str, total: float | None, unit: str, live: Progress | None) -> None:
        self.description = description
        self.unit = unit
        self.done = 0.0
        self._total = total
        self._live = live
        self._task: TaskID | None = live.add_task(description, total=total, amount="") if live else None
        self._started = time.monotonic()
        self._said = self._started
        self._wrote: float | None = None  # how much was done at the last plain line

    @property
    def total(self) -> float | None:
        return self._total

    @total.setter
    def total(self, value: float | None) -> None:
        self._total = value or None
        if self._live and self._task is not None:
            self._live.update(self._task, total=self._total)

    def advance(self, amount: float = 1, description: str | None = None) -> None:
        """Count `amount` as done; `description` replaces what stands before the bar."""
        self.done += amount
        self.description = self.description if description is None else description
        if self._live and self._task is not None:
            self._live.update(self._task, completed=self.done, description=self.description, amount=self._amount())
        elif time.monotonic() - self._said >= (_PLAIN_AFTER_S if self._wrote is None else _PLAIN_EVERY_S):
            self._line()

    def update(self, amount: float) -> None:
        self.advance(amount)

    def reset(self) -> None:
        self.done = 0.0

    def close(self) -> None:
        """Nothing to free: the context manager takes the bar away."""

    def _amount(self) -> str:
        if self.unit == "B":
            of = f" / {self._total / 1e6:,.1f}" if self._total else ""
            return f"{self.done / 1e6:,.1f}{of} MB"
        of = f"/{self._total:,.0f}" if self._total else ""
        return f"{self.done:,.0f}{of}{' ' + self.unit if self.unit else ''}"

    def _line(self) -> None:
        share = f", {self.done / self._total:.0%}" if self._total else ""
        elapsed = time.monotonic() - self._started
        say(f"{self.description}: {self._amount()}{share} after {elapsed:.0f} s")
        self._said, self._wrote = time.monotonic(), self.done

    def _finish(self) -> None:
        if self._live and self._task is not None:
            self._live.remove_task(self._task)
        elif self._wrote not in (None, self.done):
            self._line()


_live: Progress | None = None


@contextlib.contextmanager
def progress(description: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
    """A bar for what takes longer than two seconds: `with progress("jobs", 12) as bar: ... bar.advance()`.

    `unit="B"` counts bytes. On a terminal a rich bar that goes away when done (a bar inside another adds a line to it);
    elsewhere a plain line after two seconds, then every ten, and one at the end.
    """
    global _live
    if not is_terminal():
        bar = Bar(description, total, unit, None)
        yield bar
        bar._finish()
        return
    owner = _live is None
    drawn: Bar | None = None
    try:  # from here on, a Ctrl-C at any moment leaves a terminal without a bar
        if _live is None:
            _live = _new_live()
            _live.start()
        drawn = Bar(description, total, unit, _live)
        yield drawn
    finally:
        try:
            if drawn is not None:
                drawn._finish()
        finally:
            if owner and _live is not None:
                live, _live = _live, None
                live.stop()


_MARGIN = 3  # columns left free, where a terminal shows ^C: on a full line it would wrap, and leave the bar behind
_CLOCK = 8  # columns of a time, the blank before it included


def _new_live() -> Progress:
    """A rich Progress whose lines are never cut: what they have no room for is left out, the bar and times first."""
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Description(ProgressColumn):
        room = _UNBOUNDED

        def render(self, task: Task) -> Text:
            return Text(fit(task.description, self.room), no_wrap=True)

    target = console()
    description, amount = Description(), TextColumn("{task.fields[amount]}", markup=False)
    remaining, elapsed = TimeRemainingColumn(), TimeElapsedColumn()
    bars = {width: BarColumn(bar_width=width) for width in (20, 10)}

    class Fitted(Progress):
        def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
            tasks = list(tasks)
            counted = max((len(str(task.fields["amount"])) + 1 for task in tasks), default=0)
            described = max((len(task.description) for task in tasks), default=0)
            width = target.width - _MARGIN
            description.room = max(1, width - counted)
            free = width - counted - described
            times: list[ProgressColumn] = [remaining] if free >= _CLOCK else []
            bar = [bars[n] for n in bars if free >= _CLOCK + n + 1][:1]
            times = [elapsed, remaining] if bar and free >= 2 * _CLOCK + (bar[0].bar_width or 0) + 1 else times
            self.columns = (description, *bar, amount, *times)
            return super().make_tasks_table(tasks)

    # a slow refresh: the bar's thread takes time from what it counts
    return Fitted(description, amount, console=target, transient=True, refresh_per_second=4)


def fit(description: str, room: int) -> str:
    """`epoch 3/10  loss 0.21  9,000/s` in `room` columns: whole parts, the last ones left out first."""
    while len(description) > room and "  " in description:
        description = description.rpartition("  ")[0].rstrip()
    return description if len(description) <= room else description[: room - 1] + "…"
