"""Sums, means, variances and whitening over the tokens that count.

Masked positions are cut off by selection, not by multiplication with 0, so that NaN or infinity there reaches neither
result nor gradient. Half precision is summed in float32. With no valid token at all every function here returns 0.
Moments of shards merge by Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".

Shapes: B sequences, R response positions; ``x`` and ``mask`` have any one shape. Mask: True counts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from konomi.ops.checks import check_shapes


def widen(x: Tensor) -> Tensor:
    """Return half-precision ``x`` as float32 and every other ``x`` as it is.

    >>> widen(torch.ones(1, dtype=torch.bfloat16)).dtype, widen(torch.ones(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def zero_masked(x: Tensor, mask: Tensor) -> Tensor:
    """Return ``x``, in float32 at least, with 0 where ``mask`` is False: the way to keep garbage out of a gradient.

    >>> zero_masked(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
    tensor([1., 0.])
    """
    check_shapes(x=x, mask=mask)
    return torch.where(mask, widen(x), 0)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over valid positions: ``sum_i m_i x_i``, a scalar in the unit of ``x``.

    >>> masked_sum(torch.tensor([1.0, 2.0, float("nan")]), torch.tensor([True, True, False]))
    tensor(3.)
    """
    return zero_masked(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Mean over valid positions: ``sum_i m_i x_i / count``, a scalar in the unit of ``x``.

    ``count`` is by default the number of valid positions here. A caller that splits a mini-batch gives that of the
    whole, and the parts then add up to the mean of the whole.

    >>> x, mask = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False])
    >>> masked_mean(x, mask), masked_mean(x, mask, count=6)
    (tensor(1.5000), tensor(0.5000))
    """
    return masked_sum(x, mask) / (mask.sum().clamp(min=1) if count is None else count)


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations (``m2``), scalars each: all that merging variances needs.

    >>> Moments(torch.tensor(3.0), torch.tensor(2.0), torch.tensor(8.0)).var()
    tensor(4.)
    """

    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody calls here
    mean: Tensor
    m2: Tensor

    def var(self, unbiased: bool = True) -> Tensor:
        """Return ``m2 / (count - 1)``, or ``m2 / count`` if not ``unbiased``; 0 for fewer than two tokens."""
        return self.m2 / (self.count - int(unbiased)).clamp(min=1)


def moments(x: Tensor, mask: Tensor) -> Moments:
    """Count, mean and m2 over valid positions, in two passes: a mean far from 0 costs no digits.

    >>> moments(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    Moments(count=tensor(2.), mean=tensor(2.), m2=tensor(2.))
    """
    x = zero_masked(x, mask)  # before the square, whose gradient would be 0 times NaN
    mean = masked_mean(x, mask)
    return Moments(mask.sum().to(mean.dtype), mean, masked_sum((x - mean).square(), mask))


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets of tokens (Chan et al. 1983); one or both may be empty.

    ``n = n_a + n_b``, ``d = mean_b - mean_a``, ``mean = mean_a + d n_b / n``, ``m2 = m2_a + m2_b + d^2 n_a n_b / n``.

    >>> one, two = (moments(torch.tensor(x), torch.tensor([True, True])) for x in ([1.0, 3.0], [5.0, 7.0]))
    >>> merge(one, two)
    Moments(count=tensor(4.), mean=tensor(4.), m2=tensor(20.))
    """
    count, delta = a.count + b.count, b.mean - a.mean
    share = b.count / count.clamp(min=1)
    return Moments(count, a.mean + delta * share, a.m2 + b.m2 + delta.square() * a.count * share)


def merge_all(parts: list[Moments]) -> Moments:
    """Moments of the union of all ``parts``, one or more: micro-batches, or the processes of a run.

    >>> merge_all([moments(torch.tensor([x]), torch.tensor([True])) for x in (1.0, 2.0, 3.0)])
    Moments(count=tensor(3.), mean=tensor(2.), m2=tensor(2.))
    """
    if not parts:
        raise ValueError("merge_all needs the moments of at least one part")
    whole = parts[0]
    for part in parts[1:]:
        whole = merge(whole, part)
    return whole


def masked_var(x: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
    """Variance over valid positions: ``sum_i m_i (x_i - mean)^2 / (n - 1)`` (or ``/ n``); a single token gives 0.

    >>> masked_var(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    return moments(x, mask).var(unbiased)


def whiten(
    x_BR: Tensor,
    mask_BR: Tensor,
    *,
    shift_mean: bool = True,
    eps: float = 1e-8,
    mean: Tensor | float | None = None,
    var: Tensor | float | None = None,
) -> Tensor:
    """Bring valid positions to mean 0 and variance 1: ``w = (x - mean) / sqrt(var + eps)``, without unit.

    ``x_BR`` [B, R] (any shape is taken), e.g. advantages; ``shift_mean=False`` adds the mean back, as for rewards.
    ``mean`` and ``var`` (unbiased) default to those of ``x_BR``: give the merged :class:`Moments` where the batch is
    spread over processes. Where we differ from TRL 0.11: masked positions come back as 0, not as a shifted 0.

    >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([[-0.7071,  0.7071,  0.0000]])
    """
    x_BR = zero_masked(x_BR, mask_BR)
    mean = masked_mean(x_BR, mask_BR) if mean is None else mean
    var = masked_var(x_BR, mask_BR) if var is None else var
    scaled_BR = (x_BR - mean) / (var + eps) ** 0.5
    return zero_masked(scaled_BR if shift_mean else scaled_BR + mean, mask_BR)
