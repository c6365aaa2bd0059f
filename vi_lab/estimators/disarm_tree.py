"""DisARM-Tree: DisARM for categorical variables, each drawn by walking down a binary tree over its classes.

    node k:  b_k ~ Bernoulli(sigmoid(alpha_k)),  alpha_k = log p(classes on its first side) - log p(on its second)
    d/dphi E_q[f(z)] = E[ (f(z) - f(z')) sum_k w_k  d alpha_k / dphi ],  p_k = sigmoid(alpha_k)

    w_k = (b_k - b'_k) sigmoid(|alpha_k|) / 2   where z and z' both pass node k
          (b_k - p_k) / 2                       where z alone passes it
          (p_k - b'_k) / 2                      where z' alone does
          0                                     where neither does

Dong, Mnih and Tucker 2021 (arXiv 2106.08056). Every node of every tree gets an antithetic pair of bits (b_k, b'_k);
z and z' are the leaves that they lead to. With two classes the tree is one node and the estimator is DisARM.

Which of the two pass a node depends on the pairs of other nodes alone. Given those, a node that both pass is one
Bernoulli of DisARM; where z alone passes it, f(z') does not depend on b_k, and f(z) (b_k - p_k) / 2 is that half of the
score function which is z's, with f(z') as its baseline; where neither passes it, nothing depends on its bits. So each
case is unbiased. Departures: the tree is the balanced heap of any number of classes; cost gradient and pairs as in
`arm.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import categorical, logistic_like
from vi_lab.estimators.base import Cost, Estimate
from vi_lab.estimators.disarm import DisARM
from vi_lab.estimators.surrogates import antithetic

# Nodes are numbered as in a heap: the children of k are 2k and 2k + 1, the root is 1, the leaves are C to 2C - 1, which
# are the classes in their order. A level of the tree is a slice of the numbers, so each function goes level by level.


def node_logits(logits: Tensor) -> Tensor:
    """alpha of the nodes 1 to C - 1, from log probabilities of the classes: (B, L, C) -> (B, L, C - 1)."""
    classes = logits.shape[-1]
    shallow = 2 ** classes.bit_length() - classes  # so many leaves end one level above the others
    mass, leaves = logits[..., shallow:], logits[..., :shallow]  # log p of the nodes of a level
    alpha: list[Tensor] = []
    while not alpha or mass.shape[-1] > 1:
        first, second = mass[..., ::2], mass[..., 1::2]
        alpha.append(first - second)
        mass, leaves = torch.cat([torch.logaddexp(first, second), leaves], -1), leaves[..., :0]
    return torch.cat(alpha[::-1], -1)


def walk(first: Tensor) -> tuple[Tensor, Tensor]:
    """From whether each node leads to its first side, (..., C - 1): which nodes are passed, (..., C - 1), and which
    leaf is reached, (..., C). All boolean."""
    nodes = first.shape[-1]
    level = leaves = first.new_ones((*first.shape[:-1], 1))
    passed: list[Tensor] = []
    done = 0
    while done < nodes:
        count = min(level.shape[-1], nodes - done)  # the others of this level are leaves
        inner, leaves, turns = level[..., :count], level[..., count:], first[..., done : done + count]
        passed.append(inner)
        level = torch.stack([inner & turns, inner & ~turns], -1).flatten(-2)
        done += count
    return torch.cat([first[..., :0], *passed], -1), torch.cat([leaves, level], -1) if passed else level


class DisARMTree(DisARM):
    """`samples` / 2 antithetic pairs for categorical variables."""

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S / 2 pairs, however many classes; TypeError where `q` is not categorical."""
        alpha = node_logits(categorical(q, type(self).__name__).logits)  # (B, L, C-1)
        noise = logistic_like(alpha, self.samples // 2)  # (S/2, B, L, C-1)
        bits = torch.cat([alpha + noise, alpha - noise]) > 0  # (S, B, L, C-1)
        passed, z = walk(bits)
        first, second = passed.chunk(2)
        score, other = (0.5 * (bits.to(alpha.dtype) - alpha.sigmoid())).chunk(2)  # half of b - p
        alone = torch.where(first, score, 0) - torch.where(second, other, 0)
        weight = torch.where(first & second, self.weight(alpha, noise), alone)
        return antithetic(cost(z.to(alpha.dtype)), (weight.detach() * alpha).sum((-1, -2)))
