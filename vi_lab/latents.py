"""Latent variables: encoder features -> q(z|x), the prior p(z), and their KL divergence.

Each latent says how many features it needs (`feature_size`) and what a sample looks like (`event_shape`). Logits
and scales stay in float32 (or float64) under reduced precision.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, distributions, nn
from torch.distributions import Distribution, Independent

from vi_lab.distributions import NearestCode, UniformCodes, one_hot_categorical


class Latent(nn.Module, ABC):
    """A family of posteriors with a fixed prior.

    Your own may return any `torch.distributions` objects, or subclasses of `Distribution` that have `log_prob`,
    `sample` and, as a posterior, `mean` (and `rsample` for the pathwise estimators). Where torch has no KL for the two,
    register one with `torch.distributions.register_kl`. `vi_lab.models.VAE` takes every latent; its families take
    theirs and subclasses of these.
    """

    event_shape: tuple[int, ...]
    """Of one sample z."""
    feature_size: int
    """What the encoder has to give per image."""

    @abstractmethod
    def posterior(self, features: Tensor) -> Distribution:
        """features (B, feature_size), at least float32 -> q with batch shape (B,) and event `event_shape`."""

    @abstractmethod
    def prior(self) -> Distribution:
        """p(z), batch shape ()."""

    def forward(self, features: Tensor) -> Distribution:
        """`posterior` of features in at least float32, since logits and scales need its digits."""
        return self.posterior(features.to(torch.promote_types(features.dtype, torch.float32)))

    @property
    def size(self) -> int:
        """Number of inputs of the decoder."""
        return math.prod(self.event_shape)

    def extra_repr(self) -> str:
        """Shown by `repr`: the shape of a sample."""
        return f"event_shape={self.event_shape}"

    def describe(self) -> str:
        """What a sample is, in words."""
        return f"{type(self).__name__} of shape {'x'.join(map(str, self.event_shape))}"


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


class Categorical(Latent):
    """`variables` independent one-hot variables of `classes` classes; uniform prior. Event (L, C)."""

    prior_logits: Tensor

    def __init__(self, variables: int = 30, classes: int = 10) -> None:
        super().__init__()
        _positive(variables=variables, classes=classes)
        self.event_shape = (variables, classes)
        self.feature_size = variables * classes
        self.register_buffer("prior_logits", torch.zeros(variables, classes), persistent=False)

    def posterior(self, features: Tensor) -> Distribution:
        """(B, L * C) logits, those of a variable side by side -> event (L, C)."""
        logits = features.unflatten(-1, self.event_shape)  # (B, L*C) -> (B, L, C)
        return Independent(one_hot_categorical(logits), 1, validate_args=False)

    def prior(self) -> Distribution:
        """Every class alike."""
        return Independent(one_hot_categorical(self.prior_logits), 1, validate_args=False)

    def describe(self) -> str:
        """As "30 variables of 10 classes"."""
        return f"{self.event_shape[0]} variables of {self.event_shape[1]} classes"


class Bernoulli(Latent):
    """`variables` independent binary variables; prior Bernoulli(1/2). Event (L,), values 0 and 1."""

    prior_logits: Tensor

    def __init__(self, variables: int = 200) -> None:
        super().__init__()
        _positive(variables=variables)
        self.event_shape = (variables,)
        self.feature_size = variables
        self.register_buffer("prior_logits", torch.zeros(variables), persistent=False)

    def posterior(self, features: Tensor) -> Distribution:
        """(B, L) logits -> event (L,)."""
        return Independent(distributions.Bernoulli(logits=features, validate_args=False), 1, validate_args=False)

    def prior(self) -> Distribution:
        """Probability 1/2."""
        q = distributions.Bernoulli(logits=self.prior_logits, validate_args=False)
        return Independent(q, 1, validate_args=False)

    def describe(self) -> str:
        """As "200 binary variables"."""
        return f"{self.event_shape[0]} binary variables"


class Gaussian(Latent):
    """Diagonal Gaussian posterior from (mu, log variance) heads; standard normal prior. Event (D,)."""

    prior_mean: Tensor

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        _positive(dim=dim)
        self.event_shape = (dim,)
        self.feature_size = 2 * dim
        self.register_buffer("prior_mean", torch.zeros(dim), persistent=False)

    def posterior(self, features: Tensor) -> Distribution:
        """(B, 2 D), means before log variances -> event (D,)."""
        mean, log_variance = features.chunk(2, -1)
        normal = distributions.Normal(mean, (0.5 * log_variance).exp(), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def prior(self) -> Distribution:
        """Mean 0, variance 1."""
        normal = distributions.Normal(self.prior_mean, torch.ones_like(self.prior_mean), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def describe(self) -> str:
        """As "20 Gaussian variables"."""
        return f"{self.event_shape[0]} Gaussian variables"


class VQ(Latent):
    """`variables` vectors of size `dim`, each the nearest of `classes` learned codes; uniform prior. Event (L, D).

    Vector quantization (van den Oord et al. 2017, arXiv 1711.00937): the posterior is certain, its KL the constant
    L log K. Departures: the variables are a flat list, not a map of positions, and the prior stays uniform, where the
    paper fits an autoregressive one to the codes afterwards.
    """

    def __init__(self, variables: int = 30, classes: int = 10, dim: int = 8) -> None:
        super().__init__()
        _positive(variables=variables, classes=classes, dim=dim)
        self.event_shape = (variables, dim)
        self.feature_size = variables * dim
        self.codebook = nn.Parameter(torch.empty(classes, dim).uniform_(-1, 1) / classes)

    def posterior(self, features: Tensor) -> Distribution:
        """(B, L * D) encodings -> the codes nearest to them, event (L, D)."""
        encoding = features.unflatten(-1, self.event_shape)  # (B, L*D) -> (B, L, D)
        return NearestCode(encoding, self.codebook.to(features.dtype))

    def prior(self) -> Distribution:
        """Every code alike, for each variable."""
        return UniformCodes(self.codebook, self.event_shape[0])

    def describe(self) -> str:
        """As "30 variables, each one of 10 codes in 8 dimensions"."""
        (variables, dim), classes = self.event_shape, len(self.codebook)
        return f"{variables} variables, each one of {classes} codes in {dim} dimensions"
