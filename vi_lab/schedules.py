"""Schedules: pure functions from the optimizer step to a value, which hold no counter. One vocabulary for the
temperature, the weight of the KL and the learning rate.

Exponential decay with a floor and an update interval is Jang et al. 2017, section 4 (arXiv 1611.01144).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Callable[[int], float]


def _positive(schedule: object, *names: str) -> None:
    for name in names:
        if not getattr(schedule, name) > 0:
            raise ValueError(f"schedule {name} must be positive, got {getattr(schedule, name)}")


def _not_negative(schedule: object, *names: str) -> None:
    """What may be 0, as the weight of the KL may; that a temperature may not is seen where it is written."""
    for name in names:
        if not getattr(schedule, name) >= 0:
            raise ValueError(f"schedule {name} must not be negative, got {getattr(schedule, name)}")


@dataclass(frozen=True)
class Constant:
    """tau(t) = start"""

    start: float = 1.0

    def __post_init__(self) -> None:
        _not_negative(self, "start")

    def __call__(self, step: int) -> float:
        """`start`, at every step."""
        return self.start


@dataclass(frozen=True)
class Linear:
    """tau(t) = start + (end - start) * min(t / steps, 1)"""

    start: float = 1.0
    end: float = 0.5
    steps: int = 5000

    def __post_init__(self) -> None:
        _not_negative(self, "start", "end")
        _positive(self, "steps")
        if self.start == self.end:
            raise ValueError(f"schedule end={self.end} is its start: it cannot move; use a constant one")

    def __call__(self, step: int) -> float:
        """On the line until step `steps`, then `end`."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Exponential:
    """tau(t) = max(floor, start * exp(-rate * t')), t' = t rounded down to a multiple of `interval`"""

    start: float = 1.0
    rate: float = 1e-4
    floor: float = 0.5
    interval: int = 500

    def __post_init__(self) -> None:
        _not_negative(self, "start", "floor", "rate")
        _positive(self, "interval")
        if self.floor >= self.start:
            raise ValueError(f"schedule floor must lie below its start={self.start}, got {self.floor}")

    def __call__(self, step: int) -> float:
        """Constant within an interval and never below the floor."""
        return max(self.floor, self.start * math.exp(-self.rate * (step // self.interval * self.interval)))


@dataclass(frozen=True)
class Cosine(Linear):
    """tau(t) = end + (start - end) * (1 + cos(pi * min(t / steps, 1))) / 2"""

    def __call__(self, step: int) -> float:
        """On half a cosine until step `steps`, then `end`."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2


@dataclass(frozen=True)
class Step:
    """tau(t) = max(floor, start * factor^n), n = t // interval, the number of intervals that have passed"""

    start: float = 1.0
    factor: float = 0.5
    interval: int = 5000
    floor: float = 0.0

    def __post_init__(self) -> None:
        _not_negative(self, "start", "floor")
        _positive(self, "factor", "interval")
        if self.factor >= 1:
            raise ValueError(f"schedule factor must lie below 1, got {self.factor}")
        if self.floor >= self.start:
            raise ValueError(f"schedule floor must lie below its start={self.start}, got {self.floor}")

    def __call__(self, step: int) -> float:
        """Constant within an interval and never below the floor."""
        return max(self.floor, self.start * self.factor ** (step // self.interval))


@dataclass(frozen=True)
class WarmUp:
    """tau(t) = then(0) * (t + 1) / steps for t < steps, so that no step is lost; from there on then(t - steps)

    With a `start` the line begins at that part of then(0): then(0) * (start + (1 - start) * t / steps), as torch's
    LinearLR.
    """

    steps: int = 500
    then: Schedule = Constant()
    start: float | None = None

    def __post_init__(self) -> None:
        _positive(self, "steps")
        if self.start is not None:
            _not_negative(self, "start")

    def __call__(self, step: int) -> float:
        """On the line up to where the other schedule begins, then on that one."""
        if step < self.steps:
            if self.start is not None:
                return self.then(0) * (self.start + (1 - self.start) * step / self.steps)
            return self.then(0) * (step + 1) / self.steps
        return self.then(step - self.steps)


class LearningRate(LambdaLR):
    """The optimizer's learning rate times a schedule of its steps: for a scheduler with the interval "step"."""

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        # of a function torch keeps nothing in a checkpoint, of another object what it holds
        super().__init__(optimizer, lambda step: schedule(step))
