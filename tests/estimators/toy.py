"""Small problems whose exact gradients are known, by enumeration or quadrature, in float64.

An estimator is run on R identical copies of the problem at once, each copy a row of the batch with parameters of its
own, so that one backward pass gives R independent draws of the gradient.

False alarms: with unbiased estimators only, the whole suite alarms with probability at most FAMILY_ERROR, by
Bonferroni over at most COORDINATES tested coordinates: each may lie THRESHOLD standard errors off. Seeds are fixed,
so an alarm repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal, OneHotCategorical

from tests.support import ESTIMATORS, composed
from vi_lab import latents
from vi_lab.build import build_estimator
from vi_lab.distributions import NearestCode, detach, enumerate_support, log_prob
from vi_lab.estimators import Cost, GradientEstimator
from vi_lab.estimators.surrogates import importance_weighted_bound
from vi_lab.schema import CONFIG_DIR


def make_config(name: str, *overrides: str) -> dict:
    return composed(f"estimator={name}", *overrides)


def make(name: str, *overrides: str) -> GradientEstimator:
    """The estimator that a config describes, in float64; two samples for a multi-sample bound, to enumerate pairs."""
    estimator = build_estimator(make_config(name, *overrides)["estimator"]).double()
    if estimator.multi_sample and estimator.samples != 2:
        return make(name, *overrides, "samples=2")
    return estimator


def latents_of(name: str) -> list[str]:
    """Those that the family of its file names, read without composing."""
    folder = CONFIG_DIR / "estimator"
    defaults = yaml.safe_load((folder / f"{name}.yaml").read_text())["defaults"]
    (family,) = [default["family"] for default in defaults if "family" in default]
    return yaml.safe_load((folder / "family" / f"{family}.yaml").read_text())["compatible_latents"]


PAIRS = [(name, kind) for name in ESTIMATORS for kind in latents_of(name)]
"""Every estimator with every latent of its family."""

FAMILY_ERROR = 1e-3
COORDINATES = 10_000
THRESHOLD = NormalDist().inv_cdf(1 - FAMILY_ERROR / COORDINATES / 2)  # 5.3
ROWS = 40_000

PHI = {
    "categorical": torch.tensor([[0.3, -0.8, 0.5], [1.2, 0.1, -0.4]], dtype=torch.float64),
    "bernoulli": torch.tensor([0.4, -1.1, 0.9], dtype=torch.float64),
    "gaussian": torch.tensor([[0.3, -0.6], [-0.5, 0.4]], dtype=torch.float64),  # mean, log variance
    "vq": torch.tensor([[0.3, -0.6], [1.5, 0.4]], dtype=torch.float64),  # two encodings
}
LATENTS = {
    "categorical": latents.Categorical(2, 3),
    "bernoulli": latents.Bernoulli(3),
    "gaussian": latents.Gaussian(2),
}
"""Those whose features are `PHI`."""
CODEBOOK = torch.tensor([[0.0, 0.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)


def posterior(kind: str, phi: Tensor) -> Distribution:
    """phi (B, *) -> q with batch shape (B,)."""
    if kind == "categorical":
        return Independent(OneHotCategorical(logits=phi, validate_args=False), 1)
    if kind == "bernoulli":
        return Independent(Bernoulli(logits=phi, validate_args=False), 1)
    if kind == "vq":
        return NearestCode(phi, CODEBOOK.to(phi.dtype))
    return Independent(Normal(phi[:, 0], (0.5 * phi[:, 1]).exp()), 1)


class Problem(NamedTuple):
    """A posterior's parameters and a cost with parameters of its own (the "decoder")."""

    kind: str
    phi: Tensor
    theta: Tensor
    f: Callable[[Tensor, Tensor], Tensor]
    """z (S, B, n), theta (B, m) -> (S, B)"""

    def cost(self, estimator: GradientEstimator | None, q: Distribution, theta: Tensor) -> Cost:
        """What the estimator is asked for: f, or f + log q where it is made for a Monte Carlo KL."""
        kl = getattr(estimator, "kl", None)
        if kl not in ("monte_carlo", "path"):
            return lambda z: self.f(z.flatten(2), theta)
        log_q_of = detach(q) if kl == "path" else q
        return lambda z: self.f(z.flatten(2), theta) + log_prob(log_q_of, z)

    def exact(self, estimator: GradientEstimator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The expected cost, or the importance-weighted bound of a multi-sample estimator, and its gradients with
        respect to phi and theta."""
        phi = self.phi.clone().requires_grad_()
        theta = self.theta.clone().requires_grad_()
        q = posterior(self.kind, phi[None])
        multi = getattr(estimator, "multi_sample", False)
        if self.kind == "gaussian":
            nodes, weights = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(30 if multi else 60))
            weights = weights / weights.sum()
            eps = torch.cartesian_prod(nodes, nodes)
            z = (q.base_dist.loc + q.base_dist.scale * eps).unsqueeze(1)  # (N, 1, D)
            weight = torch.cartesian_prod(weights, weights).prod(-1)
        elif self.kind == "vq":  # certain, so that the exact gradient in phi vanishes
            z, weight = q.codes.unsqueeze(0), torch.ones(1, dtype=phi.dtype)
        else:
            z = enumerate_support(q).unsqueeze(1)
            weight = log_prob(q, z).exp()[:, 0]
        f = self.f(z.flatten(2), theta[None])[:, 0]  # (N,)
        if getattr(estimator, "kl", None) in ("monte_carlo", "path"):
            f = f + log_prob(q, z)[:, 0]
        if multi:
            index = torch.cartesian_prod(*[torch.arange(len(f))] * estimator.samples)  # all S-tuples of states
            f, weight = importance_weighted_bound(f[index].T), weight[index].prod(-1)
        value = (weight * f).sum()
        return value.detach(), *torch.autograd.grad(value, (phi, theta), materialize_grads=True)

    def draws(self, estimator: GradientEstimator, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
        """`rows` independent draws of the value (R,) and of the two gradients (R, ...)."""
        phi = self.phi.expand(rows, *self.phi.shape).clone().requires_grad_()
        theta = self.theta.expand(rows, *self.theta.shape).clone().requires_grad_()
        q = posterior(self.kind, phi)
        estimate = estimator(q, self.cost(estimator, q, theta), phi.flatten(1).detach())
        gradients = torch.autograd.grad(estimate.loss.sum(), (phi, theta))
        return estimate.loss.detach(), *gradients


def problem(kind: str, cost: str) -> Problem:
    """A problem of a kind of latent and a kind of cost: linear, quadratic or nonlinear in z."""
    phi = PHI[kind]
    n = phi.shape[1] if kind == "gaussian" else phi.numel()
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(n, 4, dtype=torch.float64, generator=generator)
    theta = torch.randn(4, dtype=torch.float64, generator=generator)

    def f(z: Tensor, theta: Tensor) -> Tensor:
        h = z @ weight  # (S, B, 4)
        if cost == "linear":
            return (h * theta).sum(-1)
        if cost == "quadratic":
            return (h - theta).square().sum(-1)
        return torch.sin(2 * h + theta).sum(-1) + 0.5 * (h[..., 0] * theta[..., 1]).square()

    return Problem(kind, phi, theta, f)


def worst(draws: Tensor, exact: Tensor) -> float:
    """The largest distance of the draws' mean from `exact`, in standard errors, over coordinates."""
    error = (draws.mean(0) - exact).abs()
    standard = draws.std(0) / len(draws) ** 0.5
    # rounding alone is no bias: where all draws agree, distances of 1e-9 count as none
    return (error / (standard + 1e-10)).max().item() if (error > 1e-9).any() else 0.0
