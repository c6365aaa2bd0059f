"""MVE: of the straight-through estimators with no bias for linear costs, the one of least variance plus bias for
quadratic ones.

    z ~ q,   dz/dlogits := S_z,  where the S_1, ..., S_K minimize
        tau sum_z p_z |S_z|^2 + 1/2 sum_zi |p_z S_zi + p_i S_iz - [z = i] J_i|^2    given   sum_z p_z S_z = J(p)

S_zi is the row of class i; J(p) = diag(p) - p p^T. Hooper and Shekhovtsov 2026 (Generalized and optimal
straight-through estimators, AISTATS); the text was not at hand, this is the objective whose normal equations the
authors' public code solves, with tau = 1 / lambda:

    S_zi = ((tau + p_i) v_i - p_i v_z + [z = i] J_i) / (tau + p_i + p_z),
    A v = diag((tau + p_i) / (tau + 2 p_i)) J,   A_ij = -p_i p_j / (tau + p_i + p_j),
    A_ii = (tau + p_i) sum_j p_j / (tau + p_i + p_j) - p_i^2 / (tau + 2 p_i)

The sum over z and i is zero where costs quadratic in z have no bias. So tau -> infinity is straight-through, and with
tau -> 0 quadratic costs are exact in expectation, as with ReinMax at temperature 1, at the least variance there is. The
authors let lambda rise from 1 to 1e6 over training. One K x K system for each variable and image, O(K^3); only S_z
times what comes from above is ever made, so that it has one right-hand side.

The cost may see a variable as the number x = sum_k k z_k only (`latent.embedding=integer`). Then less is asked of S_z,
of which s_z = sum_i i S_zi is all that counts: no bias for costs linear in x, and the least of
E|s|^2 + 2/tau |E[x s] - phi^2 / 2|^2, phi_k = k, which has a closed form in the moments of x:

    s_z = J(p) (phi + (phi^2 - 2 E[x] phi) (x - E[x]) / (tau + 2 Var[x]))

A Bernoulli variable is such a number, of two classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from vi_lab.distributions import discrete, sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator, add_temperature
from vi_lab.estimators.surrogates import differentiable, straight_through

EMBEDDINGS = ("one_hot", "integer")


def minimum_variance(q: Distribution, z: Tensor, temperature: Tensor | float, embedding: str = "one_hot") -> Tensor:
    """An expression in q's logits whose Jacobian at the samples `z` (S, B, *event) is S_z; in z's shape."""
    b = discrete(q, "MVE")
    p = b.probs
    if isinstance(b, Bernoulli):
        c = p.detach()
        return (1 + (1 - 2 * c) * (z - c) / (temperature + 2 * c * (1 - c))) * p
    if embedding == "integer":
        return _of_numbers(p, z, temperature)
    # where tau is small, A is nearly singular: float32 would leave few digits, and MPS has no other
    dtype = p.dtype if p.device.type == "mps" else torch.float64
    y, c = _solve(p.to(dtype), temperature).to(p.dtype), p.detach()  # (B, L, K)
    y_z, c_z = ((z * x).sum(-1, keepdim=True) for x in (y, c))  # (S, B, L, 1)
    return ((temperature + c) * y - c * y_z + z * p) / (temperature + c + c_z)


def _solve(p: Tensor, temperature: Tensor | float) -> Tensor:
    """v times the logits, with v held constant: A^-1 diag((tau + p) / (tau + 2 p)) p, as dp is J(p) dlogits."""
    c = p.detach()
    with torch.no_grad():  # few passes over A, in place: it is the largest thing here
        matrix = c.unsqueeze(-2) / (c.unsqueeze(-1) + (c + temperature).unsqueeze(-2))  # p_j / (tau + p_i + p_j)
        total = (temperature + c) * matrix.sum(-1)
        matrix *= -c.unsqueeze(-1)
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        diagonal += total
        factor = torch.linalg.cholesky_ex(matrix).L  # which does not raise: what is not finite shows up in the loss
    right = ((temperature + c) / (temperature + 2 * c) * p).unsqueeze(-1)
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True).squeeze(-1)


def _of_numbers(p: Tensor, z: Tensor, temperature: Tensor | float) -> Tensor:
    """Likewise for costs of x = sum_k k z_k: any S_z with that s_z, here the one along phi."""
    phi = torch.arange(p.shape[-1], dtype=p.dtype, device=p.device)
    c = p.detach()
    mean = (c * phi).sum(-1, keepdim=True)  # (B, L, 1)
    variance = (c * (phi - mean).square()).sum(-1, keepdim=True)
    x = (z * phi).sum(-1, keepdim=True)  # (S, B, L, 1)
    s = phi + (phi - 2 * mean) * phi * (x - mean) / (temperature + 2 * variance)
    return (s * p).sum(-1, keepdim=True) * phi / phi.square().sum().clamp_min(1)  # one class has no gradient


class MVE(GradientEstimator):
    """Hard forward; backward, the Jacobian of least variance plus bias."""

    unbiased = False
    exact_for = "linear"  # and for quadratic costs as the temperature falls to 0
    temperature: Tensor

    def __init__(self, samples: int = 1, temperature: float = 1.0, embedding: str = "one_hot") -> None:
        """temperature: 1 / lambda; embedding: what the cost sees of a categorical variable, see
        `vi_lab.latents.Categorical`."""
        super().__init__(samples)
        if embedding not in EMBEDDINGS:
            raise ValueError(f"embedding must be one of {', '.join(EMBEDDINGS)}; got {embedding!r}")
        add_temperature(self, temperature)
        self.embedding = embedding

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples of the true q; TypeError where it is not discrete."""
        discrete(q, "MVE")
        z = sample(q, self.samples)  # (S, B, *event)
        return differentiable(cost(straight_through(z, minimum_variance(q, z, self.temperature, self.embedding))))
