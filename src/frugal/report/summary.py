"""What `frugal train` prints at the end of one run: quality, speed, memory, size, latency and where the time went."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugal.record import FILE_NAME, Latency, Record
from frugal.report.collect import number
from frugal.report.figures import is_share, train_seconds
from frugal.report.units import ABSENT, duration, one_line, percent, si, significant, size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

BAR = 24  # columns
STYLE = {"completed": "green", "failed": "red", "interrupted": "yellow", "refused": "yellow", "running": "yellow"}


def summary(record: Record, folder: Path) -> RenderableType:
    """A compact table of one record. A figure that is absent shows `–` with the reason from `record.absent`."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text(one_line(record.run.name) or "run", style="bold")
    head.append(f"  {record.status}", style=STYLE.get(record.status, ""))
    if record.run.seed is not None:
        head.append(f", seed {record.run.seed}", style="dim")
    if record.run.resumed:
        steps = ", ".join(map(str, record.run.resumed_at_step))
        head.append(f", resumed {_times(record.run.resumed)}" + (f" at step {steps}" if steps else ""), style="dim")
    parts: list[RenderableType] = [Text(), head]
    if record.error:
        parts.append(Text(one_line(record.error), style="red"))

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in _figures(record):
        grid.add_row(name, Text(value))
    grid.add_row("Latency", _latency(record))
    if record.time.ledger_s:
        grid.add_row("Time", _ledger(record.time.ledger_s))
    parts += [Text(), grid]
    if record.diagnosis:
        parts += [Text(), Text(one_line(record.diagnosis), style="bold")]
    parts += [Text(), Text(f"Record: {Path(folder) / FILE_NAME}")]
    return Group(*parts)


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _figures(record: Record) -> list[tuple[str, str]]:
    """(label, text) of everything but latency and the ledger."""

    def absent(*keys: str) -> str:
        """`–`, with the first reason known for one of these dotted keys or the section that they are in."""
        sections = [key.partition(".")[0] for key in keys]
        reason = next((record.absent[key] for key in (*keys, *sections) if record.absent.get(key)), None)
        return f"{ABSENT} ({one_line(reason)})" if reason else ABSENT

    def shown(value: float | None, text: str, key: str) -> str:
        return absent(key) if value is None else text

    time, speed, memory, sizes, compute = record.time, record.throughput, record.memory, record.size, record.compute
    lines = [("Quality", _quality(record) or absent("quality"))]
    if text := _data(record):
        lines.append(("Data", text))
    spread = ""
    if None not in (speed.samples_per_s_median, speed.samples_per_s_p10, speed.samples_per_s_p90):
        low, middle, high = (
            si(v) for v in (speed.samples_per_s_p10, speed.samples_per_s_median, speed.samples_per_s_p90)
        )
        spread = f" (windows: median {middle}, p10 {low}, p90 {high}; {speed.steps_counted:,} steps counted)"
    tokens = f", {si(speed.tokens_per_s)} tokens/s" if speed.tokens_per_s is not None else ""
    throughput = f"{si(speed.samples_per_s)} samples/s{tokens}{spread}"
    lines.append(("Throughput", shown(speed.samples_per_s, throughput, "throughput.samples_per_s")))

    train = train_seconds(record)
    wall = f"{duration(time.wall_s)} in all" if time.wall_s is not None else f"{absent('time.wall_s')} in all"
    wall += f", {duration(train)} of it training" if train is not None else ""
    wall += f"; target reached after {duration(time.to_target_s)}" if time.to_target_s is not None else ""
    lines.append(("Wall time", wall))

    private, before = memory.peak_private_bytes, memory.private_before_bytes
    peak = f"{size(private)} private at the peak" + (f" ({size(before)} before training)" if before is not None else "")
    peak = shown(private, peak, "memory.peak_private_bytes")
    peak += f", {size(memory.peak_rss_bytes)} resident" if memory.peak_rss_bytes is not None else ""
    if memory.gpu_peak_allocated_bytes is not None:
        peak += f"; GPU {size(memory.gpu_peak_allocated_bytes)} allocated"
        peak += (
            f", {size(memory.gpu_peak_reserved_bytes)} reserved" if memory.gpu_peak_reserved_bytes is not None else ""
        )
    lines.append(("Memory", peak))

    file = shown(sizes.file_bytes, f"{size(sizes.file_bytes)} on disk", "size.file_bytes")
    if sizes.compression_ratio is not None and sizes.compression_ratio > 1.05:  # a header makes a dense file 0.999
        file += f", {significant(sizes.compression_ratio)} times smaller than dense fp32"
    count = "" if sizes.parameters is None else f"{sizes.parameters:,} parameters"
    if sizes.nonzero_parameters not in (None, sizes.parameters):
        count += f" ({sizes.nonzero_parameters:,} not zero)"
    lines.append(("Size", "; ".join(part for part in (file, count) if part)))
    if record.sparsity.prunable:
        overall = f", {percent(record.sparsity.overall)} of all" if record.sparsity.overall is not None else ""
        lines.append(("Sparsity", f"{percent(record.sparsity.prunable)} of prunable weights{overall}"))

    flops = f"{si(compute.flops_per_step, 'FLOP')} a step" if compute.flops_per_step is not None else ""
    flops += f", {si(compute.flops_total, 'FLOP')} in all" if compute.flops_total is not None else ""
    mfu = absent("compute.mfu", "compute.peak_flops")
    if compute.mfu is not None:
        peak_flops = f" of {si(compute.peak_flops, 'FLOP/s')}" if compute.peak_flops is not None else ""
        mfu = f"{percent(compute.mfu, 1)}{peak_flops}" + (
            f" ({one_line(compute.peak_source)})" if compute.peak_source else ""
        )
    lines.append(("Compute", f"{flops.removeprefix(', ') or absent('compute.flops_per_step')}; MFU {mfu}"))

    for name, applied in record.techniques.items():
        said = [f"{key.replace('_', ' ')} {_plain(v)}" for key, v in applied.items() if v not in (None, [], {})]
        lines.append((name.capitalize(), ", ".join(said)))

    joules = record.energy.train_j
    reason = f" ({one_line(record.energy.reason)})" if record.energy.reason else ""
    energy = absent("energy.train_j") if not reason else ABSENT + reason
    lines.append(("Energy", f"{si(joules, 'J')} for training" if joules is not None else energy))
    return lines


