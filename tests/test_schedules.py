"""Schedules, by hand."""

from __future__ import annotations

import math

import pytest

from vi_lab import schedules
from vi_lab.config import check_overrides
from vi_lab.errors import UserError


def test_schedules() -> None:
    assert schedules.Constant(0.7)(10**6) == 0.7
    linear = schedules.Linear(1.0, 0.5, 100)
    assert [linear(0), linear(50), linear(100), linear(200)] == [1.0, 0.75, 0.5, 0.5]
    cosine = schedules.Cosine(1.0, 0.5, 100)
    assert [cosine(0), cosine(100), cosine(101)] == pytest.approx([1.0, 0.5, 0.5])
    assert cosine(50) == pytest.approx(0.75)
    exponential = schedules.Exponential(1.0, rate=1e-3, floor=0.5, interval=500)
    assert exponential(0) == exponential(499) == 1.0  # updated every 500 steps
    assert exponential(500) == exponential(999) == pytest.approx(math.exp(-0.5))
    assert exponential(10**5) == 0.5  # the floor
    step = schedules.Step(1.0, factor=0.5, interval=10, floor=0.2)
    assert [step(0), step(9), step(10), step(20), step(30)] == [1.0, 1.0, 0.5, 0.25, 0.2]
    warm_up = schedules.WarmUp(4, schedules.Linear(2.0, 1.0, 10))
    assert [warm_up(0), warm_up(3), warm_up(4), warm_up(9), warm_up(14)] == [0.5, 2.0, 2.0, 1.5, 1.0]
    warm_up = schedules.WarmUp(4, schedules.Linear(2.0, 1.0, 10), start=0.5)
    assert [warm_up(0), warm_up(2), warm_up(4), warm_up(9)] == [1.0, 1.5, 2.0, 1.5]
    for bad in (
        lambda: schedules.WarmUp(4, start=-0.1),
        lambda: schedules.Constant(-1),
        lambda: schedules.Linear(-0.1, 1.0),
        lambda: schedules.Exponential(rate=-1),
        lambda: schedules.Linear(steps=0),
        lambda: schedules.Exponential(0.3, floor=0.5),  # would run at 0.5
        lambda: schedules.Exponential(0.5, floor=0.5),
        lambda: schedules.Cosine(0.5, 0.5),
        lambda: schedules.Step(1.0, factor=1.0),
        lambda: schedules.Step(1.0, floor=1.0),
        lambda: schedules.WarmUp(0),
    ):
        with pytest.raises(ValueError, match="schedule"):
            bad()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["temperature=0.3", "schedule=exponential"],
            r"floor=0\.5: wanted below the start, temperature=0\.3",
        ),
        (["temperature=0.5", "schedule=cosine"], r"schedule\.end=0\.5: the schedule cannot move from temperature=0\.5"),
    ],
)
def test_a_schedule_that_cannot_move_is_refused_at_once(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_overrides("train", ["estimator=gumbel_softmax", *overrides], False)
