"""Best of n: how far choosing alone gets, without any training.

Of n responses of the initial model the one with the highest score is taken. That too is a policy, and its distance from the
initial model is known: KL = ln n - (n-1)/n nats (Stiennon et al. 2020, arXiv:2009.01325, appendix G.3), less where single
responses are likely enough to be drawn twice (Beirami et al. 2024, arXiv:2401.01879). Drawn beside the path of PPO in the
plane of score and KL, it is what any training should be held against. It over-optimises a reward in the same way (Gao et al.
2022, arXiv:2210.10760), which judges show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def best_of_n(scores_BN: NDArray[np.float64], judged: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """What the best of 1, 2, 4, ... of each prompt's N responses is worth.

    Args:
        scores_BN: of the reward that chooses.
        judged: judge -> its scores, [B, N].

    Returns:
        One row for each n: ``n``, ``kl`` (nats/response), ``score``, ``judges`` (name -> score of the chosen response); means
        over prompts.
    """

    def row(n: int) -> dict[str, Any]:
        chances = chosen(scores_BN, n)
        judges = {name: float((chances * scores).sum(1).mean()) for name, scores in judged.items()}
        return {"n": n, "kl": kl(n), "score": float((chances * scores_BN).sum(1).mean()), "judges": judges}

    return [row(n) for n in sizes(scores_BN.shape[1])]


def sizes(count: int) -> list[int]:
    """The powers of two up to ``count``, and ``count``.

    >>> sizes(16), sizes(12)
    ([1, 2, 4, 8, 16], [1, 2, 4, 8, 12])
    """
    return sorted({2**i for i in range(count.bit_length())} | {count})


def kl(n: int) -> float:
    """KL of best-of-n from the policy that it chooses from, nats: ``ln n - (n-1)/n``.

    >>> kl(1), round(kl(16), 4)
    (0.0, 1.8351)
    """
    return math.log(n) - (n - 1) / n


def chosen(scores_BN: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """How likely each of a prompt's N responses is the best of n drawn from them without putting back: [B, N], rows sum to 1.

    The one with i-1 scores below its own is, if nothing ties, the best of ``C(i-1, n-1)`` of the ``C(N, n)`` subsets. So the
    mean of anything under these chances is the mean over all subsets of its value at the best: an unbiased estimate of what
    the best of n has. Those with equal scores share their chances.

    >>> chosen(np.array([[3.0, 1.0, 2.0, 2.0]]), 2).round(3).tolist()
    [[0.5, 0.0, 0.25, 0.25]]
    """
    count = scores_BN.shape[1]
    by_rank = [math.comb(rank, n - 1) / math.comb(count, n) for rank in range(count)]
    chances_BN = np.empty_like(scores_BN)
    for row, scores in zip(chances_BN, scores_BN, strict=True):
        _, group, tied = np.unique(scores, return_inverse=True, return_counts=True)
        shares = [math.fsum(by_rank[end - size : end]) / size for end, size in zip(np.cumsum(tied), tied, strict=True)]
        row[:] = np.asarray(shares)[group]
    return chances_BN
