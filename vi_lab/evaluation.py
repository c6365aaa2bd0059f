"""One evaluation for all models: bounds, likelihood and use of the latent variables, at samples of the true q(z|x).

    from vi_lab import load_run
    from vi_lab.evaluation import evaluate

    run = load_run("outputs/2026-01-31/12-00-00-rloo-s0")
    run.datamodule.setup()
    evaluate(run.model, run.datamodule.loader("test"), samples=100, images=1000).metrics["nll"]

Plain PyTorch. A model is anything with the parts of `Model`, as a `vi_lab.models.VAE`. All is in nats per image unless
its name says otherwise. How the model was trained plays no part, except that the loss of an estimator that relaxes is
reported beside the unrelaxed one.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal, OneHotCategorical
from torch.nn import functional as F

from vi_lab import likelihoods
from vi_lab.distributions import NearestCode, base, first, gaussian, kl_divergence, log_prob, perplexity, sample
from vi_lab.latents import Latent, further
from vi_lab.seeding import IMPORTANCE, fold, seed_noise

ROWS = {"cpu": 1000}
"""Decoder evaluations per call at the most, by device, which bounds the memory whatever K. 1,000 images of 784 pixels
(3 MB) still fit into a processor's cache. A fixed number, because the draws depend on it."""
ROWS_ELSEWHERE = 50_000

DENSITIES = 4_000_000
"""Values of log q(z_i|x_j) at a time for the aggregated posterior: 32 MB."""

ACTIVE = 0.01
"""Activity above which a unit counts as active (Burda et al. 2016)."""
USED = 0.1
"""A code counts as used from this share of the uniform probability 1/C on."""


