"""Latent variables: encoder features -> q(z|x), the prior p(z), and their KL divergence.

Each latent says how many features it needs (`feature_size`) and what a sample looks like (`event_shape`). Logits
and scales stay in float32 (or float64) under reduced precision.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributions, nn
from torch.distributions import Distribution, Independent

from vi_lab.distributions import Chain, NearestCode, UniformCodes, one_hot_categorical
from vi_lab.networks import MLPEncoder


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
    layers: int = 1
    """Stochastic ones: q(z_1|x) q(z_2|z_1) ..., where the decoder sees z_1."""

    @abstractmethod
    def posterior(self, features: Tensor) -> Distribution:
        """features (B, feature_size), at least float32 -> q with batch shape (B,) and event `event_shape`."""

    @abstractmethod
    def prior(self) -> Distribution:
        """p(z), batch shape ()."""

    def forward(self, features: Tensor) -> Distribution:
        """`posterior` of features in at least float32, since logits and scales need its digits."""
        return self.posterior(_precise(features))

    @property
    def size(self) -> int:
        """Number of inputs of the decoder."""
        return math.prod(self.event_shape)

    def inputs(self, z: Tensor) -> Tensor:
        """What the decoder sees of z (S, B, *event): (S, B, *) of `size` numbers each."""
        return z

    def extra_repr(self) -> str:
        """Shown by `repr`: the shape of a sample."""
        return f"event_shape={self.event_shape}"

    def describe(self) -> str:
        """What a sample is, in words."""
        return f"{type(self).__name__} of shape {'x'.join(map(str, self.event_shape))}"


def _precise(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def further(deeper: Sequence[nn.Module] | nn.ModuleList) -> dict[str, Any]:
    """Of several stochastic layers, the estimators of all but the first as the argument of an objective that it is;
    nothing where there are none, since an objective of one's own may not know of it."""
    return {"deeper": deeper} if len(deeper) else {}


class Discrete(Latent):
    """Discrete variables of one shape, in one stochastic layer or several.

    With T layers: p(x|z_1) p(z_1|z_2) ... p(z_T-1|z_T) p(z_T) and q(z_1|x) q(z_2|z_1) ... q(z_T|z_T-1). Where the
    variables are binary, that is a sigmoid belief network (Neal 1992; Mnih and Gregor 2014, arXiv 1402.0030). Between
    two layers is one network each way.

    Args:
        shape: of a sample of one layer, and of its logits.
        layers: T.
        hidden: sizes of the hidden layers of the networks between two stochastic layers; none: linear.
        activation: between them.
        seen_shape: what networks see of a sample of one layer; None: its own.
    """

    prior_logits: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        layers: int,
        hidden: Sequence[int],
        activation: str,
        seen_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        _positive(layers=layers)
        self.layers, self.layer_shape, self.seen_shape = layers, shape, seen_shape or shape
        self.event_shape = shape if layers == 1 else (layers, *shape)
        self.feature_size = math.prod(shape)
        self.register_buffer("prior_logits", torch.zeros(shape), persistent=False)
        networks = [MLPEncoder(self.seen_shape, self.feature_size, hidden, activation) for _ in range(2 * layers - 2)]
        self.upward, self.downward = nn.ModuleList(networks[: layers - 1]), nn.ModuleList(networks[layers - 1 :])

    @abstractmethod
    def variables(self, logits: Tensor) -> Distribution:
        """Independent variables with these logits, (*, *layer_shape)."""

    def values(self, z: Tensor) -> Tensor:
        """What networks see of a layer, (*, *layer_shape) -> (*, *seen_shape)."""
        return z

    def inputs(self, z: Tensor) -> Tensor:
        """The values of z_1, (S, B, *seen_shape), of all layers, (S, B, *event), or of z_1 alone."""
        layered = self.layers > 1 and z.ndim - 2 == len(self.event_shape)
        return self.values(z.select(2, 0) if layered else z)

    @property
    def size(self) -> int:
        """Number of inputs of the decoder, which sees z_1."""
        return math.prod(self.seen_shape)

    def given(self, network: nn.Module, z: Tensor) -> Distribution:
        """The distribution of a layer given its neighbor z (*, *layer_shape); logits in at least float32."""
        batch = z.shape[: z.ndim - len(self.layer_shape)]
        seen = self.values(z).reshape(-1, *self.seen_shape).to(next(network.parameters()).dtype)
        logits = _precise(network(seen))
        return self.variables(logits.reshape(*batch, *self.layer_shape))

    def posterior(self, features: Tensor) -> Distribution:
        """(B, feature_size) logits of z_1, those of a variable side by side; of several layers a `Chain`."""
        start = self.variables(features.unflatten(-1, self.layer_shape))
        return Chain(start, [partial(self.given, n) for n in self.upward]) if self.layers > 1 else start

    def prior(self, top: Distribution | None = None) -> Distribution:
        """Every state of the top layer alike.

        Args:
            top: another p(z_T), batch shape ().
        """
        top = self.variables(self.prior_logits) if top is None else top
        steps = [partial(self.given, network) for network in reversed(self.downward)]
        return Chain(top, steps, downward=True) if steps else top

    def describe(self) -> str:
        """As "3 layers of 200 binary variables"."""
        return f"{self.layers} layers of {self.describe_layer()}" if self.layers > 1 else self.describe_layer()

    @abstractmethod
    def describe_layer(self) -> str:
        """What a sample of one layer is, in words."""


