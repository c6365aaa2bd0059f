"""Temperature schedules: pure functions from the optimizer step to a value. They hold no counter.

Exponential decay with a floor and an update interval is Jang et al. 2017, section 4 (arXiv 1611.01144).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


def _positive(schedule: object, *names: str) -> None:
    for name in names:
        if not getattr(schedule, name) > 0:
            raise ValueError(f"schedule {name} must be positive, got {getattr(schedule, name)}")


@dataclass(frozen=True)
class Constant:
    """tau(t) = start"""

    start: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "start")

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
        _positive(self, "start", "end", "steps")
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
        _positive(self, "start", "floor", "interval")
        if self.floor >= self.start:
            raise ValueError(f"schedule floor must lie below its start={self.start}, got {self.floor}")
        if self.rate < 0:
            raise ValueError(f"schedule rate must not be negative, got {self.rate}")

    def __call__(self, step: int) -> float:
        """Constant within an interval and never below the floor."""
        return max(self.floor, self.start * math.exp(-self.rate * (step // self.interval * self.interval)))


@dataclass(frozen=True)
class Cosine(Linear):
    """tau(t) = end + (start - end) * (1 + cos(pi * min(t / steps, 1))) / 2"""

    def __call__(self, step: int) -> float:
        """On half a cosine until step `steps`, then `end`."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2
