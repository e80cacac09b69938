"""The clipped losses of PPO, and weights for responses that another program drew.

Schulman et al. 2017, "Proximal policy optimization algorithms" (arXiv:1707.06347). Losses and metrics are sums over
valid tokens, metrics detached; the caller divides by the count of the whole mini-batch, so that parts of it, in turn or on
many processes, add up to the same gradient. Garbage at masked positions, NaN included, reaches neither loss nor gradient.

Shapes: B sequences, R response positions; all arguments of a loss have one shape, [N] as well as [B, R].
Mask: True counts.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from konomi.ops.masked import check_shapes, masked_sum, zero_masked


def importance_weights(
    old_logprobs_BR: Tensor, drawn_logprobs_BR: Tensor, mask_BR: Tensor, *, cap: float,
    level: Literal["token", "sequence"] = "token",
) -> Tensor:  # fmt: skip
    """Weights for tokens that were drawn with other probabilities than the policy's, before its first step.

    ``rho_t = exp(log p_old - log p_drawn)``. token: ``w_t = min(rho_t, cap)``, truncated importance sampling (Yao et al.
    2025, "Your efficient RL framework secretly brings you off-policy RL training"). sequence: ``w_t = rho`` of the
    whole response, the product of its ``rho_t``, and 0 where that is above ``cap``: masked importance sampling (Liu et
    al. 2025, "When speed kills stability"; masks after IcePop, arXiv:2510.18855, which masks single tokens).

    ``old_logprobs_BR``, ``drawn_logprobs_BR`` [B, R] nats/token, of token t, by the policy and by whatever drew it;
    ``mask_BR`` [B, R]. Returns [B, R], 0 at padding.

    >>> old, drawn = torch.tensor([[0.6, 0.2, 0.0]]).log(), torch.tensor([[0.2, 0.4, 0.0]]).log()
    >>> mask = torch.tensor([[True, True, False]])
    >>> importance_weights(old, drawn, mask, cap=2.0)
    tensor([[2.0000, 0.5000, 0.0000]])
    >>> importance_weights(old, drawn, mask, cap=2.0, level="sequence")
    tensor([[1.5000, 1.5000, 0.0000]])
    """
    check_shapes(old_logprobs_BR=old_logprobs_BR, drawn_logprobs_BR=drawn_logprobs_BR, mask_BR=mask_BR)
    gap_BR = zero_masked(old_logprobs_BR, mask_BR) - zero_masked(drawn_logprobs_BR, mask_BR)
    if level == "token":
        return zero_masked(gap_BR.exp().clamp(max=cap), mask_BR)
    rho_B1 = gap_BR.sum(1, keepdim=True).exp()
    return zero_masked(torch.where(rho_B1 > cap, 0.0, rho_B1).expand_as(gap_BR), mask_BR)


def policy_loss(
    logprobs_BR: Tensor, old_logprobs_BR: Tensor, advantages_BR: Tensor, mask_BR: Tensor, *, clip: float,
    weights_BR: Tensor | None = None, sequences: tuple[Tensor, int] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Clipped surrogate, negated: no gain from moving the ratio further out than ``1 +- clip``.

    ``ratio = exp(log p_new - log p_old)``, ``loss = sum max(-A ratio, -A clamp(ratio, 1 - clip, 1 + clip))``
    (eq. 7). At ratio 1 its gradient is that of the plain policy gradient, ``-A grad log p``.

    ``logprobs_BR``, ``old_logprobs_BR`` [B, R] nats/token, of token t; ``advantages_BR`` [B, R], a constant, whitened
    as a rule; ``mask_BR`` [B, R]; ``weights_BR`` [B, R], constants, such as :func:`importance_weights`: each multiplies
    the term of its token. Returns the loss, a scalar, and, none of them weighted,
    ``clipped`` (tokens whose clipped term is strictly larger), ``approx_kl``
    (``(new - old)^2 / 2``), ``policy_kl`` (``old - new``), ``ratio``.

    ``sequences``: the number [B, R] of the sequence of each token, below the second value. Then ``ratio`` is that of the
    whole sequence, ``exp(sum_t (log p_new - log p_old))``, at each of its tokens: with the same advantage at all of them and
    weights of 1 / its length the loss is that of RLOO (Ahmadian et al. 2024, arXiv:2402.14740), summed over sequences.

    >>> new, old = torch.tensor([[0.5, 0.0]]).log(), torch.tensor([[0.25, 0.0]]).log()
    >>> loss, sums = policy_loss(new, old, torch.ones(1, 2), torch.tensor([[True, False]]), clip=0.2)
    >>> loss, sums["clipped"], sums["ratio"]
    (tensor(-1.2000), tensor(1.), tensor(2.))
    >>> both, numbers = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.int64)
    >>> new, old = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.25]]).log()
    >>> policy_loss(new, old, torch.ones(1, 2), both, clip=0.2, sequences=(numbers, 1))[1]["ratio"]  # 4 at each token
    tensor(8.)
    """
    check_shapes(logprobs=logprobs_BR, old_logprobs=old_logprobs_BR, advantages=advantages_BR, mask=mask_BR)
    log_ratio_BR = zero_masked(logprobs_BR, mask_BR) - zero_masked(old_logprobs_BR, mask_BR)
    ratio_BR = (log_ratio_BR if sequences is None else _of_sequences(log_ratio_BR, *sequences)).exp()
    if sequences is not None:  # the slopes of a sequence's tokens are added up, those of its padding too
        advantages_BR = zero_masked(advantages_BR, mask_BR)
    plain_BR = -advantages_BR * ratio_BR
    clipped_BR = -advantages_BR * ratio_BR.clamp(1 - clip, 1 + clip)
    surrogate_BR = torch.maximum(plain_BR, clipped_BR)
    if weights_BR is not None:
        surrogate_BR = surrogate_BR * zero_masked(weights_BR, mask_BR)
    loss = masked_sum(surrogate_BR, mask_BR)
    metrics = {
        "clipped": (clipped_BR > plain_BR).to(loss.dtype),
        "approx_kl": 0.5 * log_ratio_BR.square(),
        "policy_kl": -log_ratio_BR,
        "ratio": ratio_BR,
    }
    return loss, {name: masked_sum(x_BR.detach(), mask_BR) for name, x_BR in metrics.items()}


