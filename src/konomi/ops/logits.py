"""Logits from hidden states: the product of the vocabulary head, in float32 at least.

Shape suffixes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from konomi.ops.checks import check_shapes

WIDEN_ROWS = 1024
"""Rows of a weight in half precision that are there in float32 at one time, on a processor."""


def linear_logits(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """Logits ``h W^T``, in float32 at least.

    ``hidden_ND`` [N, D]; ``weight_VD`` [V, D]. Returns [N, V]. Factors are of the type of the hidden states, or of that of
    autocast where it is on. A product of half-precision factors is summed in float32 and stays so: rounded to the 8 bits of
    bfloat16, a log-probability would be off by 0.02 nats (standard deviation). First derivatives only.

    >>> linear_logits(torch.ones(1, 2).bfloat16(), torch.tensor([[1.0, 2**-9]]).bfloat16())
    tensor([[1.0020]])
    """
    check_shapes(hidden_ND=hidden_ND, weight_VD=weight_VD)
    kind = product_type(hidden_ND)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        logits_NV: Tensor = _LinearLogits.apply(hidden_ND.to(kind), weight_VD.to(kind))  # type: ignore[no-untyped-call]
    return logits_NV


def product_type(hidden_ND: Tensor) -> torch.dtype:
    """The type of a product's factors: that of autocast where it is on, else that of the hidden states.

    >>> product_type(torch.ones(1, 2))
    torch.float32
    """
    device = hidden_ND.device.type
    halved = torch.is_autocast_enabled(device) and hidden_ND.dtype != torch.float64
    return torch.get_autocast_dtype(device) if halved else hidden_ND.dtype


def product(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """``h W^T`` of factors of one type, in float32 at least; without gradients.

    >>> product(torch.ones(1, 2).bfloat16(), torch.ones(3, 2).bfloat16()).dtype
    torch.float32
    """
    if hidden_ND.dtype not in (torch.bfloat16, torch.float16):
        return hidden_ND @ weight_VD.T
    if hidden_ND.device.type == "cuda":
        return torch.mm(hidden_ND, weight_VD.T, out_dtype=torch.float32)
    # torch has no such product here: float32 multiplies, in blocks of the weight that stay in the processor's cache
    wide_ND, logits_NV = hidden_ND.float(), hidden_ND.new_empty(len(hidden_ND), len(weight_VD), dtype=torch.float32)
    for start in range(0, len(weight_VD), WIDEN_ROWS):
        rows = slice(start, start + WIDEN_ROWS)
        torch.mm(wide_ND, weight_VD[rows].float().T, out=logits_NV[:, rows])
    return logits_NV


class _LinearLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD)
        return product(hidden_ND, weight_VD)

    @staticmethod
    def backward(ctx: Any, grad_NV: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden_ND, weight_VD = ctx.saved_tensors
        grad_NV = grad_NV.to(hidden_ND.dtype)
        return (
            grad_NV @ weight_VD if ctx.needs_input_grad[0] else None,
            grad_NV.T @ hidden_ND if ctx.needs_input_grad[1] else None,
        )
