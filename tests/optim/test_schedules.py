"""Schedules: learning rates computed by hand, torch's one-cycle as a reference, and resumes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from frugal.errors import SettingsError
from frugal.optim.schedules import Cosine, OneCycle, RunSchedule, Step, WarmupStableDecay


def optimizer(lr: float = 1.0) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(make: Callable[..., Any], steps: int, lr: float = 1.0, **options: Any) -> list[float]:
    """The learning rate of each optimizer step."""
    used = optimizer(lr)
    schedule = make(used, steps, **options)
    found = []
    for _ in range(steps):
        found.append(used.param_groups[0]["lr"])
        used.step()
        schedule.step()
    return found


def test_cosine_by_hand() -> None:
    found = rates(Cosine, 10, lr=2.0, warmup=0.2, final=0.1)
    assert found[:2] == pytest.approx([2 / 3, 4 / 3])  # one and two thirds of the way up
    assert found[2] == pytest.approx(2.0)
    assert found[6] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))  # half of the cosine's eight steps
    assert found[9] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * 7 / 8)) / 2))
    assert rates(Cosine, 4, warmup=0.0)[0] == 1.0


def test_a_cosine_begins_anew() -> None:
    """Of ten steps one warms up, three and then two rounds of three follow: (1 + cos(pi k / n)) / 2 by hand."""
    third, two_thirds = 0.75, 0.25
    found = rates(Cosine, 10, lr=2.0, warmup=0.1, restarts=[0.4, 0.7])
    assert found == pytest.approx([1.0, *3 * [2.0, 2 * third, 2 * two_thirds]])
    assert rates(Cosine, 4, warmup=0.0, restarts=[0.75])[-1] == pytest.approx(1.0)  # a round of one step
    with pytest.raises(SettingsError, match=r"^schedule\.restarts: 0\.4 does not come after 0\.5$"):
        Cosine(optimizer(), 10, restarts=[0.5, 0.4])


def test_warmup_stable_decay_by_hand() -> None:
    assert rates(WarmupStableDecay, 10, warmup=0.2, decay=0.3) == pytest.approx(
        [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4]
    )
    assert rates(WarmupStableDecay, 5, warmup=0.0, decay=0.6, final=0.2, shape="sqrt") == pytest.approx(
        [1, 1, *(0.2 + 0.8 * (1 - math.sqrt(step / 4)) for step in (1, 2, 3))]
    )


def test_step_by_hand() -> None:
    assert rates(Step, 8, lr=0.5, milestones=[0.5, 0.75], gamma=0.1) == pytest.approx(
        [0.5] * 4 + [0.05] * 2 + [0.005] * 2
    )


def test_one_cycle_by_hand() -> None:
    found = rates(OneCycle, 11, lr=2.0, warmup=5 / 11, div=10, final_div=100)
    assert found[0] == pytest.approx(0.2)
    assert found[2] == pytest.approx((0.2 + 2.0) / 2)  # half-way up
    assert found[4] == pytest.approx(2.0)
    assert found[7] == pytest.approx((2.0 + 0.002) / 2)  # half-way down
    assert found[10] == pytest.approx(0.002)


@pytest.mark.parametrize(("steps", "warmup"), [(7, 0.3), (100, 0.3), (1000, 0.123)])
def test_one_cycle_has_the_rates_of_torch(steps: int, warmup: float) -> None:
    def torchs(used: torch.optim.Optimizer, total_steps: int) -> OneCycleLR:
        return OneCycleLR(used, max_lr=0.5, total_steps=total_steps, pct_start=warmup, cycle_momentum=False)

    assert rates(OneCycle, steps, lr=0.5, warmup=warmup) == pytest.approx(rates(torchs, steps))


SCHEDULES: list[type[RunSchedule]] = [Cosine, OneCycle, Step, WarmupStableDecay]


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
def test_runs_of_any_length_have_rates_from_zero_to_the_peak(make: type[RunSchedule], steps: int) -> None:
    for options in [{}] if make is Step else [{}, {"warmup": 0.0}, {"warmup": 0.25}, {"warmup": 0.8}]:
        assert all(0 <= rate <= 1 for rate in rates(make, steps, **options))


@pytest.mark.parametrize("make", SCHEDULES)
def test_resume_goes_on_with_the_same_rates(make: type[RunSchedule], tmp_path: Path) -> None:
    whole = rates(make, 20, lr=0.3)
    first = optimizer(0.3)
    schedule = make(first, 20)
    for _ in range(7):
        first.step()
        schedule.step()
    torch.save([first.state_dict(), schedule.state_dict()], tmp_path / "state.pt")

    state, position = torch.load(tmp_path / "state.pt", weights_only=True)
    second = optimizer(0.3)
    schedule = make(second, 20)
    second.load_state_dict(state)
    schedule.load_state_dict(position)
    found = []
    for _ in range(13):
        found.append(second.param_groups[0]["lr"])
        second.step()
        schedule.step()
    assert found == whole[7:]


@pytest.mark.parametrize("make", SCHEDULES)
def test_an_extended_run_follows_the_longer_schedule(make: type[RunSchedule]) -> None:
    first = optimizer()
    schedule = make(first, 10)
    for _ in range(10):
        first.step()
        schedule.step()
    second = optimizer()
    longer = make(second, 40)
    second.load_state_dict(first.state_dict())
    longer.load_state_dict(schedule.state_dict())
    whole = rates(make, 40)
    found = []
    for _ in range(30):
        found.append(second.param_groups[0]["lr"])
        second.step()
        longer.step()
    assert found == whole[10:]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Cosine, {"warmup": 1.5}, r"schedule\.warmup=1\.5 must be a fraction"),
        (Cosine, {"final": -0.1}, r"schedule\.final"),
        (OneCycle, {"div": 0.5}, r"schedule\.div"),
        (Step, {"milestones": [2.0]}, r"schedule\.milestones"),
        (WarmupStableDecay, {"warmup": 0.6, "decay": 0.6}, "more than the whole run"),
        (WarmupStableDecay, {"shape": "cubic"}, r"schedule\.shape=cubic is unknown"),
    ],
)
def test_settings_without_meaning_are_refused(make: type[RunSchedule], options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make(optimizer(), 10, **options)
