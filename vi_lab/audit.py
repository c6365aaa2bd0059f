"""The gradient lab: bias, variance and cost of estimators at the frozen weights of a model.

Every estimator sees the same images and the same posterior. Its gradient of the negative ELBO is drawn many times and
held against a reference: the exact gradient by enumeration where the latent is small, otherwise an average of an
unbiased low-variance estimator whose own error is reported. Two parameter groups: "logits" (q's parameters, the
encoder's output) and "encoder" (the encoder's weights, into which the logits' gradient is carried by the chain rule).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from vi_lab.distributions import number_of_states
from vi_lab.estimators import VIMCO, Cost, Exact, GradientEstimator, ImportanceWeighted, LocalExpectation, Pathwise
from vi_lab.evaluation import prior_of
from vi_lab.latents import Latent, further
from vi_lab.objectives import ELBO

BLOCKS = 20
# two-sided 95 % of Student's t, 2.093024: in full, where 2.093 stood before, so intervals grow by 1e-5 of their width
T_QUANTILE = float(stdtrit(BLOCKS - 1, 0.975))
ROWS = 16_384  # decoder evaluations per call at the most, which bounds the memory


class Model(Protocol):
    """What estimators are measured at: the parts of a `vi_lab.models.VAE` that stay frozen."""

    @property
    def encoder(self) -> nn.Module:
        """x (B, *shape) -> features (B, F)."""
        ...

    @property
    def latent(self) -> Latent:
        """features -> q(z|x), and the prior."""
        ...

    def nats(self, x: Tensor) -> Cost:
        """x (B, *shape) -> the map of z (S, B, *event) to -log p(x|z) (S, B)."""
        ...


class TrainedModel(Model, Protocol):
    """A model with what it is trained by."""

    @property
    def estimator(self) -> GradientEstimator:
        """Its gradient estimator."""
        ...

    @property
    def deeper(self) -> nn.ModuleList:
        """Of several stochastic layers, the estimators of all but the first."""
        ...

    @property
    def objective(self) -> ELBO:
        """The bound that it minimizes."""
        ...


class Reference(NamedTuple):
    """What the estimators are held against."""

    gradient: Tensor
    """(B, F) of the mean loss over the images, with respect to the encoder's output."""
    error: float
    """Relative standard error of the gradient's norm; 0 where it is exact."""
    how: str


class Measurement(NamedTuple):
    """One estimator on one parameter group."""

    relative_bias: float
    """|E g - exact| / |exact|, the noise of draws and reference taken off; 95 % interval from a jackknife over blocks
    of draws, widened by two standard errors of the reference."""
    relative_bias_low: float
    relative_bias_high: float
    variance: float
    """Total variance: the trace of the covariance."""
    signal_to_noise: float
    """|E g| / sqrt(variance), the noise of draws taken off |E g|: with it, nothing would be below 1 / sqrt(draws)."""
    cosine: float
    """Mean cosine of a draw and the exact gradient."""
    mean_squared_error: float
    """E |g - exact|^2 = |bias|^2 + variance"""
    squared_bias_rescaled: float
    """|r E g - exact|^2 with r = |exact| / |E g|: of the direction alone, as optimizers such as Adam do not see the
    scale (Hooper and Shekhovtsov 2026). The noise of draws taken off, so that it may fall below 0; NaN where E g is
    within its noise."""
    squared_bias_rescaled_error: float
    """Its standard error, from a jackknife over blocks of draws."""
    variance_rescaled: float
    """r^2 variance"""
    exact_squared_norm: float
    """|exact|^2"""
    projection: float
    """<E g, exact> / |exact|^2: 1 without bias. Unlike `relative_bias` it has a sign, and the mean of the truth."""


