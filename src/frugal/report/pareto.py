"""The Pareto set: what nothing else beats in one thing without losing in another."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = Sequence[float | None]  # quality first (more is better), then costs (less is better)


def pareto(points: Sequence[Point]) -> list[bool]:
    """For each point (quality, cost, cost, ...) whether it is in the Pareto set.

    Equal points are in it together. Without a quality, or with none of the costs, a point is not in it. A single
    missing cost claims nothing: it counts as worse than any figure, so that it never beats a point that was measured.
    """
    filled = [_filled(point) for point in points]
    member = [False] * len(points)
    candidates = [i for i, point in enumerate(filled) if point is not None]
    # Best quality first and, among equals, lowest costs first: whatever beats a point stands before it.
    candidates.sort(key=lambda i: filled[i] or ())
    front: list[tuple[float, ...]] = []
    for i in candidates:
        point = filled[i]
        assert point is not None
        if not any(_beats(other, point) for other in front):
            member[i] = True
            front.append(point)
    return member


def _filled(point: Point) -> tuple[float, ...] | None:
    """All to be minimized: minus the quality, then the costs."""
    quality, *costs = (None if v is None or math.isnan(v) else float(v) for v in point)
    if quality is None or (costs and all(cost is None for cost in costs)):
        return None
    return (-quality, *(math.inf if cost is None else cost for cost in costs))


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
