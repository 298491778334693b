"""Figures as people read them: 57.2k, 312 MB (1 MB = 1,000,000 bytes), 2 min 05 s; and text that is safe to show."""

from __future__ import annotations

import math
import re

ABSENT = "–"


def significant(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits without an exponent: 0.0412, 12.3, 1,234; very small and very large ones with it."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    rounded = round(value, digits - 1 - exponent)
    if rounded and abs(rounded) >= 10 ** (exponent + 1):  # 9.999 rounds to 10.0
        exponent += 1
    if not -5 <= exponent < 12:
        return f"{value:.{digits - 1}e}"
    return f"{rounded:,.{max(0, digits - 1 - exponent)}f}"


def si(value: float | None, unit: str = "", digits: int = 3) -> str:
    """With k, M, G, T, P, E for thousands: `si(57_234)` is 57.2k, `si(1.5e9, "FLOP")` is 1.50 GFLOP."""
    if value is None or not math.isfinite(value):
        return ABSENT
    scaled, prefix = float(value), ""
    for step in ("k", "M", "G", "T", "P", "E"):
        # as shown, 999.6 would be 1,000
        if abs(scaled) < 999.5 if digits == 3 else abs(scaled) < 1000:
            break
        scaled, prefix = scaled / 1000, step
    whole = not prefix and float(scaled).is_integer()
    text = f"{scaled:.0f}" if whole else significant(scaled, digits)
    return f"{text} {prefix}{unit}" if unit else f"{text}{prefix}"


def size(value: float | None) -> str:
    """Bytes as B, kB, MB, GB (thousands)."""
    return si(value, "B")


def percent(value: float | None, digits: int = 2) -> str:
    return ABSENT if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """0.34 s, 12.3 s, 2 min 05 s, 3 h 07 min."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 99.95:
        return f"{significant(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def one_line(text: object, limit: int | None = None) -> str:
    """As one line without control characters (terminal escapes among them) and halves of surrogate pairs (which no
    file takes), cut at `limit` characters."""
    line = re.sub(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", " ", str(text)).strip()
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"
