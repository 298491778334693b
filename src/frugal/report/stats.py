"""The statistics of a report: 95 % intervals over seeds, differences paired by seed, trimmed means.

Student's t is computed here, exactly for whole degrees of freedom: importing scipy.stats takes longer than a report.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values with the half-width of its interval; None where one value allows no interval."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half


@dataclass(frozen=True)
class Difference(Estimate):
    """The mean of a - b over pairs, with its interval."""

    @property
    def verdict(self) -> str:
        """`within noise` where the interval holds zero, else `higher` or `lower`; one pair says nothing."""
        if self.low is None or self.high is None:
            return "one pair, no interval"
        if self.low <= 0 <= self.high:
            return "within noise"
        return "higher" if self.mean > 0 else "lower"


def t_cdf(t: float, df: int) -> float:
    """P(T <= t) of Student's t with `df` degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    if df < 1:
        raise ValueError(f"degrees of freedom must be 1 or more, not {df}")
    theta = math.atan(t / math.sqrt(df))
    cos2 = math.cos(theta) ** 2
    if df % 2:
        term = total = math.cos(theta) if df > 1 else 0.0
        for k in range(2, df - 1, 2):
            term *= cos2 * k / (k + 1)
            total += term
        inside = 2 / math.pi * (theta + math.sin(theta) * total)
    else:
        term = total = 1.0
        for k in range(1, df - 1, 2):
            term *= cos2 * k / (k + 1)
            total += term
        inside = math.sin(theta) * total
    return 0.5 + inside / 2


@functools.lru_cache(maxsize=256)
def t_quantile(p: float, df: int) -> float:
    """The t that a share `p` (0.5 to 1) of Student's distribution lies below, by bisection."""
    if not 0.5 <= p < 1:
        raise ValueError(f"p must be in [0.5, 1), not {p}")
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate | None:
    """Mean and t-interval of independent values; None where there are none."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return Estimate(mean, t_quantile((1 + level) / 2, n - 1) * deviation / math.sqrt(n), n)


def paired_difference(
    a: Mapping[Hashable, float], b: Mapping[Hashable, float], level: float = LEVEL
) -> Difference | None:
    """a - b over the keys (seeds) that both have; None where they share none."""
    pairs = [a[key] - b[key] for key in a if key in b]
    found = estimate(pairs, level)
    return None if found is None else Difference(found.mean, found.half, found.n)


def trimmed_mean(values: Sequence[float | None]) -> float | None:
    """Time to accuracy over seeds: of five or more the lowest and the highest are dropped, the rest averaged.

    None is a run that never reached the target: the highest of all. Where one is left after dropping, there is no mean.
    """
    ordered = sorted(math.inf if v is None else v for v in values)
    if len(ordered) >= 5:
        ordered = ordered[1:-1]
    if not ordered or ordered[-1] == math.inf:
        return None
    return math.fsum(ordered) / len(ordered)
