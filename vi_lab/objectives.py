"""What is minimized: bounds on -log p(x), in nats per image, built from q, p, a reconstruction cost and an estimator.

The negative ELBO (Kingma and Welling 2014): E_q[-log p(x|z)] + beta * KL(q(z|x) || p(z)).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vi_lab.distributions import detach, kl_divergence, kl_or_estimate, log_prob, sample
from vi_lab.estimators.base import Cost, GradientEstimator, RelaxedDensities, check_posterior, checked
from vi_lab.estimators.surrogates import differentiable


class Terms(NamedTuple):
    """An objective and its parts, each (B,) in nats; only `loss` and `control_loss` carry gradient."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    control_loss: Tensor
    cost: Tensor
    """(S, B) the estimator's costs, detached."""
    at_samples: Tensor
    """The single-sample objective at the samples that the estimator took: relaxed ones, if it relaxes."""


class ELBO(nn.Module):
    """Negative (beta-)ELBO.

    Args:
        kl: "analytic", so that the estimator sees the reconstruction alone; or "monte_carlo", where its cost is
            reconstruction + beta * (log q(z|x) - log p(z)) at its samples. Same expectation, other variance. With
            relaxed samples the Monte Carlo form uses the linear extension of log q and is no bound.
            "path" is "monte_carlo" with the parameters of log q(z|x) detached, so that q learns through z alone
            (Roeder et al. 2017, arXiv 1703.09194): for pathwise estimators only; what is left out has mean zero.
        beta: weight of the KL; 1 is the ELBO, others the beta-VAE's objective. Training may be given another one, step
            by step; see `schedule_beta`.
    """

    scheduled: Tensor | None
    """() the weight of the KL in training, where a schedule writes it; None: `beta`."""

    def __init__(self, kl: str = "analytic", beta: float = 1.0) -> None:
        super().__init__()
        if kl not in ("analytic", "monte_carlo", "path"):
            raise ValueError(f"kl must be analytic, monte_carlo or path; got {kl!r}")
        if beta < 0:
            raise ValueError(f"beta must not be negative, got {beta}")
        self.kl = kl
        self.beta = beta
        self.register_buffer("scheduled", None, persistent=False)

    def schedule_beta(self) -> None:
        """Have a weight for training beside `beta`: a tensor, so that a compiled step reads it anew each time."""
        self.scheduled = torch.tensor(float(self.beta))

    def forward(
        self,
        q: Distribution,
        p: Distribution,
        nats: Cost,
        estimator: GradientEstimator,
        context: Tensor | None = None,
        beta: Tensor | float | None = None,
    ) -> Terms:
        """The training objective.

        Args:
            q: the posterior, batch shape (B,).
            p: the prior, batch shape ().
            nats: z (S, B, *event) -> -log p(x|z) (S, B).
            estimator: of the gradient.
            context: x, for baselines that see it.
            beta: the weight of the KL in this step; None: that of the objective.

        Raises:
            ValueError: the estimator is made for another beta.
        """
        own = getattr(estimator, "beta", None)  # `DoublyReparameterized` has one, which its factor depends on
        if self.kl == "path" and own is not None and (beta is not None or own != self.beta):
            got = self.beta if beta is None else "a schedule of it"
            raise ValueError(f"{type(estimator).__name__}(beta={own}) needs objective.beta={own}, got {got}")
        beta = self.beta if beta is None else beta
        if self.kl == "analytic":
            kl = kl_divergence(q, p)
            estimate = estimator(q, nats, context)
            loss = estimate.loss + beta * kl
            reconstruction = estimate.cost.mean(0)
        else:
            log_q_of = detach(q) if self.kl == "path" else q

            def cost(z: Tensor) -> Tensor:
                return nats(z) + beta * (log_prob(log_q_of, z) - log_prob(p, z))

            kl = kl_or_estimate(q, p)
            estimate = estimator(q, cost, context)
            loss = estimate.loss
            reconstruction = estimate.cost.mean(0) - beta * kl  # unbiased, and the parts add up
        kl = kl.detach()
        at_samples = reconstruction + beta * kl
        return Terms(loss, reconstruction, kl, estimate.control_loss, estimate.cost, at_samples)

    @torch.no_grad()
    def unrelaxed(self, q: Distribution, p: Distribution, nats: Cost, samples: int = 1) -> Terms:
        """The objective at samples from the true q with the analytic KL, without gradient: how every estimator is
        evaluated, whatever it was trained with. (Of q and p without one, with an estimate from a sample.)"""
        kl = kl_or_estimate(q, p)
        return self.unrelaxed_given_kl(q, nats, kl, samples)

    @torch.no_grad()
    def unrelaxed_given_kl(
        self, q: Distribution, nats: Cost, kl: Tensor, samples: int = 1, beta: Tensor | float | None = None
    ) -> Terms:
        """`unrelaxed` where KL(q || p), (B,), is known already; with the weight `beta` where one is given."""
        cost = nats(sample(q, samples))
        reconstruction = cost.mean(0)
        loss = reconstruction + (self.beta if beta is None else beta) * kl
        return Terms(loss, reconstruction, kl, kl.new_zeros(()), cost, loss)


class RelaxedELBO(ELBO):
    """Negative (beta-)ELBO of the model whose latent variables are relaxed in the prior too (Maddison et al. 2017).

    E_{q_tau}[ -log p(x|z) + beta * (log q_tau(z|x) - log p_tau0(z)) ], z Concrete: with beta = 1 a true bound, of the
    relaxed model. `unrelaxed`, by which every estimator is evaluated, stays the bound of the discrete model.

    The `kl` that it reports is the discrete KL too, so that it compares between estimators; the loss holds the relaxed
    one, which is (loss - reconstruction) / beta.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__("monte_carlo", beta)

    def forward(
        self,
        q: Distribution,
        p: Distribution,
        nats: Cost,
        estimator: GradientEstimator,
        context: Tensor | None = None,
        beta: Tensor | float | None = None,
    ) -> Terms:
        """The training objective; see `ELBO.forward`.

        Raises:
            TypeError: the estimator has no relaxed densities.
        """
        if not isinstance(estimator, RelaxedDensities):
            raise TypeError(
                "the relaxed ELBO needs an estimator with relaxed densities, such as estimator=concrete, "
                f"got {type(estimator).__name__}"
            )
        check_posterior(q)  # `terms` is not the estimator's call, which does this
        beta = self.beta if beta is None else beta
        reconstruction, log_ratio = estimator.terms(q, p, checked(nats))
        estimate = differentiable(reconstruction + beta * log_ratio)
        kl = kl_or_estimate(q, p)
        reconstruction = reconstruction.detach().mean(0)
        at_samples = reconstruction + beta * kl
        return Terms(estimate.loss, reconstruction, kl, estimate.control_loss, estimate.cost, at_samples)
