"""The Pareto plots: quality against train time, file size and latency, side by side in one PNG."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frugal.report.comparable import metric_of
from frugal.report.figures import COSTS, Figure
from frugal.report.group import MISSING, Group, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colors, told apart by color-blind readers too (yellow left out: too pale on white)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
Drawn = Mapping[str, tuple[Figure, Sequence[Group]]]  # set -> the metric it is judged by, its groups
INK, SOFT = "#222222", "#8a8a8a"
MOST_LABELS = 12  # a panel
TITLES = {"time": "Training time", "size": "File size", "latency": "Latency at batch 1, p50"}
# unit and how many of the raw unit (seconds, bytes, milliseconds) it holds, the largest first
UNITS = {
    "time": (("h", 3600.0), ("min", 60.0), ("s", 1.0)),
    "size": (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)),
    "latency": (("s", 1e3), ("ms", 1.0), ("µs", 1e-3)),
}


@dataclass(frozen=True)
class Mark:
    """A point of a panel, in the panel's units."""

    group: Group
    x: float
    y: float
    x_half: float
    y_half: float
    index: int  # of its set
    on_front: bool


def pareto_png(
    sets: Mapping[str, Sequence[Group]], wanted: Figure | None = None, color_by: str | None = None
) -> bytes | None:
    """PNG bytes; None where no group has a quality with a cost. `color_by` is the option that colors tell apart."""
    drawn = {name: (metric, groups) for name, groups in sets.items() if (metric := metric_of(groups, wanted))}
    if not any(
        g.estimate(m) and any(g.estimate(f) for f in COSTS.values()) for m, groups in drawn.values() for g in groups
    ):
        return None
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.parse_math": False,  # a $ in a name is a $
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
        "axes.edgecolor": SOFT,
    }
    with rc_context(style):
        canvas = Canvas(figsize=(15, 5.2), dpi=140, facecolor="white", layout="constrained")
        agg = FigureCanvasAgg(canvas)
        canvas.get_layout_engine().set(w_pad=0.15, h_pad=0.12)  # type: ignore[union-attr,call-arg]
        panels = canvas.subplots(1, len(COSTS))
        colors = _colors([g for _, groups in drawn.values() for g in groups], color_by)
        for name, axes in zip(COSTS, panels, strict=True):
            _panel(axes, name, drawn, colors, color_by)
        _legend(canvas, list(drawn), colors, color_by)
        agg.draw()  # labels are placed by what lies where
        canvas.set_layout_engine("none")
        for name, axes in zip(COSTS, panels, strict=True):
            _label(axes, name, drawn, agg.get_renderer())
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _colors(groups: Sequence[Group], color_by: str | None) -> dict[str, str]:
    """Value of the option -> color; all alike where there is none or it has more values than colors."""
    values = list(dict.fromkeys(group.options.get(color_by, "") for group in groups)) if color_by else []
    return dict(zip(sorted(values), COLORS, strict=False)) if len(values) <= len(COLORS) else {}


def _marks(name: str, drawn: Drawn) -> tuple[list[Mark], str]:
    """All points of a panel, and the unit of its x axis: the largest in which no value is below 1."""
    cost = COSTS[name]
    found = [
        (index, metric, group, x, y)
        for index, (metric, groups) in enumerate(drawn.values())
        for group in groups
        if (x := group.estimate(cost)) is not None and (y := group.estimate(metric)) is not None
    ]
    lowest = min((x.mean for *_, x, _ in found), default=0.0)
    unit, per = next((u for u in UNITS[name] if lowest >= u[1]), UNITS[name][-1])
    marks = []
    for index, metric, group, x, y in found:
        scale = 100.0 if metric.unit == "%" else 1.0
        halves = ((x.half or 0.0) / per, scale * (y.half or 0.0))
        marks.append(Mark(group, x.mean / per, scale * y.mean, *halves, index, name in group.fronts))
    return marks, unit


