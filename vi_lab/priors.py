"""Priors p(z): fixed, or learned with the rest of the model as a part of the bound.

A prior maps the latent and the model's posterior to a distribution with batch shape (). With several stochastic layers
it is that of the top one. Where no closed form is known for KL(q || p), the bound takes log q - log p at the samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, distributions, nn
from torch.distributions import Distribution, Independent, MixtureSameFamily, register_kl
from torch.nn import functional as F

from vi_lab.distributions import NearestCode, one_hot
from vi_lab.latents import VQ, Bernoulli, Discrete, Gaussian, Latent


class Prior(nn.Module, ABC):
    """Of your own: `__init__(latent, shape, ...)`, where `shape` is that of an image, and `forward`."""

    def __init__(self, latent: Latent, shape: Sequence[int]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, latent: Latent, posterior: Callable[[Tensor], Distribution]) -> Distribution:
        """p(z), batch shape (). posterior: x (B, *shape) -> q(z|x)."""


def _need(latent: Latent, kinds: type | tuple[type, ...], prior: Prior, wanted: str) -> None:
    if not isinstance(latent, kinds):
        raise TypeError(f"the prior {type(prior).__name__} needs {wanted}, got a {type(latent).__name__} latent")


class Fixed(Prior):
    """The latent's own: uniform, or standard normal."""

    def forward(self, latent: Latent, posterior: Callable[[Tensor], Distribution]) -> Distribution:
        """Without parameters."""
        return latent.prior()


class Factorized(Prior):
    """Independent discrete variables, each with probabilities of its own; uniform at the start.

    p(z) = prod_l p_l(z_l), log p_l = log_softmax of free parameters
    """

    def __init__(self, latent: Latent, shape: Sequence[int]) -> None:
        super().__init__(latent, shape)
        _need(latent, (Discrete, VQ), self, "a discrete latent")
        self.logits = nn.Parameter(torch.zeros(_table(latent)))

    def forward(self, latent: Latent, posterior: Callable[[Tensor], Distribution]) -> Distribution:
        """Of codes where the latent is a codebook."""
        if isinstance(latent, VQ):
            return IndependentCodes(latent.codebook, self.logits)
        assert isinstance(latent, Discrete)
        return latent.prior(latent.variables(self.logits))


def _table(latent: Latent) -> tuple[int, ...]:
    """(L, C) or (L,): the shape of a layer's logits."""
    if isinstance(latent, VQ):
        return latent.event_shape[0], len(latent.codebook)
    assert isinstance(latent, Discrete)
    return latent.layer_shape


class Mixture(Prior):
    """A mixture of diagonal Gaussians with learned weights, means and scales, for a Gaussian latent.

    p(z) = sum_k w_k N(z; m_k, s_k^2)

    Args:
        components: K.
    """

    def __init__(self, latent: Latent, shape: Sequence[int], components: int = 50) -> None:
        super().__init__(latent, shape)
        _need(latent, Gaussian, self, "a Gaussian latent")
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.randn(components, *latent.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(components, *latent.event_shape))

    def forward(self, latent: Latent, posterior: Callable[[Tensor], Distribution]) -> Distribution:
        """Event (D,)."""
        normal = distributions.Normal(self.mean, self.log_scale.exp(), validate_args=False)
        return mixture(self.logits, Independent(normal, 1, validate_args=False))


class VampPrior(Prior):
    """The mixture of the posteriors of learned pseudo-inputs u_k, for a Gaussian latent.

    p(z) = 1/K sum_k q(z|u_k)

    Tomczak and Welling 2018 (arXiv 1705.07120). The encoder learns through it, too. Departure: the pixels of the
    pseudo-inputs are sigmoids of free parameters, where the paper cuts them off at 0 and 1.

    Args:
        components: K.
    """

    def __init__(self, latent: Latent, shape: Sequence[int], components: int = 500) -> None:
        super().__init__(latent, shape)
        _need(latent, Gaussian, self, "a Gaussian latent")
        self.inputs = nn.Parameter(torch.randn(components, *shape))

    def forward(self, latent: Latent, posterior: Callable[[Tensor], Distribution]) -> Distribution:
        """Event (D,)."""
        return mixture(self.inputs.new_zeros(len(self.inputs)), posterior(self.inputs.sigmoid()))


def mixture(logits: Tensor, components: Distribution) -> Distribution:
    """The mixture, batch shape (), of components with batch shape (K,) by logits (K,)."""
    weights = distributions.Categorical(logits=logits, validate_args=False)
    return MixtureSameFamily(weights, components, validate_args=False)


