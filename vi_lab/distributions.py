"""What the estimators need of a posterior q(z|x) beyond `torch.distributions`.

q is `Independent(OneHotCategorical, 1)` with event (L, C), `Independent(Bernoulli, 1)` with event (L,),
`Independent(Normal, 1)` with event (D,), or `NearestCode` with event (L, D). Samples come first, batch second, event
last: (S, B, *event).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal, OneHotCategorical, register_kl
from torch.distributions import kl_divergence as torch_kl_divergence
from torch.nn import functional as F


def base(q: Distribution) -> Distribution:
    """The per-variable distribution under `Independent`."""
    return q.base_dist if isinstance(q, Independent) else q


def discrete(q: Distribution, method: str) -> Distribution:
    """The base of a categorical or Bernoulli `q`.

    Raises:
        TypeError: `q` is something else; `method` names who asked.
    """
    b = base(q)
    if not isinstance(b, (OneHotCategorical, Bernoulli)):
        raise TypeError(
            f"{method} needs a discrete posterior (OneHotCategorical or Bernoulli, under Independent), "
            f"got {type(b).__name__}"
        )
    return b


def gumbel_like(x: Tensor, samples: int) -> Tensor:
    """Standard Gumbel noise, (samples, *x.shape): -log of an Exponential(1) draw, exact in both tails."""
    return -torch.empty((samples, *x.shape), dtype=x.dtype, device=x.device).exponential_().log_()


def logistic_like(x: Tensor, samples: int) -> Tensor:
    """Standard logistic noise, (samples, *x.shape): the difference of two Gumbels."""
    return gumbel_like(x, samples).sub_(gumbel_like(x, samples))


def one_hot_argmax(x: Tensor) -> Tensor:
    """One-hot of the largest entry along the last axis, in x's shape and dtype."""
    return torch.zeros_like(x).scatter_(-1, x.argmax(-1, keepdim=True), 1.0)


@torch.no_grad()
def sample(q: Distribution, samples: int) -> Tensor:
    """Draws from the true `q` without gradient: (samples, B, *event). Gumbel-argmax for categoricals."""
    b = base(q)
    if isinstance(b, OneHotCategorical):
        return one_hot_argmax(b.logits + gumbel_like(b.logits, samples))
    if isinstance(b, Bernoulli):
        return (b.logits + logistic_like(b.logits, samples) > 0).to(b.logits.dtype)
    return q.sample((samples,))


def relaxed_sample(q: Distribution, temperature: Tensor | float, samples: int) -> Tensor:
    """Differentiable draws of the Concrete relaxation of `q` (Maddison et al. 2017): (samples, B, *event).

    Categorical: softmax((logits + Gumbel) / tau). Bernoulli: sigmoid((logits + Logistic) / tau).
    """
    b = discrete(q, "a relaxation")
    if isinstance(b, OneHotCategorical):
        return ((b.logits + gumbel_like(b.logits, samples)) / temperature).softmax(-1)
    return ((b.logits + logistic_like(b.logits, samples)) / temperature).sigmoid()


def log_relaxed_sample(q: Distribution, temperature: Tensor | float, samples: int) -> Tensor:
    """`relaxed_sample` where neither 0 nor 1 is ever reached, (samples, B, *event): log z, or logit z for Bernoulli."""
    b = discrete(q, "a relaxation")
    if isinstance(b, OneHotCategorical):
        return ((b.logits + gumbel_like(b.logits, samples)) / temperature).log_softmax(-1)
    return (b.logits + logistic_like(b.logits, samples)) / temperature


def relaxed_log_prob(q: Distribution, temperature: Tensor, y: Tensor) -> Tensor:
    """Log density of `log_relaxed_sample` at y: ExpConcrete, or binary Concrete in logit space. (S, B) in nats.

    With scores s = logits - tau * y (Maddison et al. 2017): log (C-1)! + (C-1) log tau + sum_c s_c - C logsumexp(s)
    per categorical variable, log tau + s - 2 log(1 + e^s) per binary one.
    """
    b = discrete(q, "a relaxation")
    scores = b.logits - temperature * y
    if isinstance(b, OneHotCategorical):
        classes = scores.shape[-1]
        density = scores.sum(-1) - classes * scores.logsumexp(-1)  # (S, B, L)
        return (density + math.lgamma(classes) + (classes - 1) * temperature.log()).sum(-1)
    return (temperature.log() + scores - 2 * F.softplus(scores)).sum(-1)


def harden(q: Distribution, relaxed: Tensor) -> Tensor:
    """The vertex nearest to a relaxed sample: a true sample of `q`, since the noise is shared. No gradient."""
    relaxed = relaxed.detach()
    return one_hot_argmax(relaxed) if isinstance(base(q), OneHotCategorical) else (relaxed > 0.5).to(relaxed.dtype)


