"""The interface of a gradient estimator: how d/dphi E_q(z)[f(z)] is estimated from evaluations of f.

q = Independent(OneHotCategorical(logits=logits), 1)
RLOO(samples=4)(q, lambda z: decoder_nats(x, z)).loss.mean().backward()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils import parametrize

from vi_lab.distributions import base

Cost = Callable[[Tensor], Tensor]
"""z of shape (S, B, *event) -> f(z) of shape (S, B), in nats. May hold parameters (the decoder's)."""


class Estimate(NamedTuple):
    """What an estimator returns."""

    loss: Tensor
    """(B,) value: the mean cost over samples; gradient: the estimator's, for q's and the cost's parameters."""
    control_loss: Tensor
    """() reaches the estimator's own parameters only (a learned baseline); 0 where it has none."""
    cost: Tensor
    """(S, B) the costs, detached."""


def check_posterior(q: Distribution) -> None:
    """Refuse a `q` that is not a batch of posteriors, one per image.

    Raises:
        ValueError: its batch shape is not (B,), as where `Independent` was left out.
        TypeError: its logits are not floating-point numbers.
    """
    if len(q.batch_shape) != 1:
        raise ValueError(
            "the posterior must have batch shape (B,), one per image, and the latent variables in its event shape; got "
            f"batch shape {tuple(q.batch_shape)} and event shape {tuple(q.event_shape)}"
            + "; wrap it in torch.distributions.Independent"
            * (len(q.batch_shape) > 1)
        )
    logits = getattr(base(q), "logits", None)
    if isinstance(logits, Tensor) and not logits.is_floating_point():
        raise TypeError(f"the posterior's logits must be floating-point numbers, got {logits.dtype}")


def checked(cost: Cost) -> Cost:
    """`cost`, refused where it gives anything else than one number per sample and image.

    A (B,) or a scalar would broadcast against (S, B) and give a wrong gradient without a word.

    Raises (at call):
        TypeError: it gives no tensor of floating-point numbers.
        ValueError: it gives another shape than (S, B).
    """

    def checking(z: Tensor) -> Tensor:
        nats = cost(z)
        wanted = f"the cost must give (S, B) = {tuple(z.shape[:2])} nats, one per sample and image; got "
        if not isinstance(nats, Tensor):
            raise TypeError(f"{wanted}{type(nats).__name__}")
        if nats.shape != z.shape[:2]:
            raise ValueError(f"{wanted}{tuple(nats.shape)}")
        if not nats.is_floating_point():
            raise TypeError(f"{wanted}{nats.dtype}")
        return nats

    return checking


class GradientEstimator(nn.Module, ABC):
    """One method. Called with the true posterior and a cost; see `Estimate` for what comes back.

    A method overrides `forward`. Calling the estimator checks what goes in and what the cost gives back.
    """

    unbiased: ClassVar[bool]
    """Whether the gradient's expectation is the exact gradient. The contract tests hold it to this."""
    relaxed: ClassVar[bool] = False
    """Whether the cost is evaluated at relaxed samples, so that its value is not the loss of the model."""
    deterministic: ClassVar[bool] = False
    """Whether it draws nothing, so that the seed makes no difference."""
    exact_for: ClassVar[str | None] = None
    """For a biased method, the costs for which it is unbiased all the same: "linear" or "quadratic" in z."""

    differentiates: ClassVar[bool] = False
    """Whether it takes a derivative itself, within its call; such a step is not compiled."""

    multi_sample: ClassVar[bool] = False
    """Whether the value is the importance-weighted bound -log mean_s exp(-f(z_s)) instead of the mean cost."""
    kl: ClassVar[str | None] = None
    """The only `ELBO(kl=...)` that the method is for; None: any."""

    def __init__(self, samples: int = 1) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.samples = samples

    def __call__(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """`forward`, with `q` and what the cost gives checked.

        Raises:
            ValueError: q's batch shape is not (B,), or the cost gives another shape than (S, B).
            TypeError: `q` is not of a family that the method is for, or the cost gives no floating-point tensor.
        """
        check_posterior(q)
        return super().__call__(q, checked(cost), context)

    def __setattr__(self, name: str, value: Any) -> None:
        """As of any module; a number for a temperature becomes a tensor like the one that it replaces.

        Raises:
            ValueError: the temperature is not positive.
        """
        held = getattr(self, name, None) if name.endswith("temperature") else None
        if isinstance(held, Tensor) and isinstance(value, (int, float)):
            super().__setattr__(name, held.detach().new_tensor(positive(value, name)))
        else:
            super().__setattr__(name, value)

    @abstractmethod
    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Estimate the expected cost under `q` and its gradient.

        Args:
            q: true posterior q(z|x), batch shape (B,).
            cost: f, called on (S, B, *event).
            context: (B, ...) what x is, for baselines that depend on the input.
        """

    def materialize(self, q: Distribution, context: Tensor) -> None:
        """Give lazy layers their sizes by one call that updates nothing else.

        Do this before an optimizer, a checkpoint or DDP sees the parameters, as with any `torch.nn.LazyLinear`.
        """
        if any(isinstance(p, nn.UninitializedParameter) for p in self.parameters()):
            training = self.training
            self.eval()(q, lambda z: z.flatten(2).sum(-1), context)
            self.train(training)

    def extra_repr(self) -> str:
        """Shown by `repr`: S."""
        return f"samples={self.samples}"


class RelaxedDensities(GradientEstimator):
    """A method that knows the densities of its relaxed samples, as `vi_lab.objectives.RelaxedELBO` asks for them."""

    @abstractmethod
    def terms(self, q: Distribution, p: Distribution, cost: Cost) -> tuple[Tensor, Tensor]:
        """The two parts of the relaxed bound at the same relaxed samples, with the gradient through them.

        Args:
            q: true posterior q(z|x), batch shape (B,).
            p: prior, batch shape ().
            cost: f, called on (S, B, *event).

        Returns:
            f and log q_tau - log p_tau0, (S, B) each, in nats.
        """


class Exponential(nn.Module):
    """Parametrizes a positive number by its logarithm."""

    def forward(self, log: Tensor) -> Tensor:
        """The number itself."""
        return log.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        """Its logarithm, which is what the optimizer moves."""
        return value.log()


def temperature_of(module: nn.Module) -> Tensor | None:
    """What `add_temperature` has given to `module`, as a 0-d tensor; None where it has no temperature.

    Raises:
        TypeError: it has something else under that name.
    """
    temperature = getattr(module, "temperature", None)
    if temperature is not None and not isinstance(temperature, Tensor):
        raise TypeError(f"{type(module).__name__}.temperature must be a tensor, as add_temperature makes it")
    return temperature


def positive(value: float, name: str) -> float:
    """A number, checked.

    Raises:
        ValueError: it is not above 0.
    """
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def add_temperature(module: nn.Module, temperature: float, name: str = "temperature", learn: bool = False) -> None:
    """Give `module` a 0-d buffer that a schedule writes; or, to `learn`, a parameter that the loss moves in its log.

    Raises:
        ValueError: the temperature is not positive.
    """
    value = torch.tensor(float(positive(temperature, name)))
    if learn:
        module.register_parameter(name, nn.Parameter(value))
        parametrize.register_parametrization(module, name, Exponential())
    else:
        module.register_buffer(name, value)