def _panel(axes: Axes, name: str, drawn: Drawn, colors: Mapping[str, str], color_by: str | None) -> None:
    marks, unit = _marks(name, drawn)
    axes.set_title(TITLES[name], loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    heads = dict.fromkeys(f"{m.title} ({m.unit})" if m.unit else m.title for m, _ in drawn.values())
    axes.set_ylabel(" / ".join(heads))
    if not marks:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not measured", ha="center", color=SOFT, transform=axes.transAxes)
        return
    lowest, highest = min(mark.x for mark in marks), max(mark.x for mark in marks)
    logarithmic = lowest > 0 and highest / lowest > 4
    for index in range(len(drawn)):
        front = sorted((mark.x, mark.y) for mark in marks if mark.index == index and mark.on_front)
        if len(front) > 1:
            xs, ys = [x for x, _ in front], [y for _, y in front]
            axes.plot(xs, ys, color=SOFT, linewidth=1.4, drawstyle="steps-post", zorder=2, alpha=0.8)
    alike: dict[tuple[int, bool, str], list[Mark]] = defaultdict(list)  # a call of errorbar is slow: one for each look
    for mark in marks:
        color = colors.get(mark.group.options.get(color_by or "", ""), COLORS[0])
        alike[mark.index, mark.on_front, color].append(mark)
    for (index, on_front, color), points in alike.items():
        axes.errorbar(
            [mark.x for mark in points],
            [mark.y for mark in points],
            xerr=[[_down(mark, logarithmic) for mark in points], [mark.x_half for mark in points]],
            yerr=[mark.y_half for mark in points],
            linestyle="",
            marker=MARKERS[index % len(MARKERS)],
            markersize=8 if on_front else 5.5,
            color=color,
            markeredgecolor=INK if on_front else "white",
            markeredgewidth=1.1 if on_front else 0.6,
            elinewidth=1,
            ecolor=color + "80",
            capsize=2,
            alpha=1 if on_front else 0.75,
            zorder=4 if on_front else 3,
        )
    axes.set_xlabel(unit)
    if logarithmic:
        _log_axis(axes, lowest, highest)
    else:
        axes.margins(x=0.2)
        axes.ticklabel_format(axis="x", style="plain", useOffset=False)
        axes.locator_params(axis="x", nbins=6)
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    axes.margins(y=0.16)


def _down(mark: Mark, logarithmic: bool) -> float:
    """How far the interval goes down; on a log axis it must not reach zero."""
    return min(mark.x_half, 0.95 * mark.x) if logarithmic else mark.x_half


def _log_axis(axes: Axes, lowest: float, highest: float) -> None:
    """Ticks at 1, 2, 5, or fewer where that would be too many, as plain numbers."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    low, high = math.log10(lowest), math.log10(highest)
    pad = 0.2 * (high - low)
    low, high = low - pad, high + pad
    axes.set_xlim(10**low, 10**high)
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        every = [m * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for m in steps]
        ticks = [tick for tick in every if low <= math.log10(tick) <= high]
        if len(ticks) <= 6:
            break
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _label(axes: Axes, name: str, drawn: Drawn, renderer: Any) -> None:
    """Name the front's points, then others while there is room: each where it covers nothing, or not at all."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    marks, _ = _marks(name, drawn)
    inside = axes.get_window_extent(renderer)
    taken: list[Any] = []
    for mark in marks:
        px, py = axes.transData.transform((mark.x, mark.y))
        (left, low), (right, high) = axes.transData.transform(
            [(mark.x - _down(mark, True), mark.y - mark.y_half), (mark.x + mark.x_half, mark.y + mark.y_half)]
        )
        taken.append(Bbox.from_extents(px - 8, py - 8, px + 8, py + 8))
        taken.append(Bbox.from_extents(px - 2, low, px + 2, high))
        taken.append(Bbox.from_extents(left, py - 2, right, py + 2))
    side = ("left", "right", "center")
    for mark in sorted(marks, key=lambda m: (not m.on_front, -m.y))[:MOST_LABELS]:
        text = axes.annotate(
            _short(_words(mark.group)), (mark.x, mark.y), (0, 0), textcoords="offset pixels", fontsize=8.5
        )
        text.set_color(INK if mark.on_front else "#666666")
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        bar = axes.transData.transform([(mark.x, mark.y), (mark.x, mark.y + mark.y_half)])
        beyond = float(bar[1][1] - bar[0][1]) + 12  # where the interval has ended
        sides = [(13, 7, 0), (13, -24, 0), (-13, 7, 1), (-13, -24, 1)]
        places = [*sides, (0, beyond, 2), (0, -beyond - 16, 2), (-8, beyond, 0), (-8, -beyond - 16, 0)]
        for dx, dy, where in places:
            text.set_position((dx, dy))
            text.set_horizontalalignment(side[where])  # type: ignore[arg-type]
            box = text.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in taken) and inside.x0 <= box.x0 and box.x1 <= inside.x1 + 8:
                taken.append(box)
                break
        else:
            text.remove()


def _words(group: Group) -> str:
    """The group's label without what is not chosen (`quantization=none`)."""
    chosen = {name: value for name, value in group.options.items() if value not in ("none", MISSING)}
    return label(chosen) or group.label


def _short(text: str, limit: int = 34) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _legend(canvas: Any, sets: Sequence[str], colors: Mapping[str, str], color_by: str | None) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=c, marker="o", linestyle="", label=f"{color_by} {_short(v)}") for v, c in colors.items()
    ]
    if len(sets) > 1:
        entries += [
            Line2D(
                [], [], color=SOFT, marker=MARKERS[i % len(MARKERS)], linestyle="", label=f"set {name} (not comparable)"
            )
            for i, name in enumerate(sets)
        ]
    entries.append(Line2D([], [], color=SOFT, marker="o", markeredgecolor=INK, linewidth=1.4, label="Pareto front"))
    canvas.legend(handles=entries, loc="outside lower center", ncols=min(len(entries), 8), frameon=False, fontsize=9)
