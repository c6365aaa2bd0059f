"""Sticking the landing: the pathwise gradient of the ELBO without the score of q.

    d/dphi E_q[log q(z) - log p(x, z)] = E[ d/dz (log q(z) - log p(x, z)) dz/dphi ],  log q's own parameters detached

Roeder et al. 2017 (arXiv 1703.09194). What is left out, E_q[d/dphi log q(z)], is zero, so the gradient stays unbiased;
its variance vanishes where q is the true posterior. The method is in the objective (kl=path); the estimator is the
pathwise one, under a name that asks for it.
"""

from __future__ import annotations

from vi_lab.estimators.pathwise import Pathwise


class StickingTheLanding(Pathwise):
    """`Pathwise`, for `ELBO(kl="path")` only."""

    kl = "path"
