"""DisARM-Tree: DisARM for categorical variables, each drawn by walking down a binary tree over its classes.

    node k:  b_k ~ Bernoulli(sigmoid(alpha_k)),  alpha_k = log p(classes on its first side) - log p(on its second)
    d/dphi E_q[f(z)] = E[ (f(z) - f(z')) sum_k used_k (b_k - b'_k) sigmoid(|alpha_k|) / 2  d alpha_k / dphi ]

Dong, Mnih and Tucker 2021 (arXiv 2106.08056). Every node of every tree gets an antithetic pair of bits (b_k, b'_k);
z and z' are the leaves that they lead to. The nodes are independent and f is a function of their bits, so this is
DisARM over nodes, and unbiased. With two classes the tree is one node and the estimator is DisARM.

used_k says that z or z' passes node k. Where neither does, f(z) - f(z') does not depend on the noise of that node,
whose weight has mean zero given all the rest: leaving it out keeps the mean and takes its noise away. Departures: the
tree is the balanced heap of any number of classes; cost gradient and pairs as in `arm.py`.
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


class DisARMTree(DisARM):
    """`samples` / 2 antithetic pairs for categorical variables."""

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S / 2 pairs, however many classes; TypeError where `q` is not categorical."""
        logits = categorical(q, type(self).__name__).logits  # (B, L, C)
        tree = binary_tree(logits.shape[-1]).to(logits)  # (C-1, C)

        def log_mass(classes: Tensor) -> Tensor:  # (C-1, C) -> (B, L, C-1)
            return logits.unsqueeze(-2).masked_fill(~classes, -torch.inf).logsumexp(-1)

        alpha = log_mass(tree > 0) - log_mass(tree < 0)
        noise = logistic_like(alpha, self.samples // 2)  # (S/2, B, L, C-1)
        turns = torch.where(torch.cat([alpha + noise, alpha - noise]) > 0, 1.0, -1.0).to(logits.dtype)
        z = (turns @ tree == tree.abs().sum(0)).to(logits.dtype)  # (S, B, L, C): all turns above the leaf lead to it
        first, second = (z @ tree.abs().T).chunk(2)  # 1 where a sample passes the node
        weight = self.weight(alpha, noise) * torch.maximum(first, second)
        return antithetic(cost(z), (weight.detach() * alpha).sum((-1, -2)))
