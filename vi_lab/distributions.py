"""What the estimators need of a posterior q(z|x) beyond `torch.distributions`.

q is `Independent(OneHotCategorical, 1)` with event (L, C), `Independent(Bernoulli, 1)` with event (L,),
`Independent(Normal, 1)` with event (D,), or `NearestCode` with event (L, D); or, of several stochastic layers, a
`Chain` of the first two. Samples come first, batch second, event last: (S, B, *event).

Any other distribution is taken as torch has it: `base`, `log_prob`, `sample` and `kl_divergence` work for it,
the KL where `torch.distributions.register_kl` knows one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Normal,
    OneHotCategorical,
    register_kl,
)
from torch.distributions import kl_divergence as torch_kl_divergence
from torch.distributions.utils import lazy_property
from torch.nn import functional as F

from vi_lab import noise
from vi_lab.seeding import seed_noise

_GENERATOR = threading.Lock()  # held while the default generator is seeded and drawn from


def softmax(x: Tensor) -> Tensor:
    """softmax along the last axis. On a CPU torch's own takes four times as long where rows are as short as here."""
    return (x - x.logsumexp(-1, keepdim=True)).exp() if x.device.type == "cpu" else x.softmax(-1)


class _Categorical(Categorical):
    """One that knows that its logits are normalized."""

    @lazy_property
    def probs(self) -> Tensor:
        return self.logits.exp()


def one_hot_categorical(logits: Tensor) -> OneHotCategorical:
    """`OneHotCategorical(logits=logits)` without any check of the values.

    With `validate_args=False` its inner Categorical checks them all the same, which costs a copy to the host in every
    step on a GPU. Logits that are not finite show up in the loss, which is watched.
    """
    inner = _Categorical(logits=logits, validate_args=False)
    outer = OneHotCategorical.__new__(OneHotCategorical)
    outer._categorical = inner
    Distribution.__init__(outer, inner.batch_shape, inner.param_shape[-1:], validate_args=False)
    return outer


def base(q: Distribution) -> Distribution:
    """The per-variable distribution under `Independent`."""
    return q.base_dist if isinstance(q, Independent) else q


def _discrete(q: Distribution) -> OneHotCategorical | Bernoulli | None:
    """The base of a `q` with event (L, C) or (L,), of which the formulas here hold; None of any other."""
    b = base(q)
    if isinstance(b, (OneHotCategorical, Bernoulli)) and len(q.event_shape) == len(b.event_shape) + 1:
        return b
    return None


def first(q: Distribution) -> Distribution:
    """Of a `Chain` the layer next to the image; any other `q` itself."""
    return q.start if isinstance(q, Chain) else q


def discrete(q: Distribution, method: str) -> OneHotCategorical | Bernoulli:
    """The base of a categorical or Bernoulli `q`.

    Raises:
        TypeError: `q` is something else; `method` names who asked.
    """
    b = _discrete(q)
    if b is None:
        raise TypeError(
            f"{method} needs a discrete posterior (OneHotCategorical or Bernoulli, under Independent), "
            f"got {type(base(q)).__name__} with event shape {tuple(q.event_shape)}"
        )
    return b


def gumbel_like(x: Tensor, samples: int) -> Tensor:
    """Standard Gumbel noise, (samples, *x.shape): -log of an Exponential(1) draw, exact in both tails."""
    return -noise.exponential((samples, *x.shape), x).log()


def logistic_like(x: Tensor, samples: int) -> Tensor:
    """Standard logistic noise, (samples, *x.shape): the difference of two Gumbels."""
    return gumbel_like(x, samples) - gumbel_like(x, samples)


