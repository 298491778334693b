"""Intervals, paired differences and trimmed means against values worked out by hand or printed in tables."""

from __future__ import annotations

import math

import pytest

from frugal.report.stats import estimate, paired_difference, t_cdf, t_quantile, trimmed_mean


@pytest.mark.parametrize(
    ("df", "t"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423), (500, 1.9647)],
)
def test_t_quantile_is_the_printed_table(df: int, t: float) -> None:
    assert t_quantile(0.975, df) == pytest.approx(t, abs=1e-4)


def test_t_agrees_with_scipy() -> None:
    from scipy.stats import t as student

    for df in (1, 2, 3, 5, 8, 13, 40, 301):
        assert t_quantile(0.975, df) == pytest.approx(student.ppf(0.975, df), rel=1e-9)
        assert t_cdf(-0.7, df) == pytest.approx(student.cdf(-0.7, df), rel=1e-9)


def test_t_refuses_what_it_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="degrees of freedom"):
        t_cdf(1.0, 0)
    with pytest.raises(ValueError, match="p must be"):
        t_quantile(1.0, 3)


def test_interval_by_hand() -> None:
    # mean 2, standard deviation 1, standard error 1/sqrt(3), t(2) = 4.302653
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None and found.half is not None
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)
    assert found.low == pytest.approx(2 - found.half) and found.high == pytest.approx(2 + found.half)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    found = estimate([0.5])
    assert found is not None and (found.mean, found.half, found.low, found.high) == (0.5, None, None, None)
    assert estimate([]) is None


def test_equal_values_have_an_interval_of_zero() -> None:
    found = estimate([0.25, 0.25, 0.25])
    assert found is not None and found.half == 0.0


def test_pairing_sees_what_the_spread_over_seeds_hides() -> None:
    base = {0: 0.90, 1: 0.94, 2: 0.98}
    better = {seed: value + 0.01 for seed, value in base.items()}
    found = paired_difference(better, base)
    assert found is not None and found.mean == pytest.approx(0.01) and found.verdict == "higher"
    found = paired_difference(base, better)
    assert found is not None and found.verdict == "lower"


def test_a_difference_that_straddles_zero_is_noise() -> None:
    # differences +0.01, -0.01, +0.005: mean 0.00167, half-width 0.0259
    found = paired_difference({0: 0.91, 1: 0.93, 2: 0.985}, {0: 0.90, 1: 0.94, 2: 0.98})
    assert (
        found is not None and found.mean == pytest.approx(0.005 / 3) and found.half == pytest.approx(0.02586, abs=1e-4)
    )
    assert found.verdict == "within noise"


def test_only_shared_seeds_are_paired() -> None:
    found = paired_difference({0: 1.0, 7: 9.0}, {0: 0.5, 8: 1.0})
    assert found is not None and (found.mean, found.n, found.verdict) == (0.5, 1, "one pair, no interval")
    assert paired_difference({1: 1.0}, {2: 1.0}) is None


def test_trimmed_mean_drops_both_ends_of_five_or_more() -> None:
    assert trimmed_mean([10.0, 1.0, 2.0, 3.0, 100.0]) == 5.0  # of 2, 3 and 10
    assert trimmed_mean([1.0, 2.0, 3.0, 10.0]) == 4.0  # four: all count
    assert trimmed_mean([]) is None


def test_a_run_that_never_reached_the_target_is_the_slowest() -> None:
    assert trimmed_mean([None, 1.0, 2.0, 3.0, 4.0]) == 3.0  # it and 1 are dropped
    assert trimmed_mean([None, None, 1.0, 2.0, 3.0]) is None
    assert trimmed_mean([None, 1.0]) is None
