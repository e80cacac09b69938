"""Log-probability of the tokens that were taken, and entropy, from logits.

Natural logarithms: nats per token. Half-precision logits are widened to float32 first, because bfloat16 has 8 bits and
a log-ratio lives in the small differences; float64 stays. Any leading shape is taken: N stands for it.
Temperature is the caller's: the same one divides the logits of sampler, policy and reference.

Left out: chunking. The caller gives logits at response positions only, and as many at a time as fit.

Shapes: N tokens (any leading shape), V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from konomi.ops.checks import check_shapes
from konomi.ops.masked import widen


def selected_logprobs(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probability of each target: ``log p(y) = l_y - log sum_v exp l_v``.

    ``logits_NV`` [..., V]; ``targets_N`` [...] int64, ids in 0..V-1 at padding too. Returns [...], nats/token.
    Equal to log-softmax followed by a gather, but log-softmax of the whole vocabulary is never stored: autograd keeps
    the logits themselves (Ziegler et al. 2019, eq. 2 needs the taken token only).

    >>> selected_logprobs(torch.tensor([[0.0, 0.0], [0.0, float("-inf")]]), torch.tensor([1, 0]))
    tensor([-0.6931,  0.0000])
    """
    check_shapes(logits=logits_NV[..., 0], targets=targets_N)
    logits_NV = widen(logits_NV)
    taken_N = logits_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)
    return taken_N - logits_NV.logsumexp(-1)


def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy of the next-token distribution: ``H = -sum_v p_v log p_v`` (Shannon 1948, section 6).

    ``logits_NV`` [..., V]. Returns [...], nats/token, between 0 and log V. A logit of -inf contributes 0, which is the
    limit of ``p log p``, to the gradient too. Taken from log-softmax, not as ``logsumexp - sum p l``: that difference
    loses digits when logits are far from 0.

    >>> entropy(torch.tensor([[0.0, 0.0, float("-inf")]]))
    tensor([0.6931])
    """
    logprobs_NV = widen(logits_NV).log_softmax(-1)
    finite_NV = logprobs_NV.masked_fill(logprobs_NV == -torch.inf, 0)
    return -(logprobs_NV.exp() * finite_NV).sum(-1)
