"""RLOO: REINFORCE whose baseline is the mean cost of the other samples of the same image.

    1/S sum_s (f(z_s) - 1/(S-1) sum_{t != s} f(z_t)) d/dphi log q(z_s)

Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Salimans and Knowles 2014 (arXiv 1401.1022).
Unbiased, no parameters, at least two samples.
"""

from __future__ import annotations

from vi_lab.estimators.baselines import LeaveOneOut
from vi_lab.estimators.reinforce import Reinforce


class RLOO(Reinforce):
    """Reinforce(baseline=LeaveOneOut())."""

    def __init__(self, samples: int = 4) -> None:
        super().__init__(samples, LeaveOneOut())
