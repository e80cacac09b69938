"""Weights replaced during a pass: cast once, or with one gradient where one weight has two uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@contextmanager
def cast_once(lm: PreTrainedModel) -> Iterator[None]:
    """Under autocast and without gradients, cast the weights of matrix products once; autocast itself does so once a token."""
    kind = lm.device.type
    if not torch.is_autocast_enabled(kind) or torch.is_grad_enabled() or lm.dtype != torch.float32:
        yield
        return
    dtype, own = torch.get_autocast_dtype(kind), {}
    for module in lm.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            for name, weight in list(module._parameters.items()):
                if weight is not None:
                    own[module, name] = weight
                    module._parameters[name] = weight.to(dtype)
    try:
        yield
    finally:
        for (module, name), weight in own.items():
            module._parameters[name] = weight


@contextmanager
def one_gradient(lm: PreTrainedModel) -> Iterator[None]:
    """Give a weight that is both token embeddings and vocabulary head one gradient: that of the head, to which those of the
    tokens are added in place. Autograd alone makes two of the size of the vocabulary, and their sum."""
    embeddings, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    weight = embeddings.weight
    if weight is not head.weight or not (weight.requires_grad and torch.is_grad_enabled()):
        yield
        return
    embeddings._parameters["weight"], head._parameters["weight"] = _Both.apply(weight)
    embeddings.sparse = True
    try:
        yield
    finally:
        embeddings._parameters["weight"] = head._parameters["weight"] = weight
        embeddings.sparse = False


class _Both(torch.autograd.Function):
    """A weight for the token embeddings, and for the head."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, rows: Tensor | None, head: Tensor | None) -> Tensor | None:
        if rows is None or head is None:
            return head if rows is None else rows.to_dense()
        return head.index_add_(0, rows._indices()[0], rows._values())
