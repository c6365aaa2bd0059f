"""DisARM: ARM with the noise integrated out given the pair of samples.

    d/dphi E_q[f(z)] = E[ (f(z) - f(z')) (z - z') sigmoid(|phi|) / 2 ],  (z, z') the antithetic pair of ARM

Dong, Mnih and Tucker 2020 (arXiv 2006.10680); the same estimator as the U2G of Yin et al. 2020. Unbiased, with a
variance that is never above ARM's: the weight is E[u - 1/2 | z, z'], which is zero where z = z' and
+-sigmoid(|phi|) / 2 where they differ. Two evaluations of f per pair. Departures as in `arm.py`.
"""

from __future__ import annotations

from torch import Tensor

from vi_lab.estimators.arm import ARM


class DisARM(ARM):
    """`samples` / 2 antithetic pairs for Bernoulli variables."""

    def weight(self, phi: Tensor, noise: Tensor) -> Tensor:
        """The mean of ARM's weight given the pair: 0 where z = z', 1/4 to 1/2 in size where they differ."""
        differs = noise.abs() > phi.abs()  # then z - z' is the sign of the noise
        return 0.5 * noise.sign() * differs * phi.abs().sigmoid()