class Moments:
    """What `Measurement` needs of many draws, without keeping them: block sums, squared errors, cosines."""

    def __init__(self, exact: Tensor, draws: int) -> None:
        self.exact = exact.flatten()
        self.sums = self.exact.new_zeros(BLOCKS, self.exact.numel())
        self.counts = torch.zeros(BLOCKS, dtype=self.exact.dtype)
        self.per_block = max(1, draws // BLOCKS)
        self.squared_errors: list[Tensor] = []
        self.cosines: list[Tensor] = []
        self.seen = 0

    def add(self, draws: Tensor) -> None:
        """draws (R, ...)"""
        draws = draws.flatten(1)
        block = (torch.arange(self.seen, self.seen + len(draws)) // self.per_block).clamp_max(BLOCKS - 1)
        self.sums.index_add_(0, block.to(draws.device), draws)
        self.counts.index_add_(0, block, torch.ones(len(draws), dtype=self.counts.dtype))
        self.squared_errors.append((draws - self.exact).square().sum(1))
        norms = draws.norm(dim=1) * self.exact.norm()
        self.cosines.append((draws @ self.exact) / norms.clamp_min(torch.finfo(draws.dtype).tiny))
        self.seen += len(draws)

    def measure(self, reference_error: float = 0.0) -> Measurement:
        """reference_error: relative standard error of what stands for the exact gradient."""
        means = self.sums / self.counts[:, None].to(self.sums)  # (K, D) of each block
        error = means - self.exact
        gram = (error @ error.T).double()
        squared_bias, standard = _jackknife(gram)
        norm = self.exact.norm().double().item()
        norm = max(norm, torch.finfo(torch.float64).tiny)
        mse = torch.cat(self.squared_errors).double().mean().item()
        variance = max(mse - squared_bias, 0.0)
        gram = (means @ means.T).double()
        squared_mean, _ = _jackknife(gram)
        along = (means @ (self.exact / norm)).double()
        rescaled, rescaled_error = _rescaled_bias(gram, along)

        def relative(square: float) -> float:
            return math.sqrt(max(square, 0.0)) / norm

        return Measurement(
            math.sqrt(max(relative(squared_bias) ** 2 - reference_error**2, 0.0)),
            max(relative(squared_bias - T_QUANTILE * standard) - 2 * reference_error, 0.0),
            # a square is not negative, however its estimate falls: much noise is never taken for no bias
            relative(max(squared_bias, 0.0) + T_QUANTILE * standard) + 2 * reference_error,
            variance,
            math.sqrt(max(squared_mean, 0.0) / variance) if variance > 0 else math.inf,
            torch.cat(self.cosines).double().mean().item(),
            mse,
            norm**2 * rescaled,
            norm**2 * rescaled_error,
            norm**2 * variance / squared_mean if squared_mean > 0 else math.nan,
            norm**2,
            along.mean().item() / norm,
        )


def _jackknife(gram: Tensor) -> tuple[float, float]:
    """|bias|^2 without the noise's share, and its standard error, from inner products of the blocks' mean errors; or
    |E g|^2, from those of the blocks' means.

    The mean over pairs of different blocks of <error_j, error_k> has expectation |bias|^2, where |mean error|^2
    has |bias|^2 + variance / draws.
    """
    whole, left_out = _pairs(gram)
    return whole.item(), _standard_error(left_out)


def _rescaled_bias(gram: Tensor, along: Tensor) -> tuple[float, float]:
    """|r E g - exact|^2 / |exact|^2 = 2 (1 - cosine of E g and exact), without the noise's share in |E g|, and its
    standard error; NaN where |E g|^2 is not above its noise.

    Args:
        gram: inner products of the blocks' means.
        along: their components along the exact gradient.
    """
    squared, squares = _pairs(gram)
    if not (squared > 0 and (squares > 0).all()):
        return math.nan, math.nan
    blocks = len(along)
    left_out = 2 - 2 * (along.sum() - along) / (blocks - 1) / squares.sqrt()
    return (2 - 2 * along.mean() / squared.sqrt()).item(), _standard_error(left_out)


def _pairs(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over pairs of different blocks of an inner product, (); and with each block left out, (K,)."""

    def mean(total: Tensor, trace: Tensor, blocks: int) -> Tensor:
        return (total - trace) / (blocks * (blocks - 1))

    blocks = len(gram)
    total, diagonal = gram.sum(), gram.diagonal()
    left_out = mean(total - 2 * gram.sum(1) + diagonal, diagonal.sum() - diagonal, blocks - 1)
    return mean(total, diagonal.sum(), blocks), left_out


def _standard_error(left_out: Tensor) -> float:
    """The jackknife's, from a statistic with each block left out, (K,)."""
    blocks = len(left_out)
    return ((blocks - 1) / blocks * (left_out - left_out.mean()).square().sum()).sqrt().item()


def decoder_evaluations(model: TrainedModel, shape: tuple[int, ...]) -> float:
    """How often one training step calls the decoder, per image: forward passes for the estimator, backward ones and
    the logged unrelaxed loss not counted. The model stays as it is.

    Args:
        shape: of an image.
    """
    estimator, deeper = copy.deepcopy((model.estimator, model.deeper))  # moving averages do not move
    estimator.eval()
    deeper.eval()
    with torch.random.fork_rng(devices=[]):
        x = torch.zeros(2, *shape, dtype=next(model.encoder.parameters(), torch.zeros(())).dtype)
        return Bench(model, x, deeper=deeper).draw(estimator, model.objective, 1)[2]


class Bench:
    """A model with frozen weights and a batch of images, on which estimators are measured.

    Args:
        model: its weights and its mode are left as they are.
        x: (B, *shape) images.
        beta: the objective's weight of the KL.
        others: batches of images, (N, *shape) each, on which learned baselines and control variates adapt: on the
            images that are measured they would learn these by heart. None: on `x` all the same.
        deeper: of several stochastic layers, the estimators of all but the first.
    """

    def __init__(
        self,
        model: Model,
        x: Tensor,
        beta: float = 1.0,
        others: Sequence[Tensor] = (),
        deeper: nn.ModuleList | None = None,
    ) -> None:
        self.model, self.x, self.beta, self.others, self.deeper = model, x, beta, others, deeper or ()
        with torch.no_grad():
            self.features = model.encoder(x)  # (B, F)

    def draw(self, estimator: GradientEstimator, objective: nn.Module, copies: int) -> tuple[Tensor, Tensor, float]:
        """`copies` draws of the gradient with respect to the encoder's output.

        Returns:
            draws (copies, B, F) of the gradient of the mean loss; the control loss; decoder evaluations per image.
        """
        features = self.features.repeat(copies, 1).requires_grad_()
        x = self.x.repeat(copies, *[1] * (self.x.ndim - 1))
        nats, evaluations = self.model.nats(x), 0

        def counted(z: Tensor) -> Tensor:
            nonlocal evaluations
            evaluations += z.shape[0] * z.shape[1]
            return nats(z)

        q = self.model.latent(features)
        terms = objective(q, prior_of(self.model), counted, estimator, x, **further(self.deeper))
        (gradient,) = torch.autograd.grad(terms.loss.sum() / len(self.x), features, retain_graph=True)
        return gradient.unflatten(0, (copies, len(self.x))), terms.control_loss, evaluations / len(x)

    def draws(self, estimator: GradientEstimator, objective: nn.Module, count: int) -> Iterator[Tensor]:
        """`count` draws in chunks that fit into memory."""
        first, _, evaluations = self.draw(estimator, objective, 1)
        if estimator.deterministic:  # every draw is the same
            yield first.expand(count, -1, -1)
            return
        chunk = max(1, min(count, int(ROWS / (len(self.x) * max(evaluations, 1)))))
        while count > 0:
            yield self.draw(estimator, objective, min(chunk, count))[0]
            count -= chunk

    def warm_up(self, estimator: GradientEstimator, objective: nn.Module, steps: int) -> None:
        """Let moving averages and learned control variates adapt to this model, which stays as it is, on the other
        images in turn; then hold them still, so that draws are independent."""
        own = [p for p in estimator.parameters() if p.requires_grad]
        stateful = bool(own) or any(not name.endswith("temperature") for name, _ in estimator.named_buffers())
        optimizer = torch.optim.Adam(own, 1e-2) if own else None
        batches = self.others or (self.x,)
        for step in range(steps if stateful else 0):
            lab = Bench(self.model, batches[step % len(batches)], self.beta)
            control_loss = lab.draw(estimator, objective, 1)[1]
            if optimizer is not None:
                optimizer.zero_grad()
                control_loss.backward(inputs=own)
                optimizer.step()
        estimator.eval()

    def to_encoder(self, draws: Tensor) -> Tensor:
        """Carry gradients with respect to the encoder's output, (R, B, F), into its weights: (R, D)."""
        features = self.model.encoder(self.x)
        weights = [p for p in self.model.encoder.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(features, weights, draws.to(features), is_grads_batched=True)
        return torch.cat([gradient.flatten(1) for gradient in gradients], 1)

    def exact(self) -> Tensor:
        """(B, F) by enumeration, a few images at a time."""
        q = self.model.latent(self.features[:1])
        states = number_of_states(q)
        chunk = max(1, ROWS // states)
        gradients = []
        for x in self.x.split(chunk):
            part = Bench(self.model, x, self.beta)
            gradient = part.draw(Exact(max_states=states), ELBO(beta=self.beta), 1)[0][0]
            gradients.append(gradient * len(x) / len(self.x))
        return torch.cat(gradients)

    def reference(
        self,
        multi_sample: int = 0,
        max_states: int = 4096,
        error: float = 0.01,
        most: int = 20_000,
        progress: Callable[[int, float], None] = lambda _, __: None,
    ) -> Reference:
        """The gradient that estimators should have in mean.

        Args:
            multi_sample: of the importance-weighted bound with so many samples; 0: of the ELBO.
            max_states: up to so many joint states the ELBO's is exact.
            error: wanted relative standard error of an average.
            most: draws at the most.
            progress: called with the draws so far and the error reached.
        """
        expected = getattr(self.model, "expected", None)
        if expected is not None and not multi_sample:
            features = self.features.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(expected(self.model.latent(features)).mean(), features)
            return Reference(gradient, 0.0, "exact, by the expected cost")
        continuous = self.model.latent(self.features[:1]).has_rsample
        if not multi_sample and not continuous and number_of_states(self.model.latent(self.features[:1])) <= max_states:
            return Reference(self.exact(), 0.0, "exact, by enumeration")
        estimator: GradientEstimator
        if multi_sample:
            estimator = ImportanceWeighted(multi_sample) if continuous else VIMCO(multi_sample)
            objective = ELBO("monte_carlo", self.beta)
        else:
            estimator, objective = (Pathwise(16) if continuous else LocalExpectation()), ELBO(beta=self.beta)
        estimator = estimator.to(self.x.device)
        total, squares, count, reached = torch.zeros_like(self.features), 0.0, 0, math.inf
        while count < most and not (reached <= error and count >= 64):
            for draws in self.draws(estimator, objective, 64):
                total += draws.sum(0)
                squares += draws.square().sum().item()
                count += len(draws)
            mean_square = (total / count).square().sum().item()
            variance = max(squares / count - mean_square, 0.0) / count
            reached = math.sqrt(variance / max(mean_square - variance, 1e-30))
            progress(count, reached)
        how = f"average of {count} draws of {type(estimator).__name__}"
        return Reference(total / count, reached, how)

    def measure(
        self,
        estimator: GradientEstimator,
        objective: nn.Module,
        reference: Reference,
        samples: int,
        encoder: bool = True,
        progress: Callable[[int], None] = lambda _: None,
    ) -> dict[str, Measurement]:
        """Measure an estimator: {"logits": ..., "encoder": ...}."""
        samples = BLOCKS if estimator.deterministic else samples
        rows = max(32, 4096 // reference.gradient.numel())  # small gradients are quicker together
        groups = {"logits": Moments(reference.gradient, samples)}
        if encoder:
            groups["encoder"] = Moments(self.to_encoder(reference.gradient[None])[0], samples)
        for chunk in self.draws(estimator, objective, samples):
            for draws in chunk.split(rows):
                groups["logits"].add(draws)
                if encoder:
                    groups["encoder"].add(self.to_encoder(draws))
                progress(len(draws))
        return {name: moments.measure(reference.error) for name, moments in groups.items()}

    def cost(self, estimator: GradientEstimator, objective: nn.Module, repeats: int = 15) -> tuple[float, float]:
        """Decoder evaluations per image, and milliseconds (the median) of one forward and backward pass over the
        batch: decoder, estimator and its control loss; not the encoder."""
        seconds: list[float] = []
        evaluations = 0.0
        while len(seconds) < repeats and sum(seconds) < 2.0:  # exact enumeration may take seconds
            start = time.perf_counter()
            gradient, _, evaluations = self.draw(estimator, objective, 1)
            gradient.sum().item()  # waits for the device
            seconds.append(time.perf_counter() - start)
        return evaluations, 1e3 * sorted(seconds)[len(seconds) // 2]
