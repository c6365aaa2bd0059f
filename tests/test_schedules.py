"""Schedules of the temperature, by hand."""

from __future__ import annotations

import math

import pytest

from vi_lab import schedules


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
    for bad in (
        lambda: schedules.Constant(0),
        lambda: schedules.Exponential(rate=-1),
        lambda: schedules.Linear(steps=0),
    ):
        with pytest.raises(ValueError, match="schedule"):
            bad()