class Autoregressive(Prior):
    """Each discrete variable given those before it, by a recurrent network.

    p(z) = prod_l p(z_l | z_1 ... z_l-1),  log p(z_l | ...) = log_softmax(W h_l + b_l),  h_l = GRU(h_l-1, E z_l-1)

    b_l alone is the `Factorized` prior. With vector quantization it is the second stage of van den Oord et al. 2017
    (arXiv 1711.00937): the codes carry no gradient to the encoder, so that fitting it along with the autoencoder
    changes nothing else, and what is evaluated at the end is a bound on log p(x). Departures: they fit a PixelCNN over
    a map of codes, and after the autoencoder. With other discrete latents it is learned as a part of the bound, and
    extended to relaxed samples through E z.

    Args:
        size: of the embeddings and of the recurrent state.
    """

    def __init__(self, latent: Latent, shape: Sequence[int], size: int = 128) -> None:
        super().__init__(latent, shape)
        _need(latent, (Discrete, VQ), self, "a discrete latent")
        variables, *classes = _table(latent)
        states = classes[0] if classes else 1
        self.bias = nn.Parameter(torch.zeros(variables, states))
        self.embedding = nn.Linear(states, size, bias=False)
        self.recurrent = nn.GRU(size, size, batch_first=True)
        self.readout = nn.Linear(size, states, bias=False)
        nn.init.zeros_(self.readout.weight)  # uniform at the start

    def logits(self, z: Tensor) -> Tensor:
        """Of each variable given those before it, for z (N, L, K) of ones and zeros or relaxed: (N, L, K)."""
        before = self.embedding(z[:, :-1].to(self.bias.dtype))
        start = before.new_zeros(len(z), 1, before.shape[-1])
        with torch.backends.cudnn.flags(enabled=False):  # which knows no second derivative, nor one in evaluation mode
            states, _ = self.recurrent(torch.cat([start, before], 1))
        logits = self.readout(states) + self.bias
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def draw(self, count: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """`count` samples, variable after variable: (N, L, K). choose: logits (N, K) -> a state (N, K)."""
        state, last, drawn = None, self.bias.new_zeros(count, 1, self.recurrent.input_size), []
        for bias in self.bias:
            hidden, state = self.recurrent(last, state)
            drawn.append(choose(self.readout(hidden[:, 0]) + bias).to(self.bias.dtype))
            last = self.embedding(drawn[-1])[:, None]
        return torch.stack(drawn, 1)

    def forward(self, latent: Latent, posterior: Callable[[Tensor], Distribution]) -> Distribution:
        """Of codes where the latent is a codebook."""
        if isinstance(latent, VQ):
            return AutoregressiveCodes(latent.codebook, self)
        assert isinstance(latent, Discrete)
        return latent.prior(Sequential(self, latent.layer_shape, isinstance(latent, Bernoulli)))


class Sequential(Distribution):
    """One layer of discrete variables in their order, by an `Autoregressive` network; log_prob is differentiable at
    relaxed samples too.

    Args:
        network: logits of each variable given those before it.
        shape: (L, C) or (L,), the event's.
        binary: whether the network knows a variable by one logit.
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, network: Autoregressive, shape: tuple[int, ...], binary: bool) -> None:
        self.network, self.binary = network, binary
        super().__init__(torch.Size(), torch.Size(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """(*, L, C) or (*, L) -> (*) in nats."""
        table = value.unsqueeze(-1) if self.binary else value
        batch = table.shape[:-2]
        logits = self.network.logits(table.reshape(-1, *table.shape[-2:])).reshape(table.shape)
        nats = table * logits - F.softplus(logits) if self.binary else table * logits.log_softmax(-1)
        return nats.sum((-1, -2)).reshape(batch)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """(*sample_shape, *event) from the default generator, without gradient."""
        shape = torch.Size(sample_shape)
        return self.network.draw(shape.numel(), self._choose).reshape(*shape, *self.event_shape)

    def _choose(self, logits: Tensor) -> Tensor:
        if self.binary:
            return torch.bernoulli(logits.sigmoid())
        return one_hot(torch.multinomial(logits.softmax(-1), 1)[:, 0], logits.shape[-1], logits.dtype)


class Codes(Distribution, ABC):
    """A distribution over vectors of codes (L, D) of a codebook (K, D)."""

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, codebook: Tensor, variables: int) -> None:
        self.codebook = codebook
        super().__init__(torch.Size(), torch.Size((variables, codebook.shape[-1])), validate_args=False)

    @abstractmethod
    def log_prob_of(self, index: Tensor) -> Tensor:
        """Which code each variable has, (N, L) -> (N,) in nats."""

    @abstractmethod
    def draw(self, count: int) -> Tensor:
        """(N, L) which code each variable has."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of a probability: that of the codes nearest to `value` (*, L, D)."""
        index = torch.cdist(value.detach().flatten(0, -2), self.codebook.detach()).argmin(-1)
        return self.log_prob_of(index.reshape(-1, value.shape[-2])).reshape(value.shape[:-2])

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """(*sample_shape, L, D) from the default generator, without gradient."""
        shape = torch.Size(sample_shape)
        return self.codebook[self.draw(shape.numel())].reshape(*shape, *self.event_shape)


class IndependentCodes(Codes):
    """Each variable by its row of logits (L, K)."""

    def __init__(self, codebook: Tensor, logits: Tensor) -> None:
        self.log_probs = logits.log_softmax(-1)
        super().__init__(codebook, len(logits))

    def log_prob_of(self, index: Tensor) -> Tensor:
        """The sum over variables."""
        return self.log_probs.expand(len(index), -1, -1).gather(-1, index[..., None]).sum((-1, -2))

    def draw(self, count: int) -> Tensor:
        """Independently."""
        return torch.multinomial(self.log_probs.exp(), count, replacement=True).T


class AutoregressiveCodes(Codes):
    """The codes in the order of the variables, by an `Autoregressive` network."""

    def __init__(self, codebook: Tensor, network: Autoregressive) -> None:
        self.sequence = Sequential(network, tuple(network.bias.shape), binary=False)
        super().__init__(codebook, len(network.bias))

    def log_prob_of(self, index: Tensor) -> Tensor:
        """Given those before."""
        return self.sequence.log_prob(one_hot(index, len(self.codebook), self.codebook.dtype))

    def draw(self, count: int) -> Tensor:
        """One after the other."""
        return self.sequence.sample((count,)).argmax(-1)


@register_kl(NearestCode, Codes)
def _kl_nearest_codes(q: NearestCode, p: Codes) -> Tensor:
    """-log p of the codes: the posterior is certain. No gradient reaches the encoding."""
    return -p.log_prob_of(q.index)
