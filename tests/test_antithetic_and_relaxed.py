"""Identities of the antithetic estimators: ARM, DisARM and DisARM over trees.

Thresholds and false alarms are those of `toy.py`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy import PHI, ROWS, THRESHOLD, posterior, problem, worst

from vi_lab.distributions import logistic_like
from vi_lab.estimators import ARM, DisARM, DisARMTree, GradientEstimator
from vi_lab.estimators.disarm_tree import binary_tree


def samples_of(estimator: GradientEstimator, kind: str, phi: Tensor) -> Tensor:
    """The samples on which an estimator evaluates its cost, (S, B, *event)."""
    seen = []

    def cost(z: Tensor) -> Tensor:
        seen.append(z.detach())
        return z.flatten(2).sum(-1)

    estimator(posterior(kind, phi), cost)
    return seen[0]


# --- antithetic pairs ----------------------------------------------------------------------------------------------


def test_arm_is_the_papers_formula() -> None:
    """(f(1[u > sigmoid(-phi)]) - f(1[u < sigmoid(phi)])) (u - 1/2), u taken from the same noise."""
    toy = problem("bernoulli", "nonlinear")
    torch.manual_seed(0)
    _, gradient, _ = toy.draws(ARM(), rows=50)
    torch.manual_seed(0)
    phi, theta = toy.phi.expand(50, -1), toy.theta.expand(50, -1)
    u = logistic_like(phi, 1).sigmoid()
    f = [toy.f(z.double(), theta).T for z in (u > (-phi).sigmoid(), u < phi.sigmoid())]
    torch.testing.assert_close(gradient, (f[0] - f[1]) * (u[0] - 0.5))


def test_disarm_is_the_conditional_expectation_of_arm() -> None:
    """Given the pair, the mean of ARM's weight u - 1/2 is DisARM's weight, for each of the four pairs."""
    torch.manual_seed(0)
    for logit in PHI["bernoulli"]:
        noise = logistic_like(logit, 10 * ROWS)
        arm, disarm = ARM().weight(logit, noise), DisARM().weight(logit, noise)
        pair = 2 * (logit + noise > 0) + (logit - noise > 0)
        for value in pair.unique():
            weight = disarm[pair == value]
            assert weight.unique().numel() == 1  # a function of the pair alone
            assert worst(arm[pair == value], weight[0]) < THRESHOLD


def test_disarm_has_the_mean_of_arm_and_less_variance() -> None:
    toy = problem("bernoulli", "nonlinear")
    torch.manual_seed(0)
    arm = toy.draws(ARM())[1]
    torch.manual_seed(0)
    disarm = toy.draws(DisARM())[1]  # the same noise, so the same pairs
    assert worst(arm - disarm, torch.zeros(3)) < THRESHOLD
    assert (disarm.var(0) < arm.var(0)).all()


@pytest.mark.parametrize(
    ("kind", "estimator"), [("bernoulli", ARM(4)), ("bernoulli", DisARM(2)), ("categorical", DisARMTree(4))]
)
def test_each_member_of_a_pair_is_a_sample_of_q(kind: str, estimator: GradientEstimator) -> None:
    torch.manual_seed(0)
    phi = PHI[kind].expand(ROWS, *PHI[kind].shape)
    z = samples_of(estimator, kind, phi)
    mean = posterior(kind, PHI[kind][None]).mean[0]
    for members in z:
        assert worst(members, mean) < THRESHOLD
    first, second = z.chunk(2)
    assert ((first - first.mean((0, 1))) * (second - second.mean((0, 1)))).mean((0, 1)).lt(0).all()  # antithetic


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 8])
def test_the_tree_gives_the_classes_their_probabilities(classes: int) -> None:
    """Each leaf's probability is the product of those of the turns above it."""
    torch.manual_seed(0)
    tree = binary_tree(classes).double()
    assert tree.shape == (classes - 1, classes)
    p = torch.randn(classes, dtype=torch.float64).softmax(-1)
    first, below = p @ (tree.T > 0).double(), p @ tree.T.abs()
    turns = torch.where(tree > 0, (first / below)[:, None], torch.where(tree < 0, (1 - first / below)[:, None], 1.0))
    torch.testing.assert_close(turns.prod(0), p)
    z = samples_of(DisARMTree(2), "categorical", p.log().expand(ROWS, 1, classes))
    assert worst(z[0, :, 0], p) < THRESHOLD


def test_a_tree_of_two_classes_is_disarm() -> None:
    """Sample for sample with the same noise: logits (a, b) are one bit of logit a - b."""
    toy = problem("bernoulli", "nonlinear")
    theta = toy.theta.expand(50, -1)
    logits = torch.randn(50, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    bits = logits.detach().diff(dim=-1).neg().squeeze(-1).requires_grad_()
    torch.manual_seed(1)
    tree = DisARMTree(4)(posterior("categorical", logits), lambda z: toy.f(z[..., 0], theta))
    torch.manual_seed(1)
    disarm = DisARM(4)(posterior("bernoulli", bits), lambda z: toy.f(z, theta))
    torch.testing.assert_close(tree.cost, disarm.cost)
    (by_class,) = torch.autograd.grad(tree.loss.sum(), logits)
    (by_bit,) = torch.autograd.grad(disarm.loss.sum(), bits)
    torch.testing.assert_close(by_class, torch.stack([by_bit, -by_bit], -1))


def test_antithetic_errors() -> None:
    for estimator in (ARM, DisARM, DisARMTree):
        with pytest.raises(ValueError, match=f"{estimator.__name__} draws antithetic pairs: samples must be even"):
            estimator(samples=3)
    with pytest.raises(TypeError, match="ARM needs a Bernoulli posterior"):
        ARM()(posterior("categorical", torch.zeros(1, 2, 3)), lambda z: z.sum((-1, -2)))
    with pytest.raises(TypeError, match="DisARMTree needs a OneHotCategorical posterior"):
        DisARMTree()(posterior("bernoulli", torch.zeros(1, 2)), lambda z: z.sum(-1))
