"""RELAX: REBAR whose control variate is a learned function.

    d/dphi E_q[f(b)] = E[ (f(b) - c(z~)) d/dphi log q(b) + d/dphi c(z) - d/dphi c(z~) ],
    c(z) = eta * f(softmax(z / tau)) + r(softmax(z / tau))

Grathwohl et al. 2018 (arXiv 1711.00123). Unbiased for every c; eta, tau and the network r are learned on the variance.
This is the paper's control variate for variational autoencoders, where r alone did worse than REBAR; its eta is 1,
here REBAR's is kept. z, b, z~ and how they are tied: see REBAR.
"""

from __future__ import annotations

from torch import Tensor, nn

from vi_lab.estimators.base import Cost
from vi_lab.estimators.rebar import REBAR


class RELAX(REBAR):
    """Starts as REBAR: r is zero before it has learned.

    Args:
        temperature, eta: see `REBAR`.
        hidden: tanh units of r's one hidden layer (smooth, since r' is learned). Its input size is that of z, taken at
            the first call.
    """

    def __init__(self, samples: int = 1, temperature: float = 1.0, eta: float = 1.0, hidden: int = 50) -> None:
        super().__init__(samples, temperature, eta)
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Flatten(2), nn.LazyLinear(hidden), nn.Tanh(), last)

    def control(self, relaxed: Tensor, cost: Cost) -> Tensor:
        """REBAR's c plus the network's r, in nats: (S, B, *event) -> (S, B)."""
        return super().control(relaxed, cost) + self.network(relaxed).squeeze(-1)
