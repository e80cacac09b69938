"""Advantages: of every token with a critic, and of whole responses compared with the others to their prompt.

Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation" (arXiv:1506.02438).
One timeline: ``values[t]`` is the estimate before response token t, ``rewards[t]`` comes after it.

Shapes: B sequences, R response positions, P prompts, K responses to each. Mask: True counts.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from konomi.ops.masked import check_shapes, widen, zero_masked


def gae(rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantage and return of every token: a reward is shared out, by ``lam``, between the critic and what came after.

    ``delta[t] = r[t] + gamma V[t+1] - V[t]``, ``A[t] = sum_l (gamma lam)^l delta[t+l]`` (eq. 16), ``return = A + V``,
    with V = 0 after the last token: a response that was cut off counts as ended. ``lam = 0`` is the one-step error
    (eq. 17), ``lam = 1`` the discounted sum of rewards minus ``V[t]`` (eq. 18).

    ``rewards_BR``, ``values_BR`` [B, R] in score units; ``mask_BR`` [B, R], right-padded as a rule: a masked position
    anywhere is skipped as if it were not there. ``gamma`` (discount a token) and ``lam`` in 0..1. Returns
    ``(advantages_BR, returns_BR)``, score units, 0 where masked.

    Where we differ: TRL 0.11 lets the recursion run through the padding, so that rewards which whitening had shifted
    away from 0 there leak into every shorter response; here padding has no reward.

    >>> rewards, values = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[0.5, 0.5, 5.0]])
    >>> gae(rewards, values, torch.tensor([[True, True, False]]), gamma=1.0, lam=0.5)
    (tensor([[0.2500, 0.5000, 0.0000]]), tensor([[0.7500, 1.0000, 0.0000]]))
    """
    check_shapes(rewards_BR=rewards_BR, values_BR=values_BR, mask_BR=mask_BR)
    values_BR = zero_masked(values_BR, mask_BR)
    from_here_BR = _backwards((~mask_BR).to(values_BR.dtype), values_BR)  # the value of the next valid token, this one included
    next_BR = functional.pad(from_here_BR[:, 1:], (0, 1))
    delta_BR = zero_masked(rewards_BR + gamma * next_BR - values_BR, mask_BR)
    share_BR = torch.where(mask_BR, torch.full_like(values_BR, gamma * lam), 1)
    advantages_BR = zero_masked(_backwards(share_BR, delta_BR), mask_BR)
    return advantages_BR, advantages_BR + values_BR


def _backwards(share_BR: Tensor, x_BR: Tensor) -> Tensor:
    """``y[t] = x[t] + share[t] y[t+1]``, in as many steps as R has binary digits (Hillis and Steele 1986)."""
    width, step = x_BR.shape[1], 1
    while step < width:
        later = (0, step)
        x_BR = x_BR + share_BR * functional.pad(x_BR[:, step:], later)
        share_BR = share_BR * functional.pad(share_BR[:, step:], later)
        step *= 2
    return x_BR


def leave_one_out(scores_B: Tensor, group: int) -> Tensor:
    """Each score less the mean of the others in its group: ``A_i = s_i - 1/(k-1) sum_{j != i} s_j``.

    ``scores_B`` [B], the ``group`` = k >= 2 responses to one prompt in a row. Returns [B], score. The baseline does not
    depend on the response that it is subtracted from, so the policy gradient stays unbiased (Kool et al. 2019; Ahmadian
    et al. 2024, arXiv:2402.14740, eq. 8).

    >>> leave_one_out(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2)
    tensor([-2.,  2.,  0.,  0.])
    """
    grouped_PK = _grouped(scores_B, group)
    others_PK = (grouped_PK.sum(1, keepdim=True) - grouped_PK) / (group - 1)
    return (grouped_PK - others_PK).reshape(-1)


def group_relative(scores_B: Tensor, group: int, *, scale: Literal["group", "batch", "none"] = "group") -> Tensor:
    """Each score less the mean of its group, in deviations: ``A_i = (s_i - mean) / (std + 1e-4)``.

    GRPO (Shao et al. 2024, arXiv:2402.03300, section 4.1.2). ``scale``: std is that of the group, that of all scores
    (``batch``), or there is no division (``none``: Liu et al. 2025, "Understanding R1-Zero-like training", arXiv:2503.20783).
    ``scores_B`` [B], the ``group`` = K >= 2 responses to one prompt in a row; std divides by n - 1. Returns [B]: without
    unit, with ``none`` score. Equal scores give 0.

    >>> group_relative(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2)
    tensor([-0.7071,  0.7071,  0.0000,  0.0000])
    >>> group_relative(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2, scale="none")
    tensor([-1.,  1.,  0.,  0.])
    """
    grouped_PK = _grouped(scores_B, group)
    centred_PK = grouped_PK - grouped_PK.mean(1, keepdim=True)
    if scale == "group":
        centred_PK = centred_PK / (grouped_PK.std(1, keepdim=True) + 1e-4)
    elif scale == "batch":
        centred_PK = centred_PK / (grouped_PK.std() + 1e-4)
    elif scale != "none":
        raise ValueError(f"scale is {scale!r}: take group, batch or none")
    return centred_PK.reshape(-1)


def best_of_n(scores_B: Tensor, group: int, *, backward: float) -> Tensor:
    """How far the policy is from answering as the best of n: a term that imitates the best of its responses, and one that
    leaves those of low rank.

    With ``b_i = 1`` for the best of the n responses to a prompt, else 0, and ``q_i`` the share of them that score no more
    than response i,
    ``A_i = (1 - backward) (n b_i - 1) + backward ((n - 1) log q_i - mean_j (n - 1) log q_j)``. The gradient of
    ``sum_i A_i log p(y_i) / n`` estimates, negated, that of ``(1 - backward) KL(best || p) + backward KL(p || best)`` where p
    is what the responses were drawn from: the best of n has the density ``n p F^(n - 1)``, F being the share of p that scores
    no more, which q estimates (Sessa et al. 2024, "BOND: aligning LLMs with best-of-n distillation", arXiv:2407.14622,
    sections 3 and 4). What is subtracted is the same for all orders of different scores: it adds no bias.

    ``scores_B`` [B], the ``group`` = n >= 2 responses to one prompt in a row; equal best ones share their 1. Returns [B], nats;
    the sum over a prompt is 0, and so are those of equal scores. Where we differ from the paper: one order of n responses
    serves both terms, there q is taken from further responses.

    >>> best_of_n(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2, backward=0.0)
    tensor([-1.,  1.,  0.,  0.])
    >>> best_of_n(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2, backward=1.0)
    tensor([-0.3466,  0.3466,  0.0000,  0.0000])
    """
    grouped_PK = _grouped(scores_B, group)
    best_PK = (grouped_PK == grouped_PK.amax(1, keepdim=True)).to(grouped_PK.dtype)
    forward_PK = group * best_PK / best_PK.sum(1, keepdim=True) - 1
    below_PK = (grouped_PK[:, None] <= grouped_PK[:, :, None]).to(grouped_PK.dtype).sum(2)
    rank_PK = (group - 1) * (below_PK / group).log()
    backward_PK = rank_PK - rank_PK.mean(1, keepdim=True)
    return ((1 - backward) * forward_PK + backward * backward_PK).reshape(-1)


def _grouped(scores_B: Tensor, group: int) -> Tensor:
    """[P, K]: the scores of each prompt."""
    check_shapes(scores_B=scores_B)
    if group < 2 or len(scores_B) % group:
        raise ValueError(f"group is {group}: give 2 or more, and a divisor of the {len(scores_B)} scores")
    return widen(scores_B).reshape(-1, group)
