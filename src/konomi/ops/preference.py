"""Losses of reward models: sums, which the caller divides by the count of the whole batch; scores of several of them.

A score is a number of any scale; only differences between answers to one prompt count. Several reward models that have a
common scale become one by ``conservative_scores``.

Shape suffixes: N responses of a batch, P pairs of them, C labels, K reward models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from konomi.ops.masked import check_shapes, widen


def preference_loss(
    scores_N: Tensor, better_P: Tensor, worse_P: Tensor, labels_P: Tensor, margins_P: Tensor, weights_P: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Cross-entropy of a Bradley-Terry model: who is better is a coin whose log-odds are the difference of scores.

    ``z = s_better - s_worse - margin``, ``loss = -sum w (l log sigmoid(z) + (1 - l) log sigmoid(-z))``
    (Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, eq. 1, where l = 1, margin = 0 and each of the
    K(K-1)/2 pairs of a prompt has the weight 1 over their number; the margin after Touvron et al. 2023,
    arXiv:2307.09288, eq. 2).

    ``scores_N`` [N]; ``better_P``, ``worse_P`` [P] int64, places in it; ``labels_P`` [P] probability that ``better`` is
    the better one, 0 to 1; ``margins_P`` [P] score units; ``weights_P`` [P].
    Returns the loss, a scalar in nats, and sums over pairs: ``right`` (weight of pairs that the scores order as the
    label does; equal scores count half; a label of 0.5 counts nothing) and ``decided`` (weight of the others).

    >>> zero, one = torch.zeros(1, dtype=torch.long), torch.ones(1)
    >>> loss, sums = preference_loss(torch.tensor([2.0, 2.0]), zero, zero + 1, one, 0 * one, one)
    >>> loss, sums["right"]
    (tensor(0.6931), tensor(0.5000))
    """
    check_shapes(
        scores_N=scores_N, better_P=better_P, worse_P=worse_P, labels_P=labels_P, margins_P=margins_P, weights_P=weights_P
    )  # fmt: skip
    gaps_P = scores_N[better_P] - scores_N[worse_P]
    losses_P = torch.nn.functional.binary_cross_entropy_with_logits(gaps_P - margins_P, labels_P.to(gaps_P), reduction="none")
    with torch.no_grad():
        leaning_P = torch.sign(labels_P.to(gaps_P) - 0.5)
        decided_P = weights_P * leaning_P.abs()
        right_P = decided_P * (1 + torch.sign(gaps_P) * leaning_P) / 2
    return (weights_P * losses_P).sum(), {"right": right_P.sum(), "decided": decided_P.sum()}


def score_loss(scores_N: Tensor, targets_N: Tensor) -> Tensor:
    """Half the squared error: ``0.5 sum (score - target)^2``.

    ``scores_N``, ``targets_N`` [N], in the units of the targets. Returns a scalar, units squared.

    >>> score_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(2.)
    """
    check_shapes(scores_N=scores_N, targets_N=targets_N)
    return 0.5 * (scores_N - targets_N).square().sum()


def label_loss(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Cross-entropy of soft-max: ``-sum log softmax(logits)[label]``.

    ``logits_NC`` [N, C]; ``labels_N`` [N] int64. Returns a scalar, nats.

    >>> label_loss(torch.zeros(3, 4), torch.tensor([0, 1, 3]))
    tensor(4.1589)
    """
    check_shapes(logits_NC=logits_NC, labels_N=labels_N)
    return torch.nn.functional.cross_entropy(logits_NC, labels_N, reduction="sum")


def conservative_scores(scores_KN: Tensor, pessimism: float) -> tuple[Tensor, Tensor]:
    """The mean of an ensemble's scores, less so many of their deviations: what its members disagree about is worth less.

    ``score = mean - pessimism * spread``, ``spread^2 = sum_k (s_k - mean)^2 / (K - 1)``
    (Coste et al. 2023, arXiv:2310.02743, uncertainty-weighted optimisation, which takes off the variance; a deviation has the
    scores' own unit).

    ``scores_KN`` [K, N], K from 2, on a common scale; ``pessimism`` deviations. Returns score and spread, [N] each.

    >>> conservative_scores(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), 1.0)
    (tensor([0.5858, 2.0000]), tensor([1.4142, 0.0000]))
    """
    check_shapes(scores_KN=scores_KN)
    scores_KN = widen(scores_KN)
    spread_N = scores_KN.std(0)
    return scores_KN.mean(0) - pessimism * spread_N, spread_N
