"""Whether our number agrees with a published one: a band from both spreads, with a stated rate of false alarms.

If both are means of runs that are drawn alike, ours of n runs and theirs of m, then

    t = (ours - theirs) / (s sqrt(1/n + 1/m)),   s^2 = ((n - 1) s_ours^2 + (m - 1) s_theirs^2) / (n + m - 2)

follows Student's law with n + m - 2 degrees of freedom (Student 1908; the pooled test of two samples). The spread is
pooled because that *is* the hypothesis: the same set-up has the same spread. So a single run of ours is tested against
ten of theirs, and a single published run, whose spread nobody knows, against ours, with a band that is wider by both
the factor sqrt(1 + 1/n) and the fewer degrees of freedom. Over a table of k decided cells each is tested at rate
alpha / k (Bonferroni), so that a table in which all agree shows any failure with probability alpha at the most,
whatever the dependence of cells; that is as far as seeds are normal.

The spread of ours is part of the hypothesis: where both are known, s_ours^2 / s_theirs^2 is tested too, by Fisher's law
with n - 1 and m - 1 degrees of freedom, and a cell fails where ours is larger by more than that. (Else one wild run of
ours would widen the band until its own mean passes.) Each of the two tests then has half the rate.

To the band come half a unit of the last published digit (or half the range that was read off a figure), and, where the
best of M settings was published on the seeds on which it was chosen, on the side of a larger number of ours,
s_theirs sqrt(2 ln M / m), which the best of M equal settings is expected to gain at the most.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import fdtri, stdtrit

from vi_lab.published import Cell, Row

FALSE_ALARM = 0.01
"""Over a whole table."""
MOST = 12.0
"""Of the quantile: with less than about six degrees of freedom in a table of a hundred cells the band says nothing."""


class Verdict(NamedTuple):
    """What came out for a cell."""

    word: str
    """pass, fail, or not decided"""
    reason: str = ""
    """Why it is not decided."""
    ours: float = math.nan
    error: float = math.nan
    """Standard error of ours; NaN of a single run."""
    runs: int = 0
    band: float = math.nan
    """How far apart the two may be."""


def spread(row: Row, cell: Cell, ours: Sequence[float]) -> tuple[float, int]:
    """Pooled standard deviation of a run, and its degrees of freedom."""
    squares, degrees = 0.0, 0
    if len(ours) > 1:
        squares += (len(ours) - 1) * statistics.variance(ours)
        degrees += len(ours) - 1
    if row.seeds is not None and row.seeds > 1 and cell.sd is not None:
        squares += (row.seeds - 1) * cell.sd**2
        degrees += row.seeds - 1
    return math.sqrt(squares / degrees) if degrees else math.nan, degrees


def judge(row: Row, cell: Cell, ours: Sequence[float], rate: float) -> Verdict:
    """Compare our runs with a published number.

    Args:
        ours: the metric of each run, at least one; NaN of a run that gave no number.
        rate: of false alarms of this cell.
    """
    runs = len(ours)
    if not all(map(math.isfinite, ours)):
        if row.command == "audit":  # as where a mean is within its noise
            return Verdict("not decided", "an audit of ours could not tell; take more draws", runs=runs)
        return Verdict("fail", "a run of ours has no finite number", runs=runs)
    mean, own = statistics.fmean(ours), statistics.variance(ours) if runs > 1 else math.nan
    error = math.sqrt(own / runs)
    known = Verdict("not decided", "", mean, error, runs)
    if row.unstated:
        return known._replace(reason=f"the source does not state: {row.unstated}")
    published = row.seeds or 0
    both = runs > 1 and published > 1 and cell.sd is not None and cell.sd > 0
    rate = rate / 2 if both else rate
    s, degrees = spread(row, cell, ours)
    quantile = float(stdtrit(degrees, 1 - rate / 2)) if degrees else math.inf
    if not quantile <= MOST:
        unknown = ": the published spread is not known" if cell.sd is None and published else ""
        return known._replace(reason=f"needs more runs of ours{unknown}")
    band = cell.half + quantile * s * math.sqrt(1 / runs + (1 / published if published else 0.0))
    known = known._replace(band=band)
    if both and cell.sd and own > cell.sd**2 * float(fdtri(runs - 1, published - 1, 1 - rate)):
        reason = f"our runs spread by {math.sqrt(own):.2g}, the published ones by {cell.sd:.2g}"
        return known._replace(word="fail", reason=reason)
    chosen = (cell.sd or s) * math.sqrt(2 * math.log(row.searched) / published) if published else 0.0
    difference = mean - cell.value
    agrees = difference <= band + chosen and (cell.upper or difference >= -band)
    return known._replace(word="pass" if agrees else "fail")