def one_hot(index: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(*) -> (*, classes). `F.one_hot` reads the indices on the host, which waits for a GPU and cannot be batched."""
    return (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).to(dtype)


def one_hot_argmax(x: Tensor) -> Tensor:
    """One-hot of the largest entry along the last axis, in x's shape and dtype."""
    return torch.zeros_like(x).scatter(-1, x.argmax(-1, keepdim=True), 1.0)


def standard_noise(q: Distribution, samples: int) -> Tensor:
    """The noise that makes logits into samples of a discrete `q`: Gumbel for categoricals, Logistic for Bernoullis."""
    b = discrete(q, "a perturbation of the logits")
    return (gumbel_like if isinstance(b, OneHotCategorical) else logistic_like)(b.logits, samples)


def perturbed_logits(q: Distribution, samples: int) -> Tensor:
    """logits + noise of a discrete `q`, differentiable: (samples, B, *event). Its vertex is a sample of `q`."""
    return discrete(q, "a perturbation of the logits").logits + standard_noise(q, samples)


def vertex(q: Distribution, perturbed: Tensor) -> Tensor:
    """The sample of a discrete `q` that perturbed logits select: their argmax, or their sign. No gradient."""
    perturbed = perturbed.detach()
    return one_hot_argmax(perturbed) if isinstance(base(q), OneHotCategorical) else (perturbed > 0).to(perturbed.dtype)


def probabilities(q: Distribution, logits: Tensor) -> Tensor:
    """Logits of q's family to probabilities: softmax, or sigmoid."""
    return softmax(logits) if isinstance(base(q), OneHotCategorical) else logits.sigmoid()


def times_jacobian(q: Distribution, p: Tensor) -> Tensor:
    """J(p) @ logits, linear in q's logits: its derivative is the one that softmax, or sigmoid, has at the value `p`.

    J(p) = diag(p) - p p^T for categoricals, p (1 - p) for Bernoullis; no gradient through p.
    """
    b, p = discrete(q, "the Jacobian of the probabilities"), p.detach()
    logits = b.logits
    if isinstance(b, OneHotCategorical):
        return p * (logits - (p * logits).sum(-1, keepdim=True))
    return p * (1 - p) * logits


def midpoint_logits(q: Distribution, z: Tensor) -> Tensor:
    """Logits of (p + z) / 2, halfway from a discrete `q` to the vertices `z`, without gradient.

    Categorical: log probabilities. Taken in log space, so that they are finite where p underflows.
    """
    b = discrete(q, "a midpoint")
    logits = b.logits.detach()
    if isinstance(b, OneHotCategorical):
        return torch.where(z.bool(), logits.exp().log1p(), logits) - math.log(2)
    sign = 2 * z - 1
    return sign * ((sign * logits).sigmoid().log1p() - F.logsigmoid(-sign * logits))


def from_logits(q: Distribution, logits: Tensor) -> Distribution:
    """The discrete posterior of q's family with these logits."""
    if isinstance(base(q), OneHotCategorical):
        return Independent(one_hot_categorical(logits), 1, validate_args=False)
    return Independent(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)


def tied_conditional(q: Distribution, z: Tensor) -> Tensor:
    """A draw of the perturbed logits given their vertex k, with the noise for which it equals the draw `z` itself:
    the value of `z`, the gradient of the conditional sampler.

    Given k, a Gumbel-perturbed z has a maximum -log E_k that does not depend on the (normalized) logits, and below it
    z_i = -log(E_k + E_i / p_i), E ~ Exponential(1) (Maddison et al. 2014). With E held fixed,

        dz_k/dlogits = 0,  dz_i/dlogits_i = (E_i / p_i) / (E_k + E_i / p_i) = 1 - exp(z_i - z_k).

    A Bernoulli's z with sign s is s * softplus(l + softplus(s * logit)), l ~ Logistic; with l held fixed,

        dz/dlogit = (1 - exp(-|z|)) * sigmoid(s * logit).
    """
    logits = discrete(q, "a conditional perturbation").logits
    with torch.no_grad():
        if isinstance(base(q), OneHotCategorical):
            slope = -torch.expm1(z - z.amax(-1, keepdim=True))
        else:
            slope = -torch.expm1(-z.abs()) * torch.where(z > 0, logits, -logits).sigmoid()
    return z.detach() + slope * (logits - logits.detach())


@torch.no_grad()
def sample(q: Distribution, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws from the true `q` without gradient: (samples, B, *event).

    A discrete variable takes one uniform number, which is looked up in its cumulative probabilities, in place of a
    Gumbel per class: a sixth of the time.

    Args:
        generator: None is the default one. A distribution that is none of ours draws from that in any case: it is
            seeded for it and then left as it was.
    """
    known = base(q)
    if isinstance(known, NearestCode):
        return known.sample((samples,))
    if isinstance(known, Chain):
        return known.draw(samples, generator)
    if isinstance(known, Normal):
        return known.loc + known.scale * noise.normal((samples, *known.loc.shape), known.loc, generator)
    b = _discrete(q)
    if b is None:
        return _sample_seeded(q, samples, generator)
    # u in (0, 1]: no outcome of probability 0 lies below u, none above it either
    if isinstance(b, Bernoulli):
        return (1 - noise.uniform((samples, *b.logits.shape), b.logits, generator) <= b.probs).to(b.logits)
    u = 1 - noise.uniform((samples, *b.logits.shape[:-1], 1), b.logits, generator)
    cumulative = b.probs.to(u.dtype).cumsum(-1)  # (B, L, C)
    # times the total, which rounding moves off 1: the last classes take no more than their own share
    below = (u * cumulative[..., -1:] <= cumulative).to(b.logits)  # 0 ... 0 1 ... 1 over the classes
    return torch.cat([below[..., :1], below.diff(dim=-1)], -1)  # 1 where it steps up


def _sample_seeded(q: Distribution, samples: int, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return q.sample((samples,))
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    devices = [generator.device] if generator.device.type == "cuda" else []
    with _GENERATOR, torch.random.fork_rng(devices):
        seed_noise(generator.device, seed)
        return q.sample((samples,))


def perplexity(probabilities: Tensor) -> Tensor:
    """exp(entropy) along the last axis: (..., K) -> (...), from 1 (one state only) to K (all alike)."""
    return torch.special.entr(probabilities).sum(-1).exp()


def relaxed_sample(q: Distribution, temperature: Tensor | float, samples: int) -> Tensor:
    """Differentiable draws of the Concrete relaxation of `q` (Maddison et al. 2017): (samples, B, *event).

    Categorical: softmax((logits + Gumbel) / tau). Bernoulli: sigmoid((logits + Logistic) / tau).
    """
    return probabilities(q, perturbed_logits(q, samples) / temperature)


@torch.no_grad()
def conditional_perturbed_logits(q: Distribution, logits: Tensor, z: Tensor, samples: int) -> Tensor:
    """Draws of logits + noise given that they select the vertex `z`: (samples, *z.shape). No gradient.

    Categorical: the largest of log p + Gumbel is T ~ Gumbel whichever class it falls on, and the others are Gumbels
    cut off at T (Maddison et al. 2014), which lie softplus(T - g - log p) below it, g ~ Gumbel.
    Bernoulli: the difference of the two classes of that, with the sign of the sample.

    Args:
        q: says the family only.
        logits: of that family, broadcastable to z; log probabilities where it is categorical.
        z: (..., *event) the vertices.
    """
    if isinstance(base(q), OneHotCategorical):
        gumbels = gumbel_like(z, samples)
        top = (gumbels * z).sum(-1, keepdim=True)
        return top - (1 - z) * F.softplus(top - gumbels - logits)
    sign = 2 * z - 1
    return sign * F.softplus(logistic_like(z, samples) - F.logsigmoid(-sign * logits))


def log_relaxed_sample(q: Distribution, temperature: Tensor | float, samples: int) -> Tensor:
    """`relaxed_sample` where neither 0 nor 1 is ever reached, (samples, B, *event): log z, or logit z for Bernoulli."""
    y = perturbed_logits(q, samples) / temperature
    return y.log_softmax(-1) if isinstance(base(q), OneHotCategorical) else y


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


def log_prob(q: Distribution, z: Tensor) -> Tensor:
    """log q(z) in nats, (S, B), for z of (S, B, *event).

    For the discrete families the formula is the one linear in z (sum of z * log p), which equals log q at every
    vertex and extends to relaxed z, where `torch.distributions` would take an argmax and lose the gradient.
    """
    b = _discrete(q)
    if isinstance(b, OneHotCategorical):
        return (z * b.logits).sum((-1, -2))
    if isinstance(b, Bernoulli):
        return (z * b.logits - F.softplus(b.logits)).sum(-1)
    return q.log_prob(z)


def kl_divergence(q: Distribution, p: Distribution) -> Tensor:
    """KL(q || p) in nats, (B,), for q and p of one discrete family, or for types that torch has a KL for.

    The discrete log q is linear in z here, so its expectation is its value at the mean: E_q[log q - log p] needs no
    sum of its own. (`torch.distributions` masks zero probabilities besides, at twice the time.)

    Raises:
        NotImplementedError: no KL is known for the two types.
        ValueError: the one that is known gives another shape.
    """
    b, prior = _discrete(q), _discrete(p)
    if b is not None and prior is not None and isinstance(b, Bernoulli) == isinstance(prior, Bernoulli):
        return log_prob(q, q.mean) - log_prob(p, q.mean)
    within = isinstance(q, Independent) and isinstance(p, Independent)  # torch then looks for that of their bases
    names = ", ".join(type(base(d) if within else d).__name__ for d in (q, p))
    try:
        kl = torch_kl_divergence(q, p)
    except NotImplementedError as error:
        raise NotImplementedError(
            f"no KL(q || p) is known for ({names}): write one and register it, "
            f"@torch.distributions.register_kl({names})"
        ) from error
    if kl.shape != q.batch_shape:
        raise ValueError(
            f"the KL registered for ({names}) must give one number per image, of shape {tuple(q.batch_shape)}; "
            f"got {tuple(kl.shape)}"
        )
    return kl


@torch.no_grad()
def kl_or_estimate(q: Distribution, p: Distribution, z: Tensor | None = None) -> Tensor:
    """`kl_divergence`, or where none is known the mean of log q(z) - log p(z), which is unbiased: (B,) nats, without
    gradient.

    Args:
        z: (S, B, *event) samples of q to estimate it at; None draws one.
    """
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        z = sample(q, 1) if z is None else z
        return (log_prob(q, z) - log_prob(p, z)).mean(0)


def detach(q: Distribution) -> Distribution:
    """`q` with its parameters detached."""
    b = base(q)
    if isinstance(b, (OneHotCategorical, Bernoulli)):
        return from_logits(q, b.logits.detach())
    b = gaussian(q, "detaching")
    return Independent(Normal(b.loc.detach(), b.scale.detach(), validate_args=False), 1, validate_args=False)


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
        return one_hot(digits, classes, b.logits.dtype)
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
    """The base of a Bernoulli `q` with event (L,).

    Raises:
        TypeError: `q` is something else; `method` names who asked.
    """
    b = _discrete(q)
    if not isinstance(b, Bernoulli):
        raise TypeError(
            f"{method} needs a Bernoulli posterior (under Independent), "
            f"got {type(base(q)).__name__} with event shape {tuple(q.event_shape)}"
        )
    return b


def categorical(q: Distribution, method: str) -> OneHotCategorical:
    """The base of a categorical `q` with event (L, C).

    Raises:
        TypeError: `q` is something else; `method` names who asked.
    """
    b = _discrete(q)
    if not isinstance(b, OneHotCategorical):
        raise TypeError(
            f"{method} needs a OneHotCategorical posterior (under Independent), "
            f"got {type(base(q)).__name__} with event shape {tuple(q.event_shape)}"
        )
    return b


def reparameterized_sample(q: Distribution, samples: int, method: str) -> Tensor:
    """Draws through which gradient flows to q's parameters: (samples, B, *event).

    Raises:
        TypeError: q has none; `method` names who asked.
    """
    if not q.has_rsample:
        raise TypeError(
            f"{method} needs a reparameterized posterior such as Normal, "
            f"got {type(base(q)).__name__} with event shape {tuple(q.event_shape)}"
        )
    b = base(q)
    if isinstance(b, Normal):
        return b.loc + b.scale * noise.normal((samples, *b.loc.shape), b.loc)
    return q.rsample((samples,))


class Chain(Distribution):
    """T layers of variables of one shape, each drawn given the one before: event (T, *event).

    Upward it is a posterior, q(z_1|x) q(z_2|z_1) ... q(z_T|z_T-1); downward a prior, p(z_T) p(z_T-1|z_T) ...
    p(z_1|z_2). z_1, the layer next to the image, comes first in a sample in either case.

    Args:
        start: of the layer that is drawn first, z_1 or z_T.
        steps: each maps a layer, (*, *event), to the distribution of the next one, with batch shape (*).
        downward: whether it is drawn from z_T to z_1.
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(
        self, start: Distribution, steps: Sequence[Callable[[Tensor], Distribution]], downward: bool = False
    ) -> None:
        self.start, self.steps, self.downward = start, list(steps), downward
        super().__init__(start.batch_shape, torch.Size((len(steps) + 1, *start.event_shape)), validate_args=False)

    def above(self, z: Tensor) -> Distribution:
        """Of a posterior, q(z_2, ..., z_T|z_1) for z_1 (B, *event)."""
        start = self.steps[0](z)
        return Chain(start, self.steps[1:]) if self.steps[1:] else start

    def below(self) -> tuple[Callable[[Tensor], Distribution], Distribution]:
        """Of a prior, z_2 -> p(z_1|z_2), and p(z_2, ..., z_T)."""
        *steps, last = self.steps
        return last, Chain(self.start, steps, downward=True) if steps else self.start

    @torch.no_grad()
    def draw(self, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(samples, *batch, T, *event), without gradient."""
        layers = [sample(self.start, samples, generator)]
        for step in self.steps:
            layers.append(sample(step(layers[-1]), 1, generator)[0])
        return torch.stack(layers[::-1] if self.downward else layers, -1 - len(self.start.event_shape))

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """(*sample_shape, *batch, T, *event) from the default generator, without gradient."""
        shape = torch.Size(sample_shape)
        return self.draw(shape.numel()).reshape(*shape, *self.batch_shape, *self.event_shape)

    def pairs(self, z: Tensor) -> Iterator[tuple[Distribution, Tensor]]:
        """The distribution of each layer given the one before, and the layer, for z (S, *batch, T, *event)."""
        layers = z.unbind(-len(self.event_shape))
        given = self.start
        for step, layer in zip([*self.steps, None], layers[::-1] if self.downward else layers, strict=True):
            yield given, layer
            given = step(layer) if step is not None else given

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum over the layers, in nats; of relaxed layers the linear extension, as of one layer."""
        return torch.stack([log_prob(given, layer) for given, layer in self.pairs(value)]).sum(0)


class NearestCode(Distribution):
    """The posterior of vector quantization: each variable is, with certainty, the code nearest to its encoding.

    Args:
        encoding: (B, L, D) the encoder's output.
        codebook: (K, D), shared by the variables.
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, encoding: Tensor, codebook: Tensor) -> None:
        self.encoding, self.codebook = encoding, codebook
        # (B, L) which code; distances stay in full precision, as near ties decide
        self.index = torch.cdist(encoding.detach(), codebook.detach()).argmin(-1)
        self.codes = codebook[self.index]  # (B, L, D), with gradient to the codebook and none to the encoding
        super().__init__(encoding.shape[:1], encoding.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """(B, L, D) the codes."""
        return self.codes

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """(*sample_shape, B, L, D), all alike, without gradient."""
        return self.codes.expand(*sample_shape, *self.codes.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of a probability, not of a density: 0 at the codes, -inf elsewhere."""
        return torch.where((value == self.codes).flatten(-2).all(-1), 0.0, -torch.inf).to(self.codes.dtype)


class UniformCodes(Distribution):
    """`variables` independent draws from a codebook (K, D), each code as likely as the others: event (L, D)."""

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, codebook: Tensor, variables: int) -> None:
        self.codebook = codebook
        super().__init__(torch.Size(), torch.Size((variables, codebook.shape[-1])), validate_args=False)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """(*sample_shape, L, D) from the default generator, without gradient."""
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
