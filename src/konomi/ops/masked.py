"""Sums, means, variances and whitening over the tokens that count; the shape check that every function here begins with.

Masked positions are cut off by selection, not by multiplication with 0, so that NaN or infinity there reaches neither
result nor gradient. Half precision is summed in float32. With no valid token at all every function here returns 0.

Shapes: B sequences, R response positions; ``x`` and ``mask`` have any one shape. Mask: True counts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_shapes(**tensors: Tensor) -> None:
    """Raise ``ValueError`` unless the named tensors fit together.

    A name that ends in capitals says its axes, one letter each: ``scores_B`` and ``mask_BR`` must agree in B, and no
    axis may be empty. Names without capitals must all have one shape, whatever it is. A mask (a name that begins with
    ``mask``) must be boolean: True counts, and 0/1 numbers would leave its polarity open.

    >>> check_shapes(scores_B=torch.zeros(2), mask_BR=torch.ones(2, 3, dtype=torch.bool))
    >>> check_shapes(scores_B=torch.zeros(4), mask_BR=torch.ones(2, 3, dtype=torch.bool))
    Traceback (most recent call last):
        ...
    ValueError: mask_BR has size 2 along B where scores_B has 4
    """
    seen: dict[str, tuple[str, object]] = {}
    for name, tensor in tensors.items():
        if name.startswith("mask") and tensor.dtype != torch.bool:
            raise ValueError(f"{name} is {tensor.dtype}: make it torch.bool, True where a token counts")
        axes = name.rpartition("_")[2]
        if not axes.isupper():
            other, shape = seen.setdefault("", (name, tensor.shape))
            if shape != tensor.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)} where {other} has another: make them equal")
            continue
        if tensor.dim() != len(axes) or 0 in tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}: its axes are {', '.join(axes)}, none empty")
        for axis, size in zip(axes, tensor.shape, strict=True):
            other, expected = seen.setdefault(axis, (name, size))
            if size != expected:
                raise ValueError(f"{name} has size {size} along {axis} where {other} has {expected}")


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


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the n valid positions: ``sum_i m_i x_i / n``, a scalar in the unit of ``x``.

    >>> masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]))
    tensor(1.5000)
    """
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def masked_var(x: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
    """Variance over valid positions: ``sum_i m_i (x_i - mean)^2 / (n - 1)`` (or ``/ n``); a single token gives 0.

    >>> masked_var(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    x = zero_masked(x, mask)  # before the square, whose gradient would be 0 times NaN
    squares = masked_sum((x - masked_mean(x, mask)).square(), mask)
    return squares / (mask.sum() - int(unbiased)).clamp(min=1)


def whiten(x_BR: Tensor, mask_BR: Tensor, *, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Bring valid positions to mean 0 and variance 1: ``w = (x - mean) / sqrt(var + eps)``, without unit.

    ``x_BR`` [B, R] (any shape is taken), e.g. advantages; ``shift_mean=False`` adds the mean back, as for rewards.
    Where we differ from TRL 0.11: masked positions come back as 0, not as a shifted 0.

    >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([[-0.7071,  0.7071,  0.0000]])
    """
    x_BR = zero_masked(x_BR, mask_BR)
    mean, var = masked_mean(x_BR, mask_BR), masked_var(x_BR, mask_BR)
    scaled_BR = (x_BR - mean) / (var + eps) ** 0.5
    return zero_masked(scaled_BR if shift_mean else scaled_BR + mean, mask_BR)