def _plain(value: Any) -> str:
    """As people write it: no quotes, four digits of a float."""
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{one_line(key)} {_plain(v)}" for key, v in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, float):
        return significant(value, 4) if math.isfinite(value) else str(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else one_line(str(value))


def _data(record: Record) -> str:
    """Of text: how much of it there is, in which tokens, and what cleaning removed; empty for images."""
    train = _mapping(_mapping(record.data, "splits"), "train")
    if not isinstance(train.get("tokens"), int):
        return ""
    units = ("documents", "texts", "characters")
    parts = [f"{train[unit]:,} {unit}" for unit in units if isinstance(train.get(unit), int)]
    vocabulary = _mapping(record.data, "tokenizer").get("vocabulary")
    of = f" of a vocabulary of {vocabulary:,}" if isinstance(vocabulary, int) else ""
    removed: Counter[str] = Counter()
    for kind in ("cleaning", "dropped", "unknown"):
        for name, value in _leaves(_mapping(record.data, kind), kind):
            removed[name] += value
    also = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in removed.items() if value)
    test = _mapping(_mapping(record.data, "splits"), "test")
    tested = next((f"; {test[unit]:,} {unit} to test on" for unit in ("texts", "tokens") if unit in test), "")
    mended = f"; removed or mended: {also}" if also else ""
    return f"{train['tokens']:,} training tokens{of} ({', '.join(parts)}){tested}{mended}"