def _of_sequences(x_BR: Tensor, number_BR: Tensor, count: int) -> Tensor:
    """[B, R]: at each token the sum over its sequence."""
    check_shapes(x=x_BR, sequences=number_BR)
    number = number_BR.flatten()
    return x_BR.new_zeros(count).index_add(0, number, x_BR.flatten()).index_select(0, number).view_as(x_BR)


def value_loss(
    values_BR: Tensor, old_values_BR: Tensor, returns_BR: Tensor, mask_BR: Tensor, *, clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half the squared error of the critic, with no gain from moving further than ``clip`` from the old estimate.

    ``V_clip = V_old + clamp(V - V_old, -clip, clip)``,
    ``loss = 0.5 sum max((V - return)^2, (V_clip - return)^2)``. Not in the paper's eq. 9, which is unclipped:
    it is that of OpenAI's baselines (Engstrom et al. 2020, arXiv:2005.12729, section 3).

    ``values_BR``, ``old_values_BR``, ``returns_BR`` [B, R] in score units, index t before token t; ``clip`` in score
    units; ``mask_BR`` as in :func:`policy_loss`. Returns the loss, a scalar, score^2, and
    ``clipped`` (tokens whose clipped term is strictly larger), ``error`` (``(V - return)^2``), ``prediction``
    (``V``).

    >>> values, returns = torch.tensor([[1.0, 7.0]]), torch.tensor([[2.0, 0.0]])
    >>> loss, sums = value_loss(values, torch.zeros(1, 2), returns, torch.tensor([[True, False]]), clip=0.5)
    >>> loss, sums["error"]
    (tensor(1.1250), tensor(1.))
    """
    check_shapes(values=values_BR, old_values=old_values_BR, returns=returns_BR, mask=mask_BR)
    values_BR, old_values_BR = zero_masked(values_BR, mask_BR), zero_masked(old_values_BR, mask_BR)
    returns_BR = zero_masked(returns_BR, mask_BR)
    plain_BR = (values_BR - returns_BR).square()
    # not old + clamp(new - old): rounded, that is beside an estimate that nothing clips
    near_BR = torch.clamp(values_BR, old_values_BR - clip, old_values_BR + clip)
    clipped_BR = (near_BR - returns_BR).square()
    loss = 0.5 * masked_sum(torch.maximum(plain_BR, clipped_BR), mask_BR)
    metrics = {"clipped": (clipped_BR > plain_BR).to(loss.dtype), "error": plain_BR, "prediction": values_BR}
    return loss, {name: masked_sum(x_BR.detach(), mask_BR) for name, x_BR in metrics.items()}
