"""Best of n: how far choosing alone gets, without any training.

Of n responses of the initial model the one with the highest score is taken. That too is a policy, and its distance from the
initial model is known: KL = ln n - (n-1)/n nats (Stiennon et al. 2020, arXiv:2009.01325, appendix G.3), less where single
responses are likely enough to be drawn twice (Beirami et al. 2024, arXiv:2401.01879). Drawn beside the path of PPO in the
plane of score and KL, it is what any training should be held against. It over-optimises a reward in the same way (Gao et al.
2022, arXiv:2210.10760), which judges show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from konomi.config import CompareConfig, RolloutConfig
from konomi.data.records import Prompt
from konomi.data.tokens import Tokens
from konomi.engine.sampler import make_draws, sample
from konomi.rewards.base import Reward, columns_of, score

BATCH = 64


def best_of_n(
    model: PreTrainedModel,
    tokens: Tokens,
    prompts: Sequence[Prompt],
    queries: Sequence[Sequence[int]],
    reward: Reward,
    judges: Mapping[str, Reward],
    *,
    rollout: RolloutConfig,
    config: CompareConfig,
    autocast: Callable[[], AbstractContextManager[Any]],
    failed_texts: Path | None = None,
) -> list[dict[str, Any]]:
    """Draw ``config.best_of`` responses to each query and return what the best of 1, 2, 4, ... of them is worth.

    Returns:
        One row for each n: ``n``, ``kl`` (nats/response), ``score``, ``judges`` (name -> score of the chosen response); means
        over prompts. None at all if ``config.best_of`` is 0.
    """
    count = config.best_of
    if count == 0:
        return []
    items = [(prompt, query, i) for prompt, query in zip(prompts, queries, strict=True) for i in range(count)]
    pairs: list[tuple[str, str]] = []
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        draws = make_draws(rollout, config.seed, [("best of", prompt.stream, i) for prompt, _, i in part])
        with autocast():
            drawn = sample(model, tokens, [query for _, query, _ in part], draws, rollout, "the initial model")
        pairs += [
            tokens.split(prompt.text, query, response)
            for (prompt, query, _), response in zip(part, drawn.response_ids(), strict=True)
        ]
    asked, responses = [q for q, _ in pairs], [r for _, r in pairs]
    columns = columns_of([prompt for prompt, _, _ in items])
    scores, *judged = (
        np.asarray(score(each, asked, responses, columns, save_to=failed_texts)).reshape(-1, count)
        for each in (reward, *judges.values())
    )
    rows = []
    for n in sizes(count):
        chances = chosen(scores, n)
        rows.append(
            {
                "n": n,
                "kl": kl(n),
                "score": float((chances * scores).sum(1).mean()),
                "judges": {name: float((chances * of).sum(1).mean()) for name, of in zip(judges, judged, strict=True)},
            }
        )
    return rows


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
    found = np.empty_like(scores_BN)
    for row, scores in zip(found, scores_BN, strict=True):
        _, group, tied = np.unique(scores, return_inverse=True, return_counts=True)
        shares = [math.fsum(by_rank[end - size : end]) / size for end, size in zip(np.cumsum(tied), tied, strict=True)]
        row[:] = np.asarray(shares)[group]
    return found
