"""Generalised advantage estimation on ragged responses.

Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation" (arXiv:1506.02438).
One timeline: ``values[t]`` is the estimate before response token t, ``rewards[t]`` comes after it.

Shapes: B sequences, R response positions. Mask: True counts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from konomi.ops.masked import check_shapes, zero_masked


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
    check_shapes(scores_B=scores_B)
    if group < 2 or len(scores_B) % group:
        raise ValueError(f"group is {group}: give 2 or more, and a divisor of the {len(scores_B)} scores")
    grouped = scores_B.reshape(-1, group)
    others = (grouped.sum(1, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).reshape(-1)
