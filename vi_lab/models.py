"""The LightningModules: four families of VAE over one base, and toy problems, which are an expected cost alone.

Data flows one way: x -> encoder -> q(z|x) -> estimator (which calls decoder and likelihood) -> objective -> metrics.
A family says which latents belong to it and what it logs besides; the estimator is what differs within a family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import lightning
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from vi_lab.distributions import base, first, log_prob, nearest_code, one_hot, perplexity
from vi_lab.estimators.base import Cost, GradientEstimator
from vi_lab.latents import VQ, Bernoulli, Categorical, Discrete, Gaussian, Latent, further
from vi_lab.likelihoods import Likelihood
from vi_lab.objectives import ELBO, RelaxedELBO, Terms
from vi_lab.priors import Fixed, Prior
from vi_lab.problems import Logits, ToyCost, discrete_latent
from vi_lab.seeding import EVALUATION, NOISE, seed_noise

PARTS = {
    "prior": re.compile(r"p_z\."),
    "baseline": re.compile(r"(estimator|deeper\.\d+)\.baseline"),
    "control_variate": re.compile(r"(estimator|deeper)\."),
}
"""What may have a learning rate of its own -> how the names of its parameters begin; the first that matches counts."""


def part_of(name: str) -> str | None:
    """Which of `PARTS` a parameter belongs to, by its name; None: to encoder, decoder or likelihood."""
    return next((part for part, names in PARTS.items() if names.match(name)), None)


SCHEDULER_KEYS = {"scheduler", "interval", "frequency", "monitor"}
"""What may stand in `VAE(lr_scheduler=...)`."""


class Means:
    """Weighted running means of named scalars, kept as one tensor on the device: nothing is copied until asked."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.total: Tensor | None = None
        self.weight = 0

    def add(self, values: Tensor, weight: int) -> None:
        """Add one batch's means, in the order of `names`."""
        if self.total is None:
            # double, so that 60,000 images lose no digits; MPS has no double
            dtype = torch.float32 if values.device.type == "mps" else torch.float64
            self.total = torch.zeros_like(values, dtype=dtype)
        self.total.add_(values, alpha=weight)
        self.weight += weight

    def compute(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The means; `reduce` sums a tensor over processes. Empty where nothing was added."""
        if self.total is None:
            return {}
        sums = torch.cat([self.total, self.total.new_tensor([self.weight])])
        *totals, weight = (reduce(sums) if reduce else sums).tolist()
        return {name: total / weight for name, total in zip(self.names, totals, strict=True)}

    def reset(self) -> None:
        """Forget what was added."""
        self.total, self.weight = None, 0

    def state_dict(self) -> dict[str, Any]:
        """The sums, for a checkpoint."""
        return {"names": self.names, "total": self.total, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the sums of a checkpoint, to the last bit."""
        self.names, self.total, self.weight = state["names"], state["total"], state["weight"]


class VAE(lightning.LightningModule):
    """What the four families share.

    Args:
        latent: features -> q(z|x), and the prior.
        encoder: x (B, *shape) -> features (B, latent.feature_size).
        decoder: flat z (N, latent.size) -> (N, *shape).
        likelihood: decoder output, x -> -log p(x|z).
        objective: the bound; see `vi_lab.objectives`.
        estimator: the gradient estimator.
        optimizer: parameters, or groups of them as torch has them -> torch optimizer.
        seed: of the sampling noise.
        lr_scheduler: None: the learning rate stays. Otherwise a mapping with "scheduler", optimizer -> torch scheduler,
            and, as Lightning has them, "interval" ("epoch", the default, or "step"), "frequency" (every so many of
            them), and "monitor" (the metric that a `ReduceLROnPlateau` watches, such as "val/loss").
        optimizer_groups: what the optimizer has of its own for parts of what is learned, as {"baseline": {"lr": 1e-4}};
            the parts are those of `part_of`.
        p_z: what gives the prior p(z); None: the latent's own.
        deeper: of several stochastic layers, the estimators of all but the first.

    Raises:
        TypeError: the latent is one of ours, and none of the family's. One of your own shows what it suits when it is
            used.
        ValueError: estimator and objective do not fit, or the scheduler's mapping has other keys, or the latent has
            another number of layers than there are estimators.
    """

    latents: ClassVar[tuple[type[Latent], ...]] = (Latent,)

    def __init__(
        self,
        latent: Latent,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        objective: ELBO,
        estimator: GradientEstimator,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer] | None = None,
        seed: int = 0,
        lr_scheduler: Mapping[str, Any] | None = None,
        optimizer_groups: Mapping[str, Mapping[str, Any]] | None = None,
        p_z: Prior | None = None,
        deeper: Sequence[GradientEstimator] = (),
    ) -> None:
        super().__init__()
        if len(deeper) != latent.layers - 1:
            raise ValueError(f"{latent.layers} stochastic layers need as many estimators, got {1 + len(deeper)}")
        if isinstance(latent, (Categorical, Bernoulli, Gaussian, VQ)) and not isinstance(latent, self.latents):
            names = " or ".join(kind.__name__ for kind in self.latents)
            raise TypeError(f"{type(self).__name__} needs a {names} latent, got {type(latent).__name__}")
        if estimator.kl is not None and objective.kl != estimator.kl:
            raise ValueError(f"{type(estimator).__name__} needs objective.kl={estimator.kl}, got {objective.kl}")
        self.latent, self.encoder, self.decoder = latent, encoder, decoder
        self.likelihood, self.objective, self.estimator = likelihood, objective, estimator
        self.p_z, self.deeper = p_z or Fixed(latent, ()), nn.ModuleList(deeper)
        if estimator.multi_sample or isinstance(objective, RelaxedELBO):
            self.deeper.requires_grad_(False)  # the bound is that of all layers jointly: the first stands for all
        if lr_scheduler is not None and not {"scheduler"} <= set(lr_scheduler) <= SCHEDULER_KEYS:
            raise ValueError(
                f"lr_scheduler needs scheduler and may have {', '.join(sorted(SCHEDULER_KEYS - {'scheduler'}))}; "
                f"got {', '.join(sorted(lr_scheduler)) or 'nothing'}"
            )
        self.optimizer, self.seed, self.lr_scheduler = optimizer, seed, lr_scheduler
        self.optimizer_groups = dict(optimizer_groups or {})
        self.epoch_means, self.window_means = Means(), Means()
        self.evaluation_means: dict[str, Means] = {}
        self.latest: dict[str, Tensor] = {}  # this step's terms, for the message where one is not finite
        self.compiled: Callable[[Tensor, tuple[int, ...]], tuple[Tensor, dict[str, Tensor]]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """As of every module. Lightning writes the name of each hook that it calls, twenty and more in a step: a word
        is no parameter, and torch need not look whether it is."""
        if type(value) is str:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def posterior(self, x: Tensor) -> Distribution:
        """q(z|x), batch shape (B,)."""
        return self.latent(self.encoder(x))

    def prior(self) -> Distribution:
        """p(z), batch shape ()."""
        return self.p_z(self.latent, self.posterior)

    def decode(self, z: Tensor) -> Tensor:
        """z (S, B, *event) -> decoder output (S, B, *shape), in one call for all samples. At least float32, so that
        784 pixels sum to nats without rounding. Of several stochastic layers it sees the first, which may come alone:
        (S, B, *layer)."""
        dtype = next(self.decoder.parameters(), z).dtype  # a decoder may have no parameters
        flat = self.latent.inputs(z).flatten(2).flatten(0, 1).to(dtype)
        output = self.decoder(flat)  # (S*B, size) -> (S*B, *shape)
        return output.to(torch.promote_types(output.dtype, torch.float32)).unflatten(0, z.shape[:2])

    def nats(self, x: Tensor) -> Cost:
        """The reconstruction cost of x: z (S, B, *event) -> -log p(x|z), (S, B)."""
        return lambda z: self.likelihood(self.decode(z), x)

    @torch.no_grad()
    def sample(self, images: int) -> Tensor:
        """Means of p(x|z) for z from the prior: (images, *shape)."""
        z = self.prior().sample((1, images))
        return self.likelihood.mean(self.decode(z))[0]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with the scheduler of its learning rate where there is one.

        Raises:
            ValueError: the model was made without an optimizer, or a group of it has no parameters.
        """
        if self.optimizer is None:
            raise ValueError(f"{type(self).__name__} was made without an optimizer, so it cannot be trained")
        optimizer = self.optimizer(self.parameter_groups())
        if self.lr_scheduler is None:
            return optimizer
        schedule: LRSchedulerConfigType = {
            "scheduler": self.lr_scheduler["scheduler"](optimizer),
            "interval": self.lr_scheduler.get("interval", "epoch"),
            "frequency": self.lr_scheduler.get("frequency", 1),
            "monitor": self.lr_scheduler.get("monitor"),
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def parameter_groups(self) -> list[dict[str, Any]] | Iterator[nn.Parameter]:
        """What the optimizer is given: all parameters as one group; or those without settings of their own, and then
        each part that has some.

        Raises:
            ValueError: `optimizer_groups` names a part without parameters.
        """
        if not self.optimizer_groups:
            return self.parameters()
        parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            part = part_of(name)
            parts.setdefault(part if part in self.optimizer_groups else "", []).append(parameter)
        if missing := next((part for part in self.optimizer_groups if part not in parts), None):
            known = dict.fromkeys(filter(None, (part_of(name) for name, _ in self.named_parameters())))
            raise ValueError(
                f"optimizer_groups.{missing}: nothing of it is learned with {type(self.latent).__name__} and "
                f"{type(self.estimator).__name__} (which learn: {', '.join(known) or 'nothing that has a group'})"
            )
        return [{"params": parts[part], **self.optimizer_groups.get(part, {})} for part in ("", *self.optimizer_groups)]

    # --- training ---------------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """() mean loss of a batch plus control loss; the noise is a function of (seed, epoch, batch, process)."""
        x, _ = batch
        seeds = (self.seed, NOISE, self.current_epoch, batch_idx, self.global_rank)
        if self.compiled is None:
            seed_noise(self.device, *seeds)
            loss, self.latest = self.losses(x)
        else:
            loss, self.latest = self.compiled(x, seeds)
        stacked = torch.stack(list(self.latest.values()))
        for means in (self.epoch_means, self.window_means):
            means.names = [f"train/{name}" for name in self.latest]
            means.add(stacked, len(x))
        return loss

    def losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mathematics of a training step.

        Args:
            x: (B, *shape).

        Returns:
            () the mean loss plus control loss, to differentiate; and what is logged of it, 0-d, without gradient.
        """
        q, nats = self.posterior(x), self.nats(x)
        options: dict[str, Any] = {}  # an objective of one's own may know neither
        if (scheduled := getattr(self.objective, "scheduled", None)) is not None:
            options["beta"] = scheduled
        terms = self.objective(q, self.prior(), nats, self.estimator, x, **options, **further(self.deeper))
        loss = terms.loss.mean()
        with torch.no_grad():
            # The estimators that do not relax have evaluated the loss at samples of the true q already.
            if self.estimator.relaxed:
                unrelaxed = self.objective.unrelaxed_given_kl(q, nats, terms.kl, **options).loss.mean()
            else:
                unrelaxed = terms.at_samples.mean()
            values = {
                "loss": loss.detach(),
                "loss_unrelaxed": unrelaxed,
                "relaxation_gap": unrelaxed - loss,
                "reconstruction": terms.reconstruction.mean(),
                "kl": terms.kl.mean(),
                **self.extra_metrics(q, terms),
            }
        return loss + terms.control_loss, {name: value.float() for name, value in values.items()}

    def extra_metrics(self, q: Distribution, terms: Terms) -> dict[str, Tensor]:
        """What the family logs besides: 0-d tensors, cheap, without gradient."""
        return {}

    # --- evaluation -------------------------------------------------------------------------------------------

    def evaluation_step(self, split: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The unrelaxed loss on a split, with the same noise at each evaluation and for every estimator."""
        x, _ = batch
        seed_noise(self.device, self.seed, EVALUATION, batch_idx, self.global_rank)
        terms = self.objective.unrelaxed(self.posterior(x), self.prior(), self.nats(x))
        means = self.evaluation_means.setdefault(split, Means())
        means.names = [f"{split}/{name}" for name in ("loss", "reconstruction", "kl")]
        means.add(torch.stack([terms.loss.mean(), terms.reconstruction.mean(), terms.kl.mean()]), len(x))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """`evaluation_step` on the split that the loader is of."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        self.evaluation_step(datamodule.validation_splits[dataloader_idx], batch, batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """`evaluation_step` on the test split."""
        self.evaluation_step("test", batch, batch_idx)

    # --- exact resume: what has been accumulated since the epoch began --------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Adds the running means, so that an epoch resumed halfway reports what it would have."""
        checkpoint["means"] = {
            "epoch": self.epoch_means.state_dict(),
            "window": self.window_means.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Takes the running means back."""
        self.epoch_means.load_state_dict(checkpoint["means"]["epoch"])
        self.window_means.load_state_dict(checkpoint["means"]["window"])


class GaussianVAE(VAE):
    """Gaussian posterior, pathwise gradient (Kingma and Welling 2014). Logs the mean posterior scale."""

    latents = (Gaussian,)

    def extra_metrics(self, q: Distribution, terms: Terms) -> dict[str, Tensor]:
        """The mean of sigma over images and variables; nothing of another posterior."""
        b = base(q)
        return {"posterior_scale": b.scale.mean()} if isinstance(b, Normal) else {}


class DiscreteVAE(VAE):
    """Categorical or Bernoulli posterior. Logs the perplexity of q(z|x) per variable: 1 is certain."""

    latents: ClassVar[tuple[type[Latent], ...]] = (Categorical, Bernoulli)

    def extra_metrics(self, q: Distribution, terms: Terms) -> dict[str, Tensor]:
        """exp of the mean entropy of a variable, over images too: from 1 to the number of classes. Of several
        stochastic layers that of the first."""
        if type(self.latent) not in (Categorical, Bernoulli):  # another posterior, perhaps
            with suppress(NotImplementedError):  # nor has every posterior an entropy
                return {"posterior_perplexity": (q.entropy().mean() / self.latent.event_shape[0]).exp()}
            return {}
        assert isinstance(self.latent, Discrete)
        variables, *classes = self.latent.layer_shape
        if self.latent.layers == 1 and isinstance(self.p_z, Fixed):
            # the prior is uniform: entropy = log(states) - KL, for nothing
            states = classes[0] if classes else 2
            return {"posterior_perplexity": states * (-terms.kl.mean() / variables).exp()}
        q = first(q)
        return {"posterior_perplexity": (-log_prob(q, q.mean).mean() / variables).exp()}


class GumbelSoftmaxVAE(DiscreteVAE):
    """Trained on relaxed samples (Jang et al. 2017); the relaxation gap and the temperature are what to watch."""


class StraightThroughVAE(DiscreteVAE):
    """True samples going forward, a surrogate going backward (Bengio et al. 2013); the gap is zero by design.

    With vector quantization the posterior is always certain. Logged in place of its perplexity: that of the codes over
    batch and variables (how many are in use), and the squared distance between encoding and codes.
    """

    latents = (Categorical, Bernoulli, VQ)

    def extra_metrics(self, q: Distribution, terms: Terms) -> dict[str, Tensor]:
        """That of `DiscreteVAE`; for vector quantization, use of the codes and squared distance to them."""
        if not isinstance(self.latent, VQ):
            return super().extra_metrics(q, terms)
        q = nearest_code(q, type(self).__name__)
        usage = one_hot(q.index, len(q.codebook), torch.float32).mean((0, 1))  # (B, L, K) -> (K,)
        return {
            "code_perplexity": perplexity(usage),
            "quantization_error": (q.encoding - q.codes).square().sum((-1, -2)).mean(),
        }


class ReinforceVAE(VAE):
    """Cost at true samples, gradient through log q or through the sum over states (Williams 1992), for any latent.
    Logs the spread of the costs, which is what a baseline is for."""

    latents = (Categorical, Bernoulli, Gaussian)

    def extra_metrics(self, q: Distribution, terms: Terms) -> dict[str, Tensor]:
        """Standard deviation of the costs over samples and images, in nats."""
        return {"cost_std": terms.cost.std(correction=0)}


class ExpectedCost(VAE):
    """A toy problem: min over logits of E_q(z)[f(z)], with the estimators, the runner and the audit of a VAE.

    It is a VAE whose encoder is free logits, whose decoder leaves z as it is, whose -log p(x|z) is the cost f, and
    whose objective weighs the KL with 0. Of x only the batch size counts, the number of independent draws in a step. It
    is evaluated by the exact expected cost, and logs the probabilities where they are few.

    Args:
        encoder: `vi_lab.problems.Logits`; begins where the cost says.
        likelihood: the cost f.
        others: as of `VAE`.

    Raises:
        TypeError: the latent is not one layer of binary or categorical variables, or the encoder and the cost are not
            those of a toy problem.
        ValueError: the objective weighs the KL, or the cost does not take the latent.
    """

    shown = 8
    """Up to so many probabilities are logged."""

    def __init__(
        self, latent: Latent, encoder: nn.Module, decoder: nn.Module, likelihood: ToyCost, **arguments: Any
    ) -> None:
        super().__init__(latent, encoder, decoder, likelihood, **arguments)  # type: ignore[arg-type]
        if not isinstance(encoder, Logits) or not isinstance(likelihood, ToyCost):
            raise TypeError(
                "an expected cost needs vi_lab.problems.Logits and a vi_lab.problems.ToyCost, got "
                f"{type(encoder).__name__} and {type(likelihood).__name__}"
            )
        if self.objective.beta != 0 or self.objective.scheduled is not None:
            raise ValueError(f"an expected cost has no KL: wanted objective.beta=0, got {self.objective.beta}")
        self.cost: ToyCost = likelihood
        with torch.no_grad():
            encoder.logits.copy_(likelihood.begin(discrete_latent(latent)))

    def expected(self, q: Distribution) -> Tensor:
        """E_q f, exact and differentiable: (B,)."""
        return self.cost.expected(q)

    def losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As of `VAE`, without the parts of a bound."""
        loss, values = super().losses(x)
        return loss, {name: value for name, value in values.items() if name not in ("reconstruction", "kl")}

    def extra_metrics(self, q: Distribution, terms: Terms) -> dict[str, Tensor]:
        """The exact expected cost, and the probabilities of the states (of bits: of a 1) where they are few."""
        probabilities = q.mean[0].flatten()
        few = probabilities if len(probabilities) <= self.shown else probabilities[:0]
        return {"expected_cost": self.expected(q).mean(), **{f"probability_{index}": p for index, p in enumerate(few)}}

    def evaluation_step(self, split: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The exact expected cost as the split's loss: the same for every split."""
        means = self.evaluation_means.setdefault(split, Means())
        means.names = [f"{split}/loss"]
        means.add(self.expected(self.posterior(batch[0])).mean()[None], len(batch[0]))
