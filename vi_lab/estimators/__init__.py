"""Gradient estimators, one file per method. Every public class of this folder is importable from here.

    from vi_lab.estimators import RLOO

A new method is one file here, its name below, and one yaml in `configs/estimator/`.
"""

from __future__ import annotations

from vi_lab.estimators.arm import ARM
from vi_lab.estimators.base import Cost, Estimate, Exponential, GradientEstimator, RelaxedDensities
from vi_lab.estimators.baselines import Baseline, InputDependent, LeaveOneOut, MovingAverage, NoBaseline
from vi_lab.estimators.concrete import Concrete
from vi_lab.estimators.disarm import DisARM
from vi_lab.estimators.disarm_tree import DisARMTree
from vi_lab.estimators.dreg import DoublyReparameterised, DoublyReparameterized
from vi_lab.estimators.exact import Exact
from vi_lab.estimators.gapped_straight_through import GappedStraightThrough
from vi_lab.estimators.gumbel_rao import GumbelRao
from vi_lab.estimators.gumbel_softmax import GumbelSoftmax
from vi_lab.estimators.importance_weighted import ImportanceWeighted
from vi_lab.estimators.local_expectation import LocalExpectation
from vi_lab.estimators.muprop import MuProp
from vi_lab.estimators.mve import MVE
from vi_lab.estimators.pathwise import Pathwise
from vi_lab.estimators.rao_blackwell_reinforce import RaoBlackwellReinforce
from vi_lab.estimators.rebar import REBAR
from vi_lab.estimators.reinforce import Reinforce
from vi_lab.estimators.reinmax import ReinMax
from vi_lab.estimators.reinmax_cv import ReinMaxCV
from vi_lab.estimators.reinmax_rao import ReinMaxRao
from vi_lab.estimators.reinmax_relaxed import ReinMaxRelaxed
from vi_lab.estimators.relax import RELAX
from vi_lab.estimators.rloo import RLOO
from vi_lab.estimators.st_gumbel_softmax import StraightThroughGumbelSoftmax
from vi_lab.estimators.sticking_the_landing import StickingTheLanding
from vi_lab.estimators.straight_through import StraightThrough
from vi_lab.estimators.vimco import VIMCO
from vi_lab.estimators.vq import VectorQuantization

__all__ = [
    "ARM",
    "MVE",
    "REBAR",
    "RELAX",
    "RLOO",
    "VIMCO",
    "Baseline",
    "Concrete",
    "Cost",
    "DisARM",
    "DisARMTree",
    "DoublyReparameterised",
    "DoublyReparameterized",
    "Estimate",
    "Exact",
    "Exponential",
    "GappedStraightThrough",
    "GradientEstimator",
    "GumbelRao",
    "GumbelSoftmax",
    "ImportanceWeighted",
    "InputDependent",
    "LeaveOneOut",
    "LocalExpectation",
    "MovingAverage",
    "MuProp",
    "NoBaseline",
    "Pathwise",
    "RaoBlackwellReinforce",
    "ReinMax",
    "ReinMaxCV",
    "ReinMaxRao",
    "ReinMaxRelaxed",
    "Reinforce",
    "RelaxedDensities",
    "StickingTheLanding",
    "StraightThrough",
    "StraightThroughGumbelSoftmax",
    "VectorQuantization",
]