EMBEDDINGS = ("one_hot", "integer")
"""What the networks see of a categorical variable: its one-hot vector, or the number of its class."""


class Categorical(Discrete):
    """`variables` independent one-hot variables of `classes` classes; uniform prior. Event (L, C), or (T, L, C).

    Args:
        embedding: "integer": decoder and networks between layers see the class k as one number, k / (C - 1), which is
            in [0, 1] and linear in z; samples stay one-hot.
    """

    numbers: Tensor

    def __init__(
        self,
        variables: int = 30,
        classes: int = 10,
        layers: int = 1,
        hidden: Sequence[int] = (),
        activation: str = "tanh",
        embedding: str = "one_hot",
    ) -> None:
        _positive(variables=variables, classes=classes)
        if embedding not in EMBEDDINGS:
            raise ValueError(f"embedding must be one of {', '.join(EMBEDDINGS)}; got {embedding!r}")
        seen_shape = (variables,) if embedding == "integer" else None
        super().__init__((variables, classes), layers, hidden, activation, seen_shape)
        self.integer = embedding == "integer"
        if self.integer:
            self.register_buffer("numbers", torch.linspace(0, 1, classes), persistent=False)

    def variables(self, logits: Tensor) -> Distribution:
        """(*, L, C) -> event (L, C)."""
        return Independent(one_hot_categorical(logits), 1, validate_args=False)

    def values(self, z: Tensor) -> Tensor:
        """z, or (*, L, C) -> (*, L), the number of each variable's class over C - 1."""
        return z @ self.numbers.to(z.dtype) if self.integer else z

    def describe_layer(self) -> str:
        """As "30 variables of 10 classes"."""
        return f"{self.layer_shape[0]} variables of {self.layer_shape[1]} classes"


VALUES = ("bits", "signs")
"""What the networks see of a binary variable: 0 and 1, or -1 and 1."""


class Bernoulli(Discrete):
    """`variables` independent binary variables; prior Bernoulli(1/2). Event (L,), or (T, L); samples are 0 and 1.

    Args:
        values: "signs": decoder and networks between layers see 2z - 1, which is -1 and 1; samples stay 0 and 1.
    """

    def __init__(
        self,
        variables: int = 200,
        layers: int = 1,
        hidden: Sequence[int] = (),
        activation: str = "tanh",
        values: str = "bits",
    ) -> None:
        _positive(variables=variables)
        if values not in VALUES:
            raise ValueError(f"values must be one of {', '.join(VALUES)}; got {values!r}")
        super().__init__((variables,), layers, hidden, activation)
        self.signs = values == "signs"

    def variables(self, logits: Tensor) -> Distribution:
        """(*, L) -> event (L,)."""
        return Independent(distributions.Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)

    def values(self, z: Tensor) -> Tensor:
        """z, or 2z - 1."""
        return 2 * z - 1 if self.signs else z

    def describe_layer(self) -> str:
        """As "200 binary variables"."""
        return f"{self.layer_shape[0]} binary variables"


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
