"""Straight-through Gumbel-softmax: the true sample going forward, its relaxation going backward.

    y = softmax((logits + g) / tau),  z = onehot(argmax(logits + g)),  dz/dlogits := dy/dlogits

Jang et al. 2017, section 2.2 (arXiv 1611.01144). Biased; the value is that of a true sample.

With a temperature of its own for the backward pass, y = softmax(logits / tau_b + g / tau): "decoupled" (Shah et al.
2024, arXiv 2410.13331). The paper has a forward temperature too and samples from softmax(logits / tau_f). Here the
sample is always q's, or the loss would not be: put tau_f into the logits that q is made of. At tau = 1 this is then
the paper's method with tau_b / tau_f as the backward temperature; dividing g by tau is what makes tau_b = tau the
method of Jang et al.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import discrete, probabilities, standard_noise, vertex
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator, add_temperature
from vi_lab.estimators.surrogates import differentiable, straight_through


class StraightThroughGumbelSoftmax(GradientEstimator):
    """Hard forward, relaxed backward, with shared noise."""

    unbiased = False
    temperature: Tensor
    backward_temperature: Tensor | None

    def __init__(self, samples: int = 1, temperature: float = 1.0, backward_temperature: float | None = None) -> None:
        """backward_temperature: what divides the logits in the relaxation; null: the temperature."""
        super().__init__(samples)
        add_temperature(self, temperature)
        self.register_buffer("backward_temperature", None)
        if backward_temperature is not None:
            add_temperature(self, backward_temperature, "backward_temperature")

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples of the true q; TypeError where it is not discrete."""
        logits = discrete(q, "straight-through Gumbel-softmax").logits
        noise = standard_noise(q, self.samples)  # (S, B, *event)
        backward = self.temperature if self.backward_temperature is None else self.backward_temperature
        relaxed = probabilities(q, logits / backward + noise / self.temperature)
        return differentiable(cost(straight_through(vertex(q, logits + noise), relaxed)))