class Model(Protocol):
    """What is evaluated: a `torch.nn.Module` with a latent, `posterior` and `nats`.

    Where it also has an `estimator` that relaxes and an `objective`, its relaxed loss is reported too; a `likelihood`
    decides what is noted beside the numbers.
    """

    training: bool

    @property
    def latent(self) -> Latent:
        """Its `prior()` is p(z)."""
        ...

    def posterior(self, x: Tensor) -> Distribution:
        """x (B, *shape) -> q(z|x), batch shape (B,)."""
        ...

    def nats(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """x (B, *shape) -> the map of z (S, B, *event) to -log p(x|z) (S, B)."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The first one says device and dtype."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Training mode, or evaluation mode."""
        ...


@dataclass
class Evaluation:
    """What `evaluate` returns."""

    metrics: dict[str, float]
    """negative_elbo, reconstruction, kl: E_q[-log p(x|z)] by K samples, and the KL exact, or by K samples
    too where no closed form is known.
    nll: the importance-sampled -log p(x) (see `importance_weighted`); bits_per_dimension: nll / (dimensions log 2), and
    8 more where nats are of densities, as of 256 gray levels (see `Likelihood.levels`). Where the posterior is certain
    there is no nll, and they are those of the negative_elbo.
    effective_samples: (sum w)^2 / sum w^2, mean over images: close to 1, the nll is still far above the truth.
    active_units, code_perplexity, codes_used: see `units`.
    mutual_information, marginal_kl: see `mutual_information`; only where the posterior is one of `exponential_family`.
    loss_relaxed, loss_unrelaxed, relaxation_gap: the training objective as the estimator sees it, with its samples,
    and at the true samples; only where the estimator relaxes.
    NAME_error: the standard error of NAME's mean over images."""
    units: list[dict[str, Any]]
    """One row per latent variable."""
    per_image: dict[str, Tensor]
    """The values behind the metrics that have an error, (N,) each in the order of the batches: models that are
    evaluated on the same images compare best by their differences."""
    images: int
    samples: int
    """K"""
    interrupted: bool
    """By Ctrl-C: all of the above is of the images done until then."""
    notes: list[str]
    """What to know before comparing these numbers with others."""


class _Block(NamedTuple):
    """What is kept of some images, on the CPU; tensors start with (B,)."""

    reconstruction: Tensor
    kl: Tensor
    log_evidence: Tensor
    effective_samples: Tensor
    statistic: Tensor
    natural: Tensor
    log_normalizer: Tensor
    """T(z), eta and A of `exponential_family`, at one z ~ q(z|x)."""
    unit_means: Tensor
    """(B, L, C)"""


@torch.no_grad()
def evaluate(
    model: Model,
    batches: Iterable,
    samples: int = 100,
    images: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda images: None,
) -> Evaluation:
    """Evaluate a model.

    On a CPU as many blocks of images are under way at once as torch has threads, each on one: that scales where the
    threads of one operation would wait for each other, and the bits do not depend on how many there are.

    Args:
        model: put into evaluation mode while it is evaluated, otherwise left as it is.
        batches: of x (B, *shape), or of tuples that begin with x; a `BatchLoader`, for one.
        samples: K, samples of z per image.
        images: stop after so many; None takes all.
        seed: of the samples. The same seed, batches, K and kind of device give the same bits, with any number of
            threads; the global generator is left as it was.
        progress: called with the number of images done.

    Raises:
        ValueError: there are no images.
        KeyboardInterrupt: before the first images were done. Later, it ends the evaluation early.
    """
    if samples < 1 or (images is not None and images < 1):
        raise ValueError(f"samples and images must be at least 1, got {samples} and {images}")
    blocks: list[_Block] = []
    relaxed: list[Tensor] = []  # by batch, while blocks are smaller
    done, interrupted, binary, levels, certain, shape = 0, False, True, True, False, torch.Size()
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    estimator: Any = getattr(model, "estimator", None)
    objective: Any = getattr(model, "objective", None)
    relaxes = getattr(estimator, "relaxed", False)
    with _still(model) as threads, ThreadPoolExecutor(threads if device.type == "cpu" else 1) as pool:
        try:
            for batch in batches:
                x = (batch if isinstance(batch, Tensor) else batch[0]).to(device)
                x = x if images is None else x[: images - done]
                if not len(x):
                    break
                binary, shape = binary and bool(((x == 0) | (x == 1)).all()), x.shape[1:]
                levels = levels and bool(((255 * x).round() - 255 * x).abs().max() < 1e-3)
                certain = isinstance(base(model.posterior(x[:1].to(dtype))), NearestCode)
                samples = 1 if certain else samples  # they would all be equal
                if relaxes:
                    seeds = (seed, IMPORTANCE, done, 1)
                    relaxed.append(_relaxed_loss(model, estimator, objective, x, dtype, seeds))
                size = max(1, _rows(device) // samples)
                waiting = [
                    pool.submit(_block, model, part, dtype, samples, (seed, IMPORTANCE, done + i * size))
                    for i, part in enumerate(x.split(size))
                ]
                while waiting:
                    blocks.append(waiting.pop(0).result())
                    done += len(blocks[-1].kl)
                    progress(done)
                # many small tensors that stay would pin the freed large ones between them: gigabytes at 10,000 images
                blocks = [_Block(*map(torch.cat, zip(*blocks, strict=True)))]
                _trim()
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            if not blocks:
                raise
            interrupted = True
        if not blocks:
            raise ValueError("there are no images to evaluate")
        whole = _Block(*map(torch.cat, zip(*blocks, strict=True)))
        done = len(whole.kl)
        likelihood = getattr(model, "likelihood", None)
        finer = math.log2(getattr(likelihood, "levels", 1))
        per_image = _per_image(whole, math.prod(shape), finer, certain)
        if relaxes:
            per_image["loss_relaxed"] = torch.cat(relaxed)[:done].double()
            per_image["loss_unrelaxed"] = whole.reconstruction + objective.beta * whole.kl
            per_image["relaxation_gap"] = per_image["loss_unrelaxed"] - per_image["loss_relaxed"]
    metrics = {}
    for name, values in per_image.items():
        metrics[name] = values.mean().item()
        metrics[f"{name}_error"] = values.std().item() / done**0.5 if done > 1 else math.nan
    rows = units(whole.unit_means)
    metrics["active_units"] = sum(row["active"] for row in rows)
    if "perplexity" in rows[0]:
        metrics["code_perplexity"] = sum(row["perplexity"] for row in rows) / len(rows)
        metrics["codes_used"] = sum(row["codes_used"] for row in rows) / len(rows)
    notes = _notes(likelihood, binary, levels, certain, "mutual_information" in metrics)
    return Evaluation(metrics, rows, per_image, done, samples, interrupted, notes)


def prior_of(model: Any) -> Distribution:
    """The model's p(z), batch shape (): its own, or its latent's where it has none."""
    return model.prior() if hasattr(model, "prior") else model.latent.prior()


@contextmanager
def _still(model: Model) -> Iterator[int]:
    """The model in evaluation mode and torch on one thread; gives the number of threads that there were."""
    training, threads = model.training, torch.get_num_threads()
    model.train(False)
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
        model.train(training)


def _trim() -> None:
    """Give freed memory back to the system, which the allocator of the GNU C library keeps: a gigabyte here."""
    with suppress(OSError, AttributeError, TypeError):  # other C libraries do without
        ctypes.CDLL(None).malloc_trim(0)


def _rows(device: torch.device) -> int:
    return ROWS.get(device.type, ROWS_ELSEWHERE)


def _double(values: Tensor) -> Tensor:
    return values.double() if values.device.type != "mps" else values.cpu().double()  # MPS has no double


def _relaxed_loss(
    model: Model, estimator: Any, objective: Any, x: Tensor, dtype: torch.dtype, seeds: tuple[int, ...]
) -> Tensor:
    """The objective as the estimator sees it, (B,), on the CPU. Estimators draw from the global generator."""
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        seed_noise(x.device, *seeds)
        q, p = model.posterior(x.to(dtype)), prior_of(model)
        return objective(q, p, model.nats(x), estimator, x, **further(getattr(model, "deeper", ()))).loss.cpu()


@torch.no_grad()  # in each thread anew
def _block(model: Model, x: Tensor, dtype: torch.dtype, samples: int, seeds: tuple[int, ...]) -> _Block:
    """All that is wanted of a few images x (B, *shape)."""
    q, p, nats = model.posterior(x.to(dtype)), prior_of(model), model.nats(x)
    z, reconstruction, log_evidence, effective, kl = importance_weighted(q, p, nats, samples, seeds)
    with suppress(NotImplementedError):  # then it is by samples
        kl = _double(kl_divergence(q, p))
    empty = kl.new_zeros(len(kl), 0)
    family = exponential_family(q, z) if has_exponential_family(q) else (empty, empty, kl.new_zeros(len(kl)))
    kept = (reconstruction, kl, log_evidence, effective, *family, unit_means(q))
    return _Block(*(tensor.cpu() for tensor in kept))


def importance_weighted(
    q: Distribution,
    p: Distribution,
    nats: Callable[[Tensor], Tensor],
    samples: int,
    seeds: tuple[int, ...] = (0, IMPORTANCE),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log p(x) by importance sampling with K samples of q (Burda et al. 2016, arXiv 1509.00519, eq. 8):

        log 1/K sum_k w_k,   w_k = p(x|z_k) p(z_k) / q(z_k|x),   z_k ~ q(z|x)

    in expectation a lower bound, which grows with K towards log p(x). The samples pass in chunks of at most `ROWS`
    decoder evaluations; sums over samples are float64, those of weights in log space.

    Args:
        q, p: posterior with batch shape (B,), and prior.
        nats: z (S, B, *event) -> -log p(x|z) (S, B).
        seeds: of the draws.

    Returns:
        one z (B, *event); (B,) each in float64: E_q[-log p(x|z)], log p(x), (sum w)^2 / sum w^2, and
        E_q[log q(z|x) - log p(z)], the KL by K samples.
    """
    device, images = first(q).mean.device, q.batch_shape[0]
    generator = torch.Generator(device).manual_seed(fold(*seeds))
    most = max(1, _rows(device) // images)
    chunk = -(-samples // -(-samples // most))  # of equal size, as far as possible

    def weigh(size: int) -> tuple[Tensor, ...]:
        """One z, and sums over `size` samples of the cost, of the weights and their squares in log space, and of
        log p(z) - log q(z|x)."""
        z = sample(q, size, generator)
        cost = _double(nats(z))  # (S, B)
        log_ratio = _double(log_prob(p, z) - log_prob(q, z))
        log_weight = log_ratio - cost
        return z[0].clone(), cost.sum(0), log_weight.logsumexp(0), (2 * log_weight).logsumexp(0), log_ratio.sum(0)

    chunks = [weigh(min(chunk, samples - first)) for first in range(0, samples, chunk)]
    z, costs, sums, squares, ratios = zip(*chunks, strict=True)
    log_sum, log_squares = torch.stack(sums).logsumexp(0), torch.stack(squares).logsumexp(0)
    reconstruction = torch.stack(costs).sum(0) / samples
    kl = -torch.stack(ratios).sum(0) / samples
    return z[-1], reconstruction, log_sum - math.log(samples), (2 * log_sum - log_squares).exp(), kl


def has_exponential_family(q: Distribution) -> bool:
    """Whether `exponential_family` knows q: all posteriors of `vi_lab.latents`, but maybe not your own."""
    return isinstance(base(q), (OneHotCategorical, Bernoulli, NearestCode, Normal))


def exponential_family(q: Distribution, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """T, eta, A in float64 such that log q(z|x) = <T(z), eta(x)> - A(x), so that log q of many z under many x is one
    matrix product. z (B, *event) -> T (B, F), eta (B, F), A (B,).

    Categorical: T = z, eta = log p. Bernoulli: T = z, eta = logits, A = sum softplus(logits). Gaussian: T = (z, z^2),
    eta = (mu, -1/2) / sigma^2, A = sum mu^2 / 2 sigma^2 + log sigma + log(2 pi) / 2. A certain posterior (vector
    quantization) is the limit of sharp ones: log q = 0 where all codes agree and at most -1e9 elsewhere.

    Raises:
        TypeError: `q` is something else.
    """
    b, z = base(q), _double(z)
    if isinstance(b, OneHotCategorical):
        return z.flatten(1), _double(b.logits).flatten(1), z.new_zeros(len(z))
    if isinstance(b, Bernoulli):
        logits = _double(b.logits).flatten(1)
        return z.flatten(1), logits, F.softplus(logits).sum(-1)
    if isinstance(b, NearestCode):
        codes = _double(unit_means(q)).flatten(1)  # (B, L*K) one-hot, of z too
        return codes, 1e9 * codes, 1e9 * codes.sum(-1)
    b = gaussian(q, "the aggregated posterior")
    z, mean, scale = z.flatten(1), _double(b.loc).flatten(1), _double(b.scale).flatten(1)
    precision = scale**-2
    log_normalizer = (0.5 * mean**2 * precision + scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
    return torch.cat([z, z**2], -1), torch.cat([mean * precision, -0.5 * precision], -1), log_normalizer


def mutual_information(statistic: Tensor, natural: Tensor, log_normalizer: Tensor) -> Tensor:
    """log q(z_i|x_i) - log q(z_i) for each image i, (N,) float64. The mean estimates the mutual information

        I(x; z) = E_{q(x, z)}[log q(z|x) - log q(z)],   q(z) = 1/N sum_j q(z|x_j),

    of which KL(q(z) || p(z)) = E_x KL(q(z|x) || p(z)) - I(x; z) follows (Hoffman and Johnson 2016, "ELBO surgery").
    Both are of the N images, not of the population that they come from: no term exceeds log N, and an I near log N
    says only that the images do not overlap in z.

    Args:
        statistic, natural, log_normalizer: `exponential_family` of q(z|x_i) at one z_i each: (N, F), (N, F), (N,).
    """
    images = len(statistic)
    chunk = max(1, DENSITIES // images)
    terms = []
    for start, part in zip(range(0, images, chunk), statistic.split(chunk), strict=True):
        log_q = part @ natural.T - log_normalizer  # (chunk, N): z_i under q(z|x_j)
        terms.append(log_q.diagonal(start) - log_q.logsumexp(1) + math.log(images))
    return torch.cat(terms)


def unit_means(q: Distribution) -> Tensor:
    """E_q[z] by variable, with a discrete z as one-hot: (B, L, C) class probabilities, or (B, D, 1) means. Of several
    stochastic layers those of the first, whose posterior alone is known in closed form."""
    q = first(q)
    b = base(q)
    if isinstance(b, OneHotCategorical):
        return b.probs.reshape(len(b.probs), -1, b.probs.shape[-1])
    if isinstance(b, Bernoulli):
        probs = b.probs.flatten(1)
        return torch.stack([1 - probs, probs], -1)
    if isinstance(b, NearestCode):
        return F.one_hot(b.index, len(b.codebook)).to(b.codes.dtype)
    return q.mean.flatten(1).unsqueeze(-1)


def _per_image(whole: _Block, dimensions: int, finer: float, certain: bool) -> dict[str, Tensor]:
    """What is reported as a mean over images, (N,) float64 each.

    Args:
        finer: bits per dimension that a gray level takes beyond a density.
    """
    values = {
        "negative_elbo": whole.reconstruction + whole.kl,
        "reconstruction": whole.reconstruction,
        "kl": whole.kl,
    }
    if not certain:
        nll = -whole.log_evidence
        values |= {"nll": nll, "bits_per_dimension": nll / (dimensions * math.log(2)) + finer}
        values["effective_samples"] = whole.effective_samples
    else:
        values["bits_per_dimension"] = values["negative_elbo"] / (dimensions * math.log(2)) + finer
    if not whole.statistic.shape[1]:
        return values
    information = mutual_information(whole.statistic, whole.natural, whole.log_normalizer)
    return values | {"mutual_information": information, "marginal_kl": whole.kl - information}  # adds up to the kl


def units(means: Tensor) -> list[dict[str, Any]]:
    """Activity and code usage of each latent variable.

    activity: Var_x(E_q[z_l | x]), the variance over images of the posterior mean; active above 0.01 (Burda et al.
        2016). For a discrete variable, half the trace of the covariance of its class probabilities, with z_l one-hot:
        with two classes just Burda's variance of a 0/1 variable, with more at most (1 - 1/C) / 2. Not active means
        that q(z_l|x) does not depend on x, whatever it is.
    perplexity: exp(entropy) of the aggregated posterior q(z_l) = 1/N sum_i q(z_l|x_i), from 1 (one code) to C.
    codes_used: how many codes have q(z_l = c) of at least 0.1 / C.
    p0, p1, ...: q(z_l = c).

    Args:
        means: (N, L, C) of `unit_means`.
    """
    means = means.double()
    discrete = means.shape[-1] > 1
    activity = (means.var(0, correction=0).sum(-1) / (2 if discrete else 1)).tolist()  # (L,)
    rows: list[dict] = [{"variable": index, "activity": a, "active": a > ACTIVE} for index, a in enumerate(activity)]
    if discrete:
        aggregated = means.mean(0)  # (L, C)
        used = (aggregated >= USED / aggregated.shape[-1]).sum(-1)
        for row, value, count, codes in zip(
            rows, perplexity(aggregated).tolist(), used.tolist(), aggregated.tolist(), strict=True
        ):
            row |= {"perplexity": value, "codes_used": count, **{f"p{c}": p for c, p in enumerate(codes)}}
    return rows


def _notes(likelihood: object, binary: bool, levels: bool, certain: bool, information: bool) -> list[str]:
    """levels: pixels were multiples of 1/255, without noise."""
    notes = []
    if not binary and isinstance(likelihood, likelihoods.Bernoulli):
        notes.append("gray pixels in a Bernoulli likelihood: cross-entropies, no likelihoods; not to be compared")
    if isinstance(likelihood, likelihoods.Gaussian):
        notes.append(
            "Gaussian likelihood: densities of pixels in [0, 1], which may exceed 1, so nats may be negative; they do "
            "not compare with those of a Bernoulli likelihood; bits per dimension are 8 more than theirs: of 256 levels"
        )
        notes.append(
            "no noise in the pixels: bits per dimension bound nothing; with data.binarization=dequantize they would"
            if levels
            else "noise in the pixels, as of data.binarization=dequantize: bits per dimension bound those of the levels"
        )
    if certain:
        notes.append(
            "the posterior is certain: importance sampling gives the negative ELBO back, whatever K, so no nll is "
            "reported, one sample is enough, and the bits per dimension are those of the negative ELBO, a bound"
        )
    if not information:
        notes.append(
            "the mutual information is left out: it is known for categorical, Bernoulli, diagonal Gaussian and "
            "vector-quantized posteriors only"
        )
    return notes
