"""Figures as text."""

from __future__ import annotations

import pytest

from frugal.report.units import duration, one_line, percent, si, significant, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0412, "0.0412"),
        (12.345, "12.3"),
        (1234.0, "1,230"),
        (9.999, "10.0"),
        (0.0, "0"),
        (-0.5, "-0.500"),
        (None, "–"),
        (float("nan"), "–"),
        (1e-9, "1.00e-09"),
        (999.9, "1,000"),
    ],
)
def test_significant(value: float | None, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (57_234, "", "57.2k"),
        (1.5e9, "FLOP", "1.50 GFLOP"),
        (999, "B", "999 B"),
        (999_700, "B", "1.00 MB"),
        (0, "B", "0 B"),
    ],
)
def test_si(value: float, unit: str, text: str) -> None:
    assert si(value, unit) == text


def test_bytes_go_by_thousands() -> None:
    assert (size(1000), size(1_069_081), size(None)) == ("1.00 kB", "1.07 MB", "–")


def test_percent() -> None:
    assert (percent(0.97526), percent(None), percent(0.5, 0)) == ("97.53 %", "–", "50 %")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.342, "0.342 s"), (12.34, "12.3 s"), (125, "2 min 05 s"), (11_220, "3 h 07 min"), (None, "–")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_one_line_takes_out_breaks_and_terminal_escapes() -> None:
    assert one_line("a\nb\t\x1b[31mc\u2028d  ") == "a b [31mc d"
    assert one_line("abcdef", 4) == "abc…"
