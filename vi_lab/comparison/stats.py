"""Means over seeds, and paired differences with their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

import pandas
from scipy.special import stdtrit

CONFIDENCE = 0.95


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard error of the mean, s / sqrt(n); the error of a single value is NaN, as is all of none."""
    values = list(values)
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


class Difference(NamedTuple):
    """A paired difference, group minus reference, with its confidence interval."""

    mean: float
    low: float
    high: float
    seeds: int
    """How many seeds the two have in common."""


def paired_difference(values: pandas.Series, reference: pandas.Series, confidence: float = CONFIDENCE) -> Difference:
    """Student's interval for the mean of paired differences d_s (Student 1908, The probable error of a mean).

    mean(d) -+ t((1 + confidence) / 2; n - 1) * s_d / sqrt(n) over the n seeds that both have. Exact for normal
    differences. NaN where it does not exist: all of it without a common seed, the interval with one.

    Args:
        values, reference: a metric, indexed by seed.
    """
    both = values.index.intersection(reference.index)
    mean, error = mean_and_error((values[both] - reference[both]).tolist())
    half = float(stdtrit(len(both) - 1, (1 + confidence) / 2)) * error if len(both) > 1 else math.nan
    return Difference(mean, mean - half, mean + half, len(both))
