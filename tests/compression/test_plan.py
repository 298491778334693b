"""Which way is tried next, on figures made up by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from frugal.compression.plan import EFFORTS, Move, Outcome, Plan, Targets, Way, best, ways

TEN = Way("ten", lambda ratio: (f"quantization=rate{ratio:.4g}",), 5, 100, trains=1.0)
FAST = Way("fast", lambda ratio: (f"pruning=structured{ratio:.4g}",), 1.5, 25, trains=1.0, faster=math.sqrt)


def plan(targets: Targets, *known: Way, latency_ms: float | None = None) -> Plan:
    return Plan(targets, 100_000, latency_ms, list(known) or ways(None))


def test_settings_of_a_strength() -> None:
    by_name = {way.name: way for way in ways(54_000)}
    # 0.234 ln 2 / 54,000 is 3.0e-6; four times as strong is eight times as dear
    assert by_name["rate"].words(135)[1] == "quantization.bits_weight=3e-06"
    assert by_name["rate"].words(4 * 135)[1] == "quantization.bits_weight=2.4e-05"
    assert ways(540_000)[4].words(135)[1] == "quantization.bits_weight=3e-07"  # ten times the samples
    assert by_name["pruned"].words(4.31 / 0.08**0.85)[1] == "pruning.density=0.08"
    assert by_name["shrunk"].words(4.0)[1] == "pruning.density=0.5" and by_name["shrunk"].faster(4.0) == 2.0
    assert by_name["shrunk, int8 by ONNX Runtime"].words(3.9 * 4)[1] == "pruning.density=0.5"
    assert by_name["weight_int8"].groups() == {"quantization": "weight_int8"}


def test_what_needs_no_training_comes_first_and_then_the_mildest_that_is_expected_to_do() -> None:
    first = plan(Targets(bytes=25_000, max_drop=0.01)).next()
    assert first is not None and first.way.name == "weight_int8" and first.effort == 0
    first = plan(Targets(bytes=2_000, max_drop=0.01)).next()  # 50 times: aimed at with room
    assert first is not None and first.way.name == "rate" and first.ratio == pytest.approx(55) and first.effort == 1


def test_a_file_too_large_is_tried_again_as_much_stronger_as_it_missed() -> None:
    asked = plan(Targets(bytes=5_000, max_drop=0.01), TEN)  # 20 times
    move = asked.next()
    assert move == Move(TEN, pytest.approx(22), 1.0)
    asked.outcomes.append(Outcome(move, bytes=10_000, drop=0.0, error=0.001))  # 10 times where 22 were expected
    assert asked.next() == Move(TEN, pytest.approx(22 * 22 / 10), 1.0)


def test_what_lost_too_much_is_tried_milder_and_then_longer() -> None:
    asked = plan(Targets(bytes=5_000, max_drop=0.01), TEN)
    asked.outcomes.append(Outcome(Move(TEN, 22.0, 1.0), bytes=2_000, drop=0.02, error=0.001))  # 50 times where 20 do
    milder = asked.next()
    assert milder == Move(TEN, pytest.approx(22 * 22 / 50), 1.0)
    asked.outcomes.append(Outcome(milder, bytes=4_545, drop=0.012, error=0.001))
    longer = asked.next()
    assert longer == Move(TEN, milder.ratio, 2.0)
    asked.outcomes.append(Outcome(longer, bytes=4_545, drop=0.009, error=0.002))  # meets it, within the noise
    assert asked.outcomes[-1].missed(asked.targets) == {} and not asked.outcomes[-1].sure(asked.targets)
    assert asked.next() == Move(TEN, milder.ratio, 4.0)
    asked.outcomes.append(Outcome(Move(TEN, milder.ratio, 4.0), bytes=4_545, drop=0.0, error=0.002))
    assert asked.outcomes[-1].sure(asked.targets) and asked.next() is None


def test_a_way_that_cannot_be_gone_gives_way_to_another() -> None:
    asked = plan(Targets(bytes=20_000, max_drop=0.01), TEN, replace(TEN, name="other"))
    asked.outcomes.append(Outcome(Move(TEN, 5.5, 1.0)))
    move = asked.next()
    assert move is not None and move.way.name == "other"
    asked.outcomes.append(Outcome(move, bytes=19_000, drop=0.5, error=0.01))  # fifty times too much: hopeless
    assert asked.next() is None


def test_a_latency_is_reached_by_what_makes_it_faster() -> None:
    asked = plan(Targets(latency_ms=0.25, max_drop=0.01), TEN, FAST, latency_ms=1.0)
    move = asked.next()
    assert move is not None and move.way is FAST and math.sqrt(move.ratio) == pytest.approx(4.4, rel=1e-3)
    asked.outcomes.append(Outcome(move, bytes=9_000, latency_ms=0.25 * 1.1, drop=0.0, error=0.001))
    again = asked.next()  # 3.64 times faster where 4.4 were expected
    assert again is not None and math.sqrt(again.ratio) == pytest.approx(min(5.0, 4.4 * 4.4 / 3.636), rel=1e-2)
    wanted = plan(Targets(latency_ms=2.0, max_drop=0.01), TEN, latency_ms=1.0).next()  # as it is already
    assert wanted is not None and wanted.way is TEN and wanted.ratio == 5


def test_the_impossible_is_tried_once_as_far_as_it_goes() -> None:
    asked = plan(Targets(bytes=10, max_drop=0.0))
    move = asked.next()
    assert move is not None and move.way.name == "rate" and move.ratio == 600
    asked.outcomes.append(Outcome(move, bytes=300, drop=0.5, error=0.01))
    assert asked.next() is None
    assert best(asked.outcomes, asked.targets) is asked.outcomes[0]


def test_of_a_drop_alone_the_smallest_file_is_searched_in_halves() -> None:
    asked = plan(Targets(max_drop=0.01), TEN)
    strengths = []
    for drop in (0.0, 0.0, 0.1, 0.0):
        move = asked.next()
        assert move is not None and move.effort == EFFORTS[0]
        strengths.append(move.ratio)
        asked.outcomes.append(Outcome(move, bytes=round(100_000 / move.ratio), drop=drop, error=0.001))
    assert strengths == [30, 60, 100, pytest.approx(math.sqrt(60 * 100))]
    assert best(asked.outcomes, asked.targets) is asked.outcomes[-1]


def test_what_is_best() -> None:
    targets = Targets(bytes=5_000, max_drop=0.01)
    move = Move(TEN, 20.0, 1.0)
    large = Outcome(move, bytes=6_000, drop=0.0, error=0.001)  # 1.2 times too large
    lossy = Outcome(move, bytes=4_000, drop=0.02, error=0.001)  # twice too much
    unsure = Outcome(move, bytes=4_000, drop=-0.001, error=0.02)
    sure = Outcome(move, bytes=4_900, drop=0.002, error=0.001)
    failed = Outcome(move)
    assert large.missed(targets) == {"bytes": 1.2} and lossy.missed(targets) == {"max_drop": 2.0}
    assert best([failed, lossy, large], targets) is large
    assert best([large, unsure], targets) is unsure
    assert best([large, unsure, sure], targets) is sure
    smaller = replace(sure, bytes=4_800, drop=0.003)
    assert best([sure, smaller], targets) is sure  # a size was asked for: what loses least
    assert best([sure, smaller], Targets(max_drop=0.01)) is smaller
    assert best([failed], targets) is None
    assert Outcome(move, bytes=1, drop=math.nan, error=0.0).missed(targets) == {"max_drop": math.inf}


def test_noise_counts_nine_times_in_ten() -> None:
    targets = Targets(max_drop=0.01)
    assert Outcome(Move(TEN, 5.0), bytes=1, drop=0.0, error=0.0078).sure(targets)  # 1.2816 of these are 0.0099965
    assert not Outcome(Move(TEN, 5.0), bytes=1, drop=0.0, error=0.0079).sure(targets)