def log_prob(q: Distribution, z: Tensor) -> Tensor:
    """log q(z) in nats, (S, B), for z of (S, B, *event).

    For the discrete families the formula is the one linear in z (sum of z * log p), which equals log q at every
    vertex and extends to relaxed z, where `torch.distributions` would take an argmax and lose the gradient.
    """
    b = base(q)
    if isinstance(b, OneHotCategorical):
        return (z * b.logits).sum((-1, -2))
    if isinstance(b, Bernoulli):
        return (z * b.logits - F.softplus(b.logits)).sum(-1)
    return q.log_prob(z)


def kl_divergence(q: Distribution, p: Distribution) -> Tensor:
    """KL(q || p) in nats, (B,), for q and p of one family.

    The discrete log q is linear in z here, so its expectation is its value at the mean: E_q[log q - log p] needs no
    sum of its own. (`torch.distributions` masks zero probabilities besides, at twice the time.)
    """
    if isinstance(base(q), (OneHotCategorical, Bernoulli)):
        return log_prob(q, q.mean) - log_prob(p, q.mean)
    return torch_kl_divergence(q, p)


def number_of_states(q: Distribution) -> int:
    """Size of the joint support of a discrete `q`: C^L or 2^L."""
    b = discrete(q, "enumeration")
    variables = q.event_shape[0]
    return (q.event_shape[1] if isinstance(b, OneHotCategorical) else 2) ** variables


def enumerate_support(q: Distribution) -> Tensor:
    """All joint states of a discrete `q`: (N, *event)."""
    b = discrete(q, "enumeration")
    variables = q.event_shape[0]
    classes = q.event_shape[1] if isinstance(b, OneHotCategorical) else 2
    index = torch.arange(classes**variables, device=b.logits.device)
    digits = index[:, None] // classes ** torch.arange(variables, device=index.device) % classes  # (N, L)
    if isinstance(b, OneHotCategorical):
        return F.one_hot(digits, classes).to(b.logits.dtype)
    return digits.to(b.logits.dtype)


def gaussian(q: Distribution, method: str) -> Normal:
    """The base of a Gaussian `q`.

    Raises:
        TypeError: `q` is something else; `method` names who asked.
    """
    b = base(q)
    if not isinstance(b, Normal):
        raise TypeError(f"{method} needs a Gaussian posterior (Normal, under Independent), got {type(b).__name__}")
    return b


def bernoulli(q: Distribution, method: str) -> Bernoulli:
    """The base of a Bernoulli `q`.

    Raises:
        TypeError: `q` is something else; `method` names who asked.
    """
    b = base(q)
    if not isinstance(b, Bernoulli):
        raise TypeError(f"{method} needs a Bernoulli posterior (under Independent), got {type(b).__name__}")
    return b


def categorical(q: Distribution, method: str) -> OneHotCategorical:
    """The base of a categorical `q`.

    Raises:
        TypeError: `q` is something else; `method` names who asked.
    """
    b = base(q)
    if not isinstance(b, OneHotCategorical):
        raise TypeError(f"{method} needs a OneHotCategorical posterior (under Independent), got {type(b).__name__}")
    return b


class NearestCode(Distribution):
    """The posterior of vector quantisation: each variable is, with certainty, the code nearest to its encoding.

    Args:
        encoding: (B, L, D) the encoder's output.
        codebook: (K, D), shared by the variables.
    """

    def __init__(self, encoding: Tensor, codebook: Tensor) -> None:
        self.encoding, self.codebook = encoding, codebook
        # (B, L) which code; distances stay in full precision, as near ties decide
        self.index = torch.cdist(encoding.detach(), codebook.detach()).argmin(-1)
        self.codes = codebook[self.index]  # (B, L, D), with gradient to the codebook and none to the encoding
        super().__init__(encoding.shape[:1], encoding.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.codes

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        return self.codes.expand(*sample_shape, *self.codes.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of a probability, not of a density: 0 at the codes, -inf elsewhere."""
        return torch.where((value == self.codes).flatten(-2).all(-1), 0.0, -torch.inf).to(self.codes.dtype)


class UniformCodes(Distribution):
    """`variables` independent draws from a codebook (K, D), each code as likely as the others: event (L, D)."""

    def __init__(self, codebook: Tensor, variables: int) -> None:
        self.codebook = codebook
        super().__init__((), (variables, codebook.shape[-1]), validate_args=False)

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        size = (*sample_shape, self.event_shape[0])
        return self.codebook[torch.randint(len(self.codebook), size, device=self.codebook.device)]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of a probability: -L log K wherever `value` holds codes, which is not checked."""
        return value.new_full(value.shape[:-2], -self.event_shape[0] * math.log(len(self.codebook)))


@register_kl(NearestCode, UniformCodes)
def _kl_nearest_uniform(q: NearestCode, p: UniformCodes) -> Tensor:
    """L log K: the posterior is certain, whatever it encodes."""
    return q.codes.new_full(q.batch_shape, p.event_shape[0] * math.log(len(p.codebook)))


def nearest_code(q: Distribution, method: str) -> NearestCode:
    """`q` itself, if it is a `NearestCode`.

    Raises:
        TypeError: `q` is something else; `method` names who asked.
    """
    if not isinstance(q, NearestCode):
        raise TypeError(f"{method} needs a NearestCode posterior (latent=vq), got {type(base(q)).__name__}")
    return q
