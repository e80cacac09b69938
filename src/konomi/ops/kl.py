"""How far the policy has moved from the reference, what that costs, and how the price is steered.

The penalty and the slower of its two controllers are from Ziegler et al. 2019, "Fine-tuning language models from human
preferences" (arXiv:1909.08593); the estimators k1 and k2 from Schulman 2020, "Approximating KL divergence"
(http://joschu.net/blog/kl-approx.html). With ``d = log p(y) - log q(y)``, p the policy, q the reference, y sampled
from p, the mean of k1 is KL(p || q). Used inside the reward k1 gives the right policy gradient; neither does when it is
differentiated as a loss. The estimator k3 is here as that: a term of the loss, as in GRPO.

Shapes: B sequences, R response positions, V vocabulary. Mask: True counts. Unit: nats/token.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from konomi.ops.masked import check_shapes, masked_sum, widen, zero_masked

KlKind = Literal["k1", "abs", "k2"]


def kl_per_token(logprobs_BR: Tensor, ref_logprobs_BR: Tensor, kind: KlKind = "k1") -> Tensor:
    """Estimate the KL of each sampled token from its two log-probabilities.

    ``k1 = d``, ``abs = |d|``, ``k2 = d^2 / 2`` with ``d = log p - log q`` (Schulman 2020). ``abs`` and ``k2`` are never
    negative but biased. TRL 0.11 calls the three kl, abs and mse. Arguments [B, R] (any shape), nats/token; returns the
    same.

    >>> p, q = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.5])
    >>> kl_per_token(p, q, "k1"), kl_per_token(p, q, "k2")
    (tensor([ 1.0000, -0.5000]), tensor([0.5000, 0.1250]))
    """
    check_shapes(logprobs=logprobs_BR, ref_logprobs=ref_logprobs_BR)
    gap_BR = widen(logprobs_BR) - widen(ref_logprobs_BR)
    if kind == "k1":
        return gap_BR
    if kind == "abs":
        return gap_BR.abs()
    if kind == "k2":
        return 0.5 * gap_BR.square()
    raise ValueError(f"kind is {kind!r}: take k1, abs or k2")


def kl_loss(logprobs_BR: Tensor, ref_logprobs_BR: Tensor, mask_BR: Tensor, weights_BR: Tensor) -> Tensor:
    """The estimator k3 as a term of the loss: ``sum_t w_t (exp(-d_t) - 1 + d_t)``.

    k3 is never negative, and its mean is KL(p || q) (Schulman 2020); GRPO adds it to its loss (Shao et al. 2024,
    arXiv:2402.03300, eq. 4). Its gradient is ``w_t (1 - exp(-d_t)) grad log p``. In the mean over tokens of p that is not the
    gradient of KL(p || q) but of KL(q || p), which has the same minimum and, near it, the same curvature (Tang and Munos 2025,
    arXiv:2506.09477).

    ``logprobs_BR``, ``ref_logprobs_BR`` [B, R] nats/token; ``weights_BR`` [B, R], constants: the KL coefficient, times what a
    token counts. Returns a scalar, a sum as all losses here.

    >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.5]).log()
    >>> kl_loss(p, q, torch.tensor([True, True]), torch.ones(2))
    tensor(0.1931)
    """
    check_shapes(logprobs=logprobs_BR, ref_logprobs=ref_logprobs_BR, mask=mask_BR, weights=weights_BR)
    gap_BR = zero_masked(logprobs_BR, mask_BR) - zero_masked(ref_logprobs_BR, mask_BR)
    return masked_sum(weights_BR * (torch.expm1(-gap_BR) + gap_BR), mask_BR)


def full_kl(logits_NV: Tensor, ref_logits_NV: Tensor) -> Tensor:
    """Exact KL(policy || reference) of each position: ``sum_v p_v (log p_v - log q_v)`` (Kullback & Leibler 1951).

    Logits (or log-probabilities) [..., V]; returns [...], nats/token, 0 or more. A token with p = 0 costs 0
    whatever q is; infinite where p > 0 and q = 0.

    >>> p, q = torch.tensor([0.98, 0.01, 0.01]), torch.tensor([0.01, 0.01, 0.98])
    >>> full_kl(p.log(), q.log())
    tensor(4.4474)
    """
    check_shapes(logits=logits_NV, ref_logits=ref_logits_NV)
    logprobs_NV, ref_logprobs_NV = (widen(x).log_softmax(-1) for x in (logits_NV, ref_logits_NV))
    probs_NV = logprobs_NV.exp()
    return (probs_NV * torch.where(probs_NV > 0, logprobs_NV - ref_logprobs_NV, 0)).sum(-1)


def shaped_rewards(
    kl_BR: Tensor, scores_B: Tensor, mask_BR: Tensor, kl_coef: Tensor | float, token_rewards_BR: Tensor | None = None
) -> Tensor:
    """Reward of each token: the KL penalty everywhere, the score on the last valid token of its row.

    ``r[b, t] = -kl_coef kl[b, t] + [t is the last valid token of b] score[b]`` (Ziegler et al. 2019, eq. 2, spread over
    tokens). ``kl_BR`` [B, R] nats/token, of token t; ``scores_B`` [B] score; ``mask_BR`` [B, R]; ``kl_coef`` score/nat.
    Returns [B, R] score, index t after token t, 0 where masked. A row without a valid token raises: its score would be
    lost.

    ``token_rewards_BR`` [B, R] score, of token t: parts of the score that belong to tokens before the end. The last valid token
    gets the rest, ``score[b] - sum of token_rewards[b, t] over the valid t before it``, so that the row's sum is the same as
    without them. What ``token_rewards_BR`` has at the last valid token itself is therefore ignored.

    >>> mask = torch.tensor([[True, True, False]])
    >>> shaped_rewards(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([3.0]), mask, 0.5)
    tensor([[-0.5000,  2.0000,  0.0000]])
    >>> shaped_rewards(torch.zeros(1, 3), torch.tensor([3.0]), mask, 0.5, torch.tensor([[1.0, 2.0, 9.0]]))
    tensor([[1., 2., 0.]])
    """
    check_shapes(kl_BR=kl_BR, scores_B=scores_B, mask_BR=mask_BR)
    if not mask_BR.any(1).all():
        raise ValueError("a row of mask_BR has no valid token, so its score has no place: drop empty responses first")
    left_BR = mask_BR.flip(1).cumsum(1).flip(1)  # valid tokens from t on
    last_BR = mask_BR & (left_BR == 1)
    penalty_BR = -kl_coef * zero_masked(kl_BR, mask_BR)
    early_BR = torch.zeros_like(penalty_BR)
    if token_rewards_BR is not None:
        check_shapes(token_rewards_BR=token_rewards_BR, mask_BR=mask_BR)
        early_BR = zero_masked(token_rewards_BR, mask_BR & ~last_BR)
    rest_B = widen(scores_B) - early_BR.sum(1)
    return penalty_BR + torch.where(last_BR, rest_B.unsqueeze(1), early_BR)


def adaptive_kl_coef(coef: float, kl: float, *, target: float, horizon: float, episodes: float) -> float:
    """The next KL coefficient: up when the KL was above its target, down when below.

    ``e = clip(kl / target - 1, -0.2, 0.2)``, ``coef' = coef (1 + e episodes / horizon)`` (Ziegler et al. 2019, section
    2.2, whose gain K is ``episodes / horizon`` here, as in their code). ``kl`` and ``target`` nats/response,
    ``episodes`` those of this update, ``horizon`` in episodes. A ``kl`` of NaN gives NaN.

    >>> round(adaptive_kl_coef(0.2, 12.0, target=6.0, horizon=10_000, episodes=256), 6)
    0.201024
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * episodes / horizon)


