"""The product of the vocabulary head, and log-probabilities and entropy from logits.

Natural logarithms: nats per token. Half-precision logits are widened to float32 first, because bfloat16 has 8 bits and
a log-ratio lives in the small differences; float64 stays. The caller divides logits by one temperature for sampler, policy
and reference.

Shape suffixes: N tokens (any leading shape for what takes logits), D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from konomi.ops.masked import check_shapes, widen


class Blocks(NamedTuple):
    """How much of the vocabulary head exists at one time. The defaults fit a processor's cache.

    >>> Blocks(rows=None).logits
    524288
    """

    logits: int = 2**19
    """Logits of a block; but a block is never narrower than 1024 tokens of the vocabulary."""
    kept: int = 2**25
    """Exponentials kept for the weight's gradient; the products of further ones are computed again."""
    rows: int | None = 1024
    """Rows of a half-precision weight that are widened to float32 at one time; None: the device itself multiplies half
    precision to float32."""

    def width(self, tokens: int) -> int:
        """Tokens of the vocabulary in a block of logits of so many tokens.

        >>> Blocks().width(64)
        8192
        """
        return max(1024, self.logits // tokens)


BLOCKS = Blocks()


def linear_logits(hidden_ND: Tensor, weight_VD: Tensor, blocks: Blocks = BLOCKS) -> Tensor:
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
        logits_NV: Tensor = _LinearLogits.apply(hidden_ND.to(kind), weight_VD.to(kind), blocks.rows)  # type: ignore[no-untyped-call]
    return logits_NV


def product_type(hidden_ND: Tensor) -> torch.dtype:
    """The type of a product's factors: that of autocast where it is on, else that of the hidden states.

    >>> product_type(torch.ones(1, 2))
    torch.float32
    """
    device = hidden_ND.device.type
    halved = torch.is_autocast_enabled(device) and hidden_ND.dtype != torch.float64
    return torch.get_autocast_dtype(device) if halved else hidden_ND.dtype


def product(hidden_ND: Tensor, weight_VD: Tensor, rows: int | None) -> Tensor:
    """``h W^T`` of factors of one type, in float32 at least; without gradients. ``rows``: see `Blocks`.

    >>> product(torch.ones(1, 2).bfloat16(), torch.ones(3, 2).bfloat16(), 2).dtype
    torch.float32
    """
    if hidden_ND.dtype not in (torch.bfloat16, torch.float16):
        return hidden_ND @ weight_VD.T
    if rows is None:
        return torch.mm(hidden_ND, weight_VD.T, out_dtype=torch.float32)
    # torch has no such product on a processor: float32 multiplies, in blocks of the weight that stay in its cache
    wide_ND, logits_NV = hidden_ND.float(), hidden_ND.new_empty(len(hidden_ND), len(weight_VD), dtype=torch.float32)
    for start in range(0, len(weight_VD), rows):
        block = slice(start, start + rows)
        torch.mm(wide_ND, weight_VD[block].float().T, out=logits_NV[:, block])
    return logits_NV


class _LinearLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, rows: int | None) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD)
        return product(hidden_ND, weight_VD, rows)

    @staticmethod
    def backward(ctx: Any, grad_NV: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_ND, weight_VD = ctx.saved_tensors
        grad_NV = grad_NV.to(hidden_ND.dtype)
        return (
            grad_NV @ weight_VD if ctx.needs_input_grad[0] else None,
            grad_NV.T @ hidden_ND if ctx.needs_input_grad[1] else None,
            None,
        )


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
