"""The shape check that every function of ``konomi.ops`` begins with."""

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
