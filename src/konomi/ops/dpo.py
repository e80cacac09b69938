"""Direct preference optimisation: a policy learns from pairs without a reward model, for its log-ratio to the reference is one.

The losses are sums, which the caller divides by the count of the whole batch. Gradients flow through the policy alone.

Shape suffixes: N responses of a batch, P pairs of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from konomi.ops.masked import check_shapes, widen
from konomi.ops.preference import preference_loss


def log_ratios(logprobs_N: Tensor, ref_logprobs_N: Tensor, lengths_N: Tensor | None = None) -> Tensor:
    """How much likelier a response has become: ``h = log pi(y | x) - log rho(y | x)``, with rho the frozen reference.

    ``beta h`` is the reward that pi would be the best policy for at a KL penalty of beta, up to a constant of the prompt, which
    cancels between its responses (Rafailov et al. 2023, arXiv:2305.18290, eq. 5).

    ``logprobs_N``, ``ref_logprobs_N`` [N] of whole responses, nats; ``lengths_N`` [N] their tokens. Returns [N], nats a response,
    or with ``lengths_N`` nats a token. No gradient flows to the reference.

    >>> now, before = torch.tensor([-6.0]), torch.tensor([-9.0])
    >>> log_ratios(now, before), log_ratios(now, before, torch.tensor([2]))
    (tensor([3.]), tensor([1.5000]))
    """
    check_shapes(logprobs_N=logprobs_N, ref_logprobs_N=ref_logprobs_N)
    ratios_N = widen(logprobs_N) - widen(ref_logprobs_N.detach())
    if lengths_N is None:
        return ratios_N
    check_shapes(logprobs_N=logprobs_N, lengths_N=lengths_N)
    return ratios_N / lengths_N


def smooth_labels(labels_P: Tensor, smoothing: float) -> Tensor:
    """Labels of which the share ``smoothing`` is taken to be the wrong way round: ``l (1 - e) + (1 - l) e``.

    With the sigmoid loss this is conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO").

    ``labels_P`` [P] probability that ``better`` is the better one; ``smoothing`` 0 to 0.5. Returns [P].

    >>> smooth_labels(torch.tensor([1.0, 0.5]), 0.25)
    tensor([0.7500, 0.5000])
    """
    check_shapes(labels_P=labels_P)
    return labels_P * (1 - 2 * smoothing) + smoothing


def dpo_loss(
    ratios_N: Tensor, better_P: Tensor, worse_P: Tensor, labels_P: Tensor, margins_P: Tensor, weights_P: Tensor, *, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a reward model whose score is ``beta h``: ``-sum w (l log sigmoid(z) + (1 - l) log sigmoid(-z))``,
    ``z = beta (h_better - h_worse) - margin``.

    Rafailov et al. 2023, arXiv:2305.18290, eq. 7, where l = 1 and margin = 0; the margin after Amini et al. 2024,
    arXiv:2402.10571.

    ``ratios_N`` [N] as :func:`log_ratios` gives them; the rest, and what is returned, as in
    :func:`konomi.ops.preference.preference_loss`. ``beta`` score units per nat: higher stays nearer to the reference.

    >>> zero, one = torch.zeros(1, dtype=torch.long), torch.ones(1)
    >>> dpo_loss(torch.tensor([0.0, 0.0]), zero, zero + 1, one, 0 * one, one, beta=0.1)[0]
    tensor(0.6931)
    """
    return preference_loss(beta * widen(ratios_N), better_P, worse_P, labels_P, margins_P, weights_P)


def ipo_loss(
    ratios_N: Tensor, better_P: Tensor, worse_P: Tensor, labels_P: Tensor, weights_P: Tensor, *, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Identity preference optimisation: the gap of log-ratios is drawn to a fixed size instead of growing without end,
    ``sum w (h_better - h_worse - (2 l - 1) / (2 beta))^2``.

    Azar et al. 2023, arXiv:2310.12036, eq. 17, where l = 1 and beta is called tau. With other labels it is the mean of that loss
    over votes of which the share l is for ``better``, but for a constant.

    Arguments as in :func:`dpo_loss`; the authors' results are with ratios per token. Returns the loss, a scalar in nats squared,
    and the sums of :func:`konomi.ops.preference.preference_loss`.

    >>> zero, one = torch.zeros(1, dtype=torch.long), torch.ones(1)
    >>> ipo_loss(torch.tensor([3.0, 0.0]), zero, zero + 1, one, one, beta=0.25)[0]
    tensor(1.)
    """
    gaps_N = widen(ratios_N)
    _, sums = preference_loss(gaps_N.detach(), better_P, worse_P, labels_P, torch.zeros_like(weights_P), weights_P)
    targets_P = (2 * labels_P.to(gaps_N) - 1) / (2 * beta)
    errors_P = gaps_N[better_P] - gaps_N[worse_P] - targets_P
    return (weights_P * errors_P.square()).sum(), sums
