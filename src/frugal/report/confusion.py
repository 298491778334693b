"""The confusion matrix of a classifier as a PNG: what it took for what on the test set."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from frugal.errors import RunError

MOST_NAMED = 40  # classes; above, neither names nor counts can be read
MOST_COUNTED = 20
LONGEST = 18  # characters of a class's name


def read(path: Path) -> tuple[list[str], list[list[int]]]:
    """Class names and counts (rows true, columns predicted) from a run's `confusion.csv`. Raises RunError."""
    try:
        (_, *names), *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
        counts = [[int(value) for value in row[1:]] for row in rows]
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not a confusion matrix ({error})") from None
    if not names or any(len(row) != len(names) for row in counts) or len(counts) != len(names):
        raise RunError(f"{path}: not a confusion matrix (it is not square)")
    return names, counts


def confusion_png(path: Path, title: str) -> bytes:
    """PNG bytes: colors are shares of each true class, numbers are samples. Raises RunError."""
    names, counts = read(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    shares = [[value / max(1, sum(row)) for value in row] for row in counts]
    side = min(14.0, max(3.6, 0.55 * len(names)))
    style: dict[Any, Any] = {"font.family": "DejaVu Sans", "font.size": 10, "text.parse_math": False}
    with rc_context(style):
        canvas = Canvas(figsize=(side + 1.8, side + 1.2), dpi=140, facecolor="white", layout="constrained")
        agg = FigureCanvasAgg(canvas)
        axes = canvas.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        canvas.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
        axes.set(xlabel="predicted", ylabel="true", title=title)
        if len(names) <= MOST_NAMED:
            shown = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in names]
            turned: dict[str, Any] = {"rotation": 45, "ha": "right"} if max(map(len, shown)) > 3 else {}
            axes.set_xticks(range(len(names)), shown, **turned)
            axes.set_yticks(range(len(names)), shown)
        if len(names) <= MOST_COUNTED:
            for true, row in enumerate(counts):
                for predicted, value in enumerate(row):
                    color = "white" if shares[true][predicted] > 0.5 else "#222222"
                    axes.text(predicted, true, f"{value:,}", ha="center", va="center", color=color)
        buffer = io.BytesIO()
        agg.print_png(buffer)
    return buffer.getvalue()