def pid_kl_coef(
    first: float, kl: float, total: float, last: float, *, target: float, low: float, high: float,
    gains: tuple[float, float, float] = (4.0, 3.0, 8.0),
) -> tuple[float, float, float]:  # fmt: skip
    """The next KL coefficient by a PID controller on its logarithm, which can move it by any factor within a few updates.

    With the error ``e = clip(kl / target - 1, -1, 1)``, ``S`` the sum of the errors and ``e'`` the one before, the coefficient is
    ``first 2^u`` with ``u = clip(P e + I (S + e) + D (e - e'), low, high)`` doublings. A KL 25 % over its target doubles it (P);
    one that rises by 25 % of the target an update quadruples it, before it is there (D); an error that stays adds up (I). Where
    the clip holds ``u`` back, an error that pushes further is not added to the sum, which would take as long to come down again
    (conditional integration; Astrom and Hagglund 2006, Advanced PID Control, section 3.5).

    ``first`` score/nat, the coefficient without an error; ``kl`` and ``target`` nats/response; ``total`` and ``last``: S and e',
    0 and -1 before the first update, whose policy has no KL. Returns coefficient, sum and error. A ``kl`` of NaN gives NaN.

    >>> pid_kl_coef(0.1, 6.0, 0.0, 0.0, target=6.0, low=-6.0, high=6.0)
    (0.1, 0.0, 0.0)
    >>> pid_kl_coef(0.1, 7.5, 0.0, 0.25, target=6.0, low=-6.0, high=6.0, gains=(4.0, 0.0, 8.0))
    (0.2, 0.25, 0.25)
    """
    error = min(max(kl / target - 1, -1.0), 1.0)
    proportional, integral, derivative = gains
    wanted = proportional * error + integral * (total + error) + derivative * (error - last)
    doublings = min(max(wanted, low), high)
    if (wanted - doublings) * error <= 0:
        total = total + error
    return first * 2.0**doublings, total, error