def _mapping(node: Any, key: str) -> dict[str, Any]:
    value = node.get(key) if isinstance(node, dict) else None
    return value if isinstance(value, dict) else {}


def _leaves(node: dict[str, Any], key: str) -> Iterator[tuple[str, int]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, name)
        elif isinstance(value, int) and not isinstance(value, bool):
            # `unknown: {train: 3}` counts by split: what is counted is the kind's own name
            yield (key if name in ("train", "val", "test") else name), value


def _quality(record: Record) -> str:
    """Test figures first; then what else there is."""
    known = {name: number(raw) for name, raw in record.quality.items()}
    order = sorted(known, key=lambda name: (not name.startswith("test/"), not name.endswith("accuracy"), name))
    return ", ".join(f"{one_line(name)} {_quality_value(name, known[name])}" for name in order)


def _quality_value(name: str, value: float | None) -> str:
    if value is None:
        return f"{ABSENT} (not finite)"
    return percent(value) if is_share(name) else significant(value, 4)


def _latency(record: Record) -> RenderableType:
    """p50, p90 and p99 in milliseconds, a line a backend and batch size."""
    from rich.table import Table
    from rich.text import Text

    if not record.latency:
        reason = record.absent.get("latency")
        return Text(f"{ABSENT} ({one_line(reason)})" if reason else ABSENT)
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    for _ in range(4):
        grid.add_column(justify="right")
    grid.add_column()
    grid.add_row(*(Text(head, style="dim") for head in ("backend", "batch", "p50 ms", "p90 ms", "p99 ms", "")))
    for row in record.latency:
        figures = (significant(number(v)) for v in (row.p50_ms, row.p90_ms, row.p99_ms))
        grid.add_row(Text(one_line(row.backend)), str(row.batch), *figures, Text(_latency_note(row), style="dim"))
    return grid


def _latency_note(row: Latency) -> str:
    words = [row.status, f"{row.threads} thread{'s' * (row.threads != 1)}"]
    if row.speedup_theoretical is not None:
        words.append(f"{significant(row.speedup_theoretical)} times fewer multiply-adds")
    # measurement.md: a speed-up is claimed for really converted artefacts alone
    if row.speedup_realized is not None and row.status == "converted":
        words.append(f"{significant(row.speedup_realized)} times faster")
    return ", ".join(words)


def _ledger(ledger: dict[str, float]) -> Table:
    """A bar for each bucket that took anything worth a bar, the longest first; the rest in one line."""
    from rich.table import Table
    from rich.text import Text

    known = {name: number(raw) or 0.0 for name, raw in ledger.items()}
    total = sum(known.values())
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(min_width=BAR)
    grid.add_column(justify="right")
    grid.add_column(justify="right")
    ordered = sorted(known.items(), key=lambda item: -item[1])
    large = [(name, s) for name, s in ordered if total and s / total >= 0.005]
    small = sum(s for name, s in ordered if (name, s) not in large)
    longest = large[0][1] if large else 1.0
    for name, seconds in large:
        grid.add_row(
            Text(one_line(name)), _bar(seconds / longest), Text(f"{100 * seconds / total:.0f} %"), duration(seconds)
        )
    if small:
        names = _listing([name for name, s in ordered if s and (name, s) not in large])
        grid.add_row(Text(names, style="dim"), Text(), Text("<1 %"), duration(small))
    return grid


def _listing(names: Sequence[str]) -> str:
    shown = [one_line(name) for name in names]
    return shown[0] if len(shown) == 1 else f"{len(shown)} others"


def _bar(share: float) -> Text:
    """`share` of BAR columns, in eighths of one."""
    from rich.text import Text

    eighths = round(share * BAR * 8)
    full, rest = divmod(eighths, 8)
    return Text("█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else ""), style="cyan")
