"""Best of n: how far choosing gets without any training.

Take the response with the highest score among n of the initial model. That too is a policy, and its distance from the initial
model is known: KL = ln n - (n-1)/n nats (Stiennon et al. 2020, arXiv:2009.01325, appendix G.3), or less if a response is
likely enough to be drawn twice (Beirami et al. 2024, arXiv:2401.01879). In the plane of score and KL it is the baseline of any
training. It over-optimises a reward in the same way (Gao et al. 2022, arXiv:2210.10760), which judges show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def best_of_n(scores_BN: NDArray[np.float64], judged: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Scores of the best of 1, 2, 4, ... of each prompt's N responses.

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
    """Chance of each of a prompt's N responses to be the best of n drawn without replacement: [B, N], rows sum to 1.

    Without ties, the response with i-1 scores below its own is the best of ``C(i-1, n-1)`` of the ``C(N, n)`` subsets;
    responses with equal scores share their chances. So the mean of any figure under these chances is its mean over the best of
    all subsets, an unbiased estimate for the best of n.

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
