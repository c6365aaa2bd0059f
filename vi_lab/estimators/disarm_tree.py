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

from functools import cache

import torch
from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import categorical, logistic_like
from vi_lab.estimators.base import Cost, Estimate
from vi_lab.estimators.disarm import DisARM
from vi_lab.estimators.surrogates import antithetic


@cache
def binary_tree(classes: int) -> Tensor:
    """(C - 1, C): +1 where a class lies on the first side of a node, -1 on its second, 0 where not below it.

    Nodes are numbered as in a heap: the children of k are 2k and 2k + 1, the root is 1, the leaves are C to 2C - 1.
    """
    sides = [[0.0] * classes for _ in range(classes - 1)]
    for leaf in range(classes):
        node = classes + leaf
        while node > 1:
            sides[node // 2 - 1][leaf] = -1.0 if node % 2 else 1.0
            node //= 2
    return torch.tensor(sides).reshape(classes - 1, classes)


def node_logits(logits: Tensor) -> Tensor:
    """alpha of each node, from log probabilities of the classes: (B, L, C) -> (B, L, C - 1)."""
    classes = logits.shape[-1]
    mass = [logits[..., 0]] * classes + list(logits.unbind(-1))  # log p below each node; 0 to C - 1 are set below
    for node in range(classes - 1, 0, -1):
        mass[node] = torch.logaddexp(mass[2 * node], mass[2 * node + 1])
    # a tree of one class has no node
    return torch.stack(mass[2::2], -1) - torch.stack(mass[3::2], -1) if classes > 1 else logits[..., :0]


class DisARMTree(DisARM):
    """`samples` / 2 antithetic pairs for categorical variables."""

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S / 2 pairs, however many classes; TypeError where `q` is not categorical."""
        logits = categorical(q, type(self).__name__).logits  # (B, L, C)
        tree = binary_tree(logits.shape[-1]).to(logits)  # (C-1, C)
        alpha = node_logits(logits)
        noise = logistic_like(alpha, self.samples // 2)  # (S/2, B, L, C-1)
        turns = torch.where(torch.cat([alpha + noise, alpha - noise]) > 0, 1.0, -1.0).to(logits.dtype)
        z = (turns @ tree == tree.abs().sum(0)).to(logits.dtype)  # (S, B, L, C): all turns above the leaf lead to it
        first, second = (z @ tree.abs().T).bool().chunk(2)  # whether a sample passes the node
        score, other = (0.5 * ((turns > 0).to(logits.dtype) - alpha.sigmoid())).chunk(2)  # half of b - p
        alone = torch.where(first, score, 0) - torch.where(second, other, 0)
        weight = torch.where(first & second, self.weight(alpha, noise), alone)
        return antithetic(cost(z), (weight.detach() * alpha).sum((-1, -2)))
