"""Draw a token of each row from soft-max(logits).

Shape suffixes: B sequences, V vocabulary, W the same filled up to blocks, K blocks of it, x in a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from konomi.engine.device import draw_rows

BLOCK = 512
"""Vocabulary entries a block in the inverse of the cumulative sum."""


def draw(logits_BV: Tensor, uniforms_B: Tensor, with_entropy: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token from soft-max(logits) by inverting its cumulative sum at a uniform number: O(V) without a V-wide noise.

    The sum is first searched by blocks, then within the block that holds the number; sums of blocks are float64, so that a
    token's share is right to float32 rounding however large the vocabulary.

    Args:
        logits_BV: any float type.
        uniforms_B: float64 in [0, 1).
        with_entropy: else the entropy is 0.

    Returns:
        [B] int64, and [B] the log-probability of the token and [B] the entropy, nats.

    >>> draw(torch.tensor([[0.0, 0.0, 0.0, 0.0]]).expand(3, 4), torch.tensor([0.1, 0.5, 0.99], dtype=torch.float64))[0]
    tensor([0, 2, 3])
    """
    rows = draw_rows(logits_BV.device, logits_BV.shape[1])
    with torch.autocast(logits_BV.device.type, enabled=False):  # it would take sums of products in bfloat16
        parts = [_draw_rows(*part, with_entropy) for part in zip(logits_BV.split(rows), uniforms_B.split(rows), strict=True)]
    if len(parts) == 1:
        return parts[0]
    token_B, logprob_B, entropy_B = (torch.cat(column) for column in zip(*parts, strict=True))
    return token_B, logprob_B, entropy_B


def _draw_rows(logits_BV: Tensor, uniforms_B: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    logits_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
    batch, vocabulary = logits_BV.shape
    gaps_BV = logits_BV - logits_BV.amax(dim=-1, keepdim=True)
    weights_BW = logits_BV.new_empty(batch, -(-vocabulary // BLOCK) * BLOCK)
    weights_BV = torch.exp(gaps_BV, out=weights_BW[:, :vocabulary])
    weights_BW[:, vocabulary:] = 0.0
    weights_BKx = weights_BW.view(batch, -1, BLOCK)
    blocks_BK = weights_BKx.sum(dim=-1).double().cumsum(dim=-1)
    total_B = blocks_BK[:, -1]
    target_B1 = uniforms_B[:, None] * total_B[:, None]
    # sums that are NaN give an index behind the last block; the log-probability of that token is NaN too
    block_B = _first_above(blocks_BK, target_B1).clamp(max=blocks_BK.shape[1] - 1)
    start_B1 = blocks_BK.gather(1, (block_B[:, None] - 1).clamp(min=0)).masked_fill(block_B[:, None] == 0, 0.0)
    inner_Bx = weights_BKx.gather(1, block_B[:, None, None].expand(-1, 1, BLOCK)).squeeze(1).double().cumsum(dim=-1)
    token_B = (block_B * BLOCK + _first_above(inner_Bx, target_B1 - start_B1)).clamp(max=vocabulary - 1)
    log_total_B = total_B.log()
    logprob_B = gaps_BV.gather(1, token_B[:, None]).squeeze(1) - log_total_B
    if not with_entropy:
        return token_B, logprob_B.to(logits_BV.dtype), torch.zeros_like(logprob_B, dtype=logits_BV.dtype)
    # a logit of -inf has weight 0, and 0 times -inf is not a number
    moment_B = torch.linalg.vecdot(weights_BV, gaps_BV.clamp_(min=torch.finfo(gaps_BV.dtype).min))
    return token_B, logprob_B.to(logits_BV.dtype), (log_total_B - moment_B / total_B).to(logits_BV.dtype)


def _first_above(sums: Tensor, target: Tensor) -> Tensor:
    """Index of the first cumulative sum above the target; by rounding the target may reach the last sum, never pass it."""
    below_total = torch.nextafter(sums[:, -1:], torch.zeros_like(sums[:, -1:]))
    return torch.searchsorted(sums, torch.minimum(target, below_total), right=True).squeeze(1)
