"""The Pareto set on points small enough to judge by eye, and against the definition on random ones."""

from __future__ import annotations

import random

from frugal.report.pareto import pareto


def test_by_hand() -> None:
    points = [(0.99, 10.0), (0.98, 5.0), (0.97, 6.0), (0.90, 1.0), (0.99, 11.0)]
    assert pareto(points) == [True, True, False, True, False]


def test_equal_points_are_in_it_together() -> None:
    assert pareto([(0.9, 1.0), (0.9, 1.0), (0.9, 2.0)]) == [True, True, False]


def test_ties_in_one_thing_are_decided_by_the_other() -> None:
    assert pareto([(0.9, 3.0, 1.0), (0.9, 3.0, 2.0), (0.8, 3.0, 1.0)]) == [True, False, False]


def test_three_costs_keep_what_wins_in_one() -> None:
    assert pareto([(0.9, 1.0, 9.0), (0.9, 9.0, 1.0), (0.9, 9.0, 9.0)]) == [True, True, False]


def test_without_quality_or_any_cost_there_is_no_place() -> None:
    assert pareto([(None, 1.0), (0.9, None), (0.8, 2.0)]) == [False, False, True]


def test_a_missing_cost_never_beats_a_measured_one() -> None:
    assert pareto([(0.9, 1.0, None), (0.9, 1.0, 5.0)]) == [False, True]
    # it may still win by what was measured
    assert pareto([(0.95, 1.0, None), (0.9, 1.0, 5.0)]) == [True, True]


def test_nothing_and_one() -> None:
    assert pareto([]) == []
    assert pareto([(0.1, 5.0)]) == [True]


def test_nan_is_no_figure() -> None:
    assert pareto([(float("nan"), 1.0), (0.5, float("nan")), (0.4, 1.0)]) == [False, False, True]


def test_is_the_definition_on_random_points_with_many_ties() -> None:
    draw = random.Random(0)
    for _ in range(50):
        points = [tuple(float(draw.randrange(4)) for _ in range(3)) for _ in range(30)]

        def beaten(p: tuple[float, ...], points: list[tuple[float, ...]] = points) -> bool:
            return any(q[0] >= p[0] and q[1] <= p[1] and q[2] <= p[2] and q != p for q in points)

        assert pareto(points) == [not beaten(point) for point in points]
