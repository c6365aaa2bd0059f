"""What is minimized: bounds on -log p(x), in nats per image, built from q, p, a reconstruction cost and an estimator.

The negative ELBO (Kingma and Welling 2014): E_q[-log p(x|z)] + beta * KL(q(z|x) || p(z)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vi_lab.distributions import Chain, detach, kl_divergence, kl_or_estimate, log_prob, sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator, RelaxedDensities, check_posterior, checked
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
        kl: "analytic", so that the estimator sees the reconstruction alone, where a closed form is known; otherwise, as
            with a mixture for a prior, it is as "monte_carlo", where its cost is
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
        deeper: Sequence[GradientEstimator] = (),
    ) -> Terms:
        """The training objective.

        Args:
            q: the posterior, batch shape (B,).
            p: the prior, batch shape ().
            nats: z (S, B, *event) -> -log p(x|z) (S, B).
            estimator: of the gradient; of several stochastic layers, that of the first.
            context: x, for baselines that see it.
            beta: the weight of the KL in this step; None: that of the objective.
            deeper: of several stochastic layers, the estimators of all but the first.

        Raises:
            ValueError: the estimator is made for another beta.
        """
        own = getattr(estimator, "beta", None)  # `DoublyReparameterized` has one, which its factor depends on
        if self.kl == "path" and own is not None and (beta is not None or own != self.beta):
            got = self.beta if beta is None else "a schedule of it"
            raise ValueError(f"{type(estimator).__name__}(beta={own}) needs objective.beta={own}, got {got}")
        beta = self.beta if beta is None else beta
        closed = self.closed_form(q, p)
        kl = kl_or_estimate(q, p) if closed is None else closed.detach()
        estimate = self.bound(q, p, closed, nats, (estimator, *deeper), context, beta)
        reconstruction = estimate.cost.mean(0)
        if closed is None:
            reconstruction = reconstruction - beta * kl  # unbiased, and the parts add up
        at_samples = reconstruction + beta * kl
        return Terms(estimate.loss, reconstruction, kl, estimate.control_loss, estimate.cost, at_samples)

    def closed_form(self, q: Distribution, p: Distribution) -> Tensor | None:
        """KL(q || p), (B,), where it is wanted and known; None where it is to be sampled."""
        if self.kl != "analytic" or isinstance(q, Chain):
            return None
        try:
            return kl_divergence(q, p)
        except NotImplementedError:
            return None

    def bound(
        self,
        q: Distribution,
        p: Distribution,
        closed: Tensor | None,
        nats: Cost,
        estimators: Sequence[GradientEstimator],
        context: Tensor | None,
        beta: Tensor | float,
    ) -> Estimate:
        """What the estimators make of the bound; its `cost` lacks what is known in closed form.

        Args:
            closed: of `closed_form`.
        """
        estimator, *deeper = estimators
        if closed is not None:
            estimate = estimator(q, nats, context)
            return estimate._replace(loss=estimate.loss + beta * closed)
        if isinstance(q, Chain) and isinstance(p, Chain) and not estimator.multi_sample:
            return self.layered(q, p, nats, estimator, deeper, context, beta)
        log_q_of = detach(q) if self.kl == "path" else q
        return estimator(q, lambda z: nats(z) + beta * (log_prob(log_q_of, z) - log_prob(p, z)), context)

    def layered(
        self,
        q: Chain,
        p: Chain,
        nats: Cost,
        estimator: GradientEstimator,
        deeper: Sequence[GradientEstimator],
        context: Tensor | None,
        beta: Tensor | float,
    ) -> Estimate:
        """The bound of several stochastic layers, by an estimator for each.

        The cost of a layer is all that comes downstream of it (Mnih and Gregor 2014, arXiv 1402.0030): with F_t, the
        bound of the layers from t on,

            F_t(z_t-1) = E_q(z_t|z_t-1)[ -log p(z_t-1|z_t) + log q(z_t|z_t-1) + F_t+1(z_t) ],   p(z_0|z_1) = p(x|z_1),

        and F_t+1 at a sample is what the estimator of the next layer returns: its value, and its gradient, which flows
        on into z_t where that is differentiable. An unbiased estimator stays so where the cost is known up to noise of
        mean zero. If `kl` is "analytic", the entropy of each layer and the KL of the top one are in closed form. Of S
        samples per layer there are S^t of layer t. Multi-sample bounds are those of all layers jointly, see `bound`.
        """
        head, (given, p_above) = q.start, p.below()
        controls: list[Tensor] = []

        def cost(z: Tensor) -> Tensor:  # (S, B, *layer) -> (S, B)
            flat = z.flatten(0, 1)
            above = q.above(flat)  # batch (S * B,)

            def below(z_above: Tensor) -> Tensor:  # (S, S * B, *layer) -> (S, S * B)
                return -beta * log_prob(given(z_above), flat)

            rest = self.bound(above, p_above, self.closed_form(above, p_above), below, deeper, flat, beta)
            controls.append(rest.control_loss)
            total = nats(z) + rest.loss.unflatten(0, z.shape[:2])
            return total if self.kl == "analytic" else total + beta * log_prob(head, z)

        estimate = estimator(head, cost, context)
        estimate = estimate._replace(control_loss=estimate.control_loss + torch.stack(controls).mean())
        if self.kl != "analytic":
            return estimate
        negative_entropy = beta * log_prob(head, head.mean)  # log q is linear in z
        return estimate._replace(loss=estimate.loss + negative_entropy, cost=estimate.cost + negative_entropy.detach())

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
        deeper: Sequence[GradientEstimator] = (),
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
