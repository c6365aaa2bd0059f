"""RELAX: REBAR whose control variate is a learned function.

    d/dphi E_q[f(b)] = E[ (f(b) - c(z~)) d/dphi log q(b) + d/dphi c(z) - d/dphi c(z~) ],
    c(z) = eta * f(softmax(z / tau)) + r(softmax(z / tau))

Grathwohl et al. 2018 (arXiv 1711.00123). Unbiased for every c; eta, tau and the network r are learned on the variance.
This is the paper's control variate for variational autoencoders, where r alone did worse than REBAR. Departures: eta is
1 in the paper, here REBAR's is kept; the authors' code gives r the sample z itself and the image x as well, which
`conditional` does, r(softmax(z / tau), z, x), and starts at tau = 0.5. z, b, z~ and how they are tied: see REBAR.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vi_lab.estimators.base import Cost
from vi_lab.estimators.rebar import REBAR


class RELAX(REBAR):
    """Starts as REBAR: r is zero before it has learned.

    Args:
        temperature, eta: see `REBAR`.
        hidden: tanh units of r's one hidden layer (smooth, since r' is learned). Its input size is taken at the first
            call.
        conditional: whether r sees z and the image besides the relaxed sample.
    """

    def __init__(
        self,
        samples: int = 1,
        temperature: float = 1.0,
        eta: float = 1.0,
        hidden: int = 50,
        conditional: bool = False,
    ) -> None:
        super().__init__(samples, temperature, eta)
        self.conditional = conditional
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.LazyLinear(hidden), nn.Tanh(), last)

    def control(self, relaxed: Tensor, z: Tensor, cost: Cost, context: Tensor | None) -> Tensor:
        """REBAR's c plus the network's r, in nats: (S, B, *event) -> (S, B)."""
        seen = [relaxed.flatten(2)]
        if self.conditional:
            seen.append(z.flatten(2))
            if context is not None:
                seen.append(context.flatten(1).to(z).expand(len(z), -1, -1))
        return super().control(relaxed, z, cost, context) + self.network(torch.cat(seen, -1)).squeeze(-1)
