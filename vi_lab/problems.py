"""Toy problems: min over logits of E_q(z)[f(z)], the expected cost of discrete variables without a model around them.

They are what papers on gradient estimators show first: the exact value and the exact gradient are known. Each is a cost
f that stands where a VAE has its likelihood, over free logits in place of an encoder; see
`vi_lab.models.ExpectedCost`. The batch is so many independent draws, whose mean cost is the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vi_lab.distributions import enumerate_support, log_prob, number_of_states
from vi_lab.latents import Bernoulli, Categorical, Discrete, Latent

MAX_STATES = 65_536
"""Up to so many joint states an expected cost is summed over all of them."""


class Logits(nn.Module):
    """The encoder of a toy problem: parameters, the same whatever x is.

    Args:
        shape: of x, which plays no part.
        feature_size: F, how many there are; 0 until a `ToyCost` says where it begins.
    """

    def __init__(self, shape: Sequence[int], feature_size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(feature_size))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, *) -> (B, F), B times the same."""
        return self.logits.expand(len(x), -1)


class States(nn.Identity):
    """The decoder of a toy problem: z as it is, flat, (N, latent_size)."""


class ToyCost(nn.Module, ABC):
    """f(z) of a toy problem, where a VAE has -log p(x|z). Relaxed z take the same formula.

    Of several variables z is their states side by side: bits, or one-hot vectors.
    """

    planes = 1

    @abstractmethod
    def begin(self, latent: Discrete) -> Tensor:
        """The logits where the optimization begins, (F,); takes from the latent how many variables and states there
        are, and draws what is random of the problem."""

    @abstractmethod
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """z (S, B, F) -> f(z) (S, B). x plays no part."""

    def mean(self, output: Tensor) -> Tensor:
        """What pictures would show: z itself."""
        return output

    def expected(self, q: Distribution) -> Tensor:
        """E_q f, (B,), exact and differentiable: summed over all joint states unless there is a shorter way.

        Raises:
            ValueError: there are more than `MAX_STATES` of them.
        """
        states = number_of_states(q)
        if states > MAX_STATES:
            raise ValueError(f"{states:.3g} joint states are too many to sum over, which is exact up to {MAX_STATES:,}")
        z = enumerate_support(q)  # (N, *event)
        z = z.unsqueeze(1).expand(-1, q.batch_shape[0], *z.shape[1:])
        return (log_prob(q, z).exp() * self(z.flatten(2), z)).sum(0)


def discrete_latent(latent: Latent) -> Discrete:
    """`latent`, where it is one that a toy problem can have.

    Raises:
        TypeError: it is none of one layer of binary or categorical variables.
    """
    if not isinstance(latent, (Bernoulli, Categorical)) or latent.layers > 1 or getattr(latent, "signs", False):
        raise TypeError(
            "a toy problem needs one layer of categorical or binary variables with the values 0 and 1, got "
            f"{latent.describe()}"
        )
    return latent


def _held(values: Tensor) -> Tensor:
    """Drawn numbers on the device that modules are made on, which may be the meta device."""
    return torch.empty(values.shape).copy_(values)


class Polynomial(ToyCost):
    """f(z) = 1/L sum_l |x_l - t|^p, x_l the value of variable l's state.

    One binary variable with p = 2 is the toy of REBAR (Tucker et al. 2017, arXiv 1703.07370, t = 0.45), RELAX
    (Grathwohl et al. 2018, arXiv 1711.00123, t = 0.499) and ARM (Yin and Zhou 2019, arXiv 1807.11143, t = 0.49, 0.499,
    0.501, 0.51). 128 variables are the polynomial programming of ReinMax (Liu et al. 2023, arXiv 2304.08612).

    Binary variables have the values 0 and 1. Those of K classes are normal draws, the same for all variables, moved and
    scaled so that the least is 0 and the largest 1 (Hooper and Shekhovtsov 2026).

    Args:
        target: t.
        power: p.
        start, spread: the logits begin uniform on [start - spread, start + spread], by the global generator.
        instance: seed of the classes' values.

    Raises:
        ValueError: power or spread is out of range.
    """

    classes: Tensor | None
    """(K,) the values of the classes; None of binary variables."""

    def __init__(
        self,
        target: float = 0.45,
        power: float = 2.0,
        start: float = 0.0,
        spread: float = 0.01,
        instance: int = 0,
    ) -> None:
        super().__init__()
        if power < 1 or spread < 0:
            raise ValueError(f"power must be at least 1 and spread not negative, got {power} and {spread}")
        self.target, self.power, self.start, self.spread, self.instance = target, power, start, spread, instance
        self.register_buffer("classes", None, persistent=False)

    def begin(self, latent: Discrete) -> Tensor:
        """Uniform logits."""
        if isinstance(latent, Categorical):
            generator = torch.Generator().manual_seed(self.instance)
            values = torch.randn(latent.layer_shape[1], generator=generator, device="cpu")
            values = values - values.min()
            self.classes = _held(values / values.max())
        return torch.empty(latent.feature_size).uniform_(-self.spread, self.spread) + self.start

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """(S, B, L) bits or (S, B, L * K) one-hot vectors -> (S, B)."""
        values = z if self.classes is None else z.unflatten(-1, (-1, len(self.classes))) @ self.classes.to(z)
        return (values - self.target).abs().pow(self.power).mean(-1)

    def expected(self, q: Distribution) -> Tensor:
        """Variable by variable, since f is a sum over them: (B,)."""
        if self.classes is None:
            cost = (q.mean.new_tensor([0.0, 1.0]) - self.target).abs().pow(self.power)
            return (cost[0] * (1 - q.mean) + cost[1] * q.mean).mean(-1)
        return (q.mean @ (self.classes.to(q.mean) - self.target).abs().pow(self.power)).mean(-1)

    def extra_repr(self) -> str:
        """Shown by `repr`."""
        return f"target={self.target}, power={self.power}"


class Quadratic(ToyCost):
    """f(z) = z^T A z + b^T z with random A = Q^T Q and b: of one categorical variable the instances on which Hooper and
    Shekhovtsov (2026) measure bias and variance.

    Q (F, F), b (F,) and the initial logits (F,) are standard normal draws, in this order, from one generator.

    Args:
        instance: its seed.
    """

    matrix: Tensor
    """A, (F, F)."""
    vector: Tensor
    """b, (F,)."""

    def __init__(self, instance: int = 0) -> None:
        super().__init__()
        self.instance = instance
        for name in ("matrix", "vector"):
            self.register_buffer(name, torch.empty(0), persistent=False)

    def begin(self, latent: Discrete) -> Tensor:
        """The third of the draws."""
        size, generator = latent.feature_size, torch.Generator().manual_seed(self.instance)
        root, vector, logits = (
            torch.randn(shape, generator=generator, device="cpu") for shape in ((size, size), (size,), (size,))
        )
        self.matrix, self.vector = _held(root.T @ root), _held(vector)
        return logits

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """(S, B, F) -> (S, B)."""
        return ((z @ self.matrix.to(z)) * z).sum(-1) + z @ self.vector.to(z)

    def extra_repr(self) -> str:
        """Shown by `repr`."""
        return f"instance={self.instance}"


class QuadraticProgram(ToyCost):
    """f(z) = (z - c)^T Q (z - c) with Q_ij = exp(-2 |i - j|) and c = 1/F: of one variable of three classes the toy of
    Gumbel-Rao (Paulus et al. 2021, arXiv 2010.04838, section 5.2).

    Args:
        probabilities: of the states of each variable where the optimization begins: K numbers, of binary variables one,
            that of a 1. None: all states alike.

    Raises:
        ValueError: they are none.
    """

    matrix: Tensor
    """Q, (F, F)."""

    def __init__(self, probabilities: Sequence[float] | None = None) -> None:
        super().__init__()
        given = list(probabilities or ())
        if not all(0 < p < 1 for p in given) or (len(given) > 1 and abs(sum(given) - 1) > 1e-6):
            raise ValueError(f"probabilities must be above 0 and sum to 1, got {given}")
        self.probabilities = given
        self.register_buffer("matrix", torch.empty(0), persistent=False)

    def begin(self, latent: Discrete) -> Tensor:
        """Logits of the given probabilities.

        Raises:
            ValueError: they are of another number of states.
        """
        place = torch.arange(latent.feature_size, dtype=torch.float32)
        self.matrix = torch.exp(-2 * (place[:, None] - place).abs())
        if not self.probabilities:
            return torch.zeros(latent.feature_size)
        variables, states = latent.layer_shape if isinstance(latent, Categorical) else (*latent.layer_shape, 1)
        if len(self.probabilities) != states:
            raise ValueError(f"probabilities: wanted {states}, got {len(self.probabilities)}")
        p = torch.tensor(self.probabilities)
        return (p.log() if states > 1 else p.logit()).repeat(variables)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """(S, B, F) -> (S, B)."""
        moved = z - 1 / z.shape[-1]
        return ((moved @ self.matrix.to(z)) * moved).sum(-1)

    def extra_repr(self) -> str:
        """Shown by `repr`."""
        return f"probabilities={self.probabilities}"
