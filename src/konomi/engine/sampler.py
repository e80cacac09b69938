"""Batched sampling with a key-value cache: the only sampling in the package (a server may do it: `konomi.engine.server`).

Tokens are drawn from soft-max(logits / temperature), without top-k, top-p or penalties, so that sampler and losses have the same
distribution. Each response has its own random stream, one uniform number a token, so that its neighbours in the batch do not
change it. Left out on purpose: beams, stop strings, speculative decoding.

Shape suffixes: B sequences, b of them still running, R response tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from konomi.config import SamplingConfig
from konomi.data.tokens import Tokens, pad_right
from konomi.engine.decoding import cache_bytes, check_decoding
from konomi.engine.device import cache_size, send
from konomi.engine.packed import Trunk
from konomi.engine.responses import Asked, Responses, draw_responses
from konomi.engine.rollout import Rollout
from konomi.engine.shared_weights import cast_once
from konomi.errors import NotFiniteError
from konomi.seeds import stream_seed


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of responses."""

    lengths: Tensor
    """[B] int64: the most tokens of each response."""
    uniforms: Tensor
    """[B, R] float64 in [0, 1): one a token."""


def make_draws(config: SamplingConfig, seed: int, names: Sequence[tuple[str | int, ...]]) -> Draws:
    """The random numbers of the responses called ``names`` in the run with this seed, each from a stream of its own."""
    low, high = config.response_tokens
    uniforms_BR, stream = torch.empty(len(names), high + 1, dtype=torch.float64), torch.Generator()
    for row_R, name in zip(uniforms_BR, names, strict=True):
        torch.rand(high + 1, out=row_R, generator=stream.manual_seed(stream_seed(seed, *name)))
    lengths_B = low + (uniforms_BR[:, 0] * (high - low + 1)).long()
    if config.stop == "eos":
        lengths_B = torch.full_like(lengths_B, high)
    return Draws(lengths_B, uniforms_BR[:, 1:])


def stops(tokens: Tokens, config: SamplingConfig) -> frozenset[int]:
    """The tokens that stop a response."""
    return tokens.eos_ids if config.stop != "length" else frozenset()


@dataclass(frozen=True)
class Generation:
    """Responses, and what the model computed while drawing them; tensors [B, R], 0 at padding."""

    rollout: Rollout
    logprobs: Tensor
    """Log-probability of each response token, nats."""
    entropy: Tensor
    """Entropy of the distribution that the token was drawn from, nats."""
    values: Tensor
    """``values`` of the hidden state that the token was drawn from; 0 without it."""
    trunk: Trunk | None
    """What went into ``trunk_layer``."""
    served: bool = False
    """A server drew them: its log-probabilities are not quite the policy's, and there are no entropies and values."""


def sample(
    lm: PreTrainedModel, tokens: Tokens, queries: Sequence[Sequence[int]], draws: Draws, config: SamplingConfig,
    name: str = "the model",
) -> Rollout:  # fmt: skip
    """The rollout of :func:`generate`."""
    return generate(lm, tokens, queries, draws, config, name).rollout


@torch.no_grad()
def generate(
    lm: PreTrainedModel, tokens: Tokens, queries: Sequence[Sequence[int]], draws: Draws, config: SamplingConfig,
    name: str = "the model", values: Callable[[Tensor], Tensor] | None = None, trunk_layer: int | None = None,
    with_entropy: bool = True,
) -> Generation:  # fmt: skip
    """Draw one response for each query.

    Responses run together as far as ``config.cache_gb`` has room for their keys and values, those of like length first.

    Args:
        lm: the language model, in evaluation mode.
        tokens: knows the end of text and the padding.
        queries: B lists of token ids, none empty.
        draws: lengths and random numbers, from :func:`make_draws`.
        config: temperature, whether the end of text stops a response, memory.
        name: of the model, for the message if it breaks.
        values: maps the last hidden states [n, D] before each token to [n].
        trunk_layer: keep what goes into this layer.
        with_entropy: else entropies are 0.

    Returns:
        Rows in the order of the queries.

    Raises:
        RunError: the model's logits are NaN or infinite.
    """
    check_decoding(lm)
    ends = stops(tokens, config)
    order = draws.lengths.argsort(descending=True, stable=True)  # so that those that end early are at the end
    room = max(map(len, queries)) + draws.uniforms.shape[1]
    turns: list[tuple[Tensor, Responses]] = []
    together = max(1, cache_size(config.cache_gb, lm.device) // cache_bytes(lm, room))
    for rows in torch.split(order, -(-len(order) // -(-len(order) // together))):  # turns of one size
        asked = Asked([queries[row] for row in rows], draws.lengths[rows], draws.uniforms[rows])
        with cast_once(lm):
            turns.append(
                (send(rows, lm.device), draw_responses(lm, asked, ends, config.temperature, with_entropy, values, trunk_layer))
            )
    out = _join(turns)
    _check_finite(out.figures[0], name)
    responses = [row[:n] for row, n in zip(out.ids.tolist(), out.lengths.tolist(), strict=True)]
    rollout = rollout_of(queries, responses, ends, tokens.pad_id)
    width = rollout.mask.shape[1]
    logprobs_BR, entropy_BR, values_BR = out.figures[:, :, :width]
    trunk = out.trunk and Trunk(out.trunk.layer, out.trunk.hidden[:, : rollout.ids.shape[1]])
    return Generation(rollout, logprobs_BR, entropy_BR, values_BR, trunk)


def rollout_of(
    queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], ends: Collection[int], pad_id: int
) -> Rollout:
    """Queries and the responses drawn for them; ``ends``: the tokens that stop a response."""
    ids_BL, _ = pad_right([[*q, *r] for q, r in zip(queries, responses, strict=True)], pad_id)
    asked_B, drawn_B = (torch.tensor([len(each) for each in rows]) for rows in (queries, responses))
    return Rollout(ids_BL, asked_B, drawn_B, torch.tensor([response[-1] in ends for response in responses]))


def _check_finite(logprobs_BR: Tensor, name: str) -> None:
    broken = int((~logprobs_BR.isfinite()).any(1).sum())
    if broken:
        raise NotFiniteError(
            f"{name}: its logits are not finite (NaN or infinity) in {broken} of {len(logprobs_BR)} responses. Its weights are "
            'damaged or have diverged: train it with a lower learning rate, or with model.precision = "fp32"',
            "logits",
        )


def _join(turns: Sequence[tuple[Tensor, Responses]]) -> Responses:
    """The responses of all turns, rows in the order of the queries."""
    place_B = torch.cat([rows for rows, _ in turns]).argsort()
    parts = [part for _, part in turns]
    trunk = None
    if (first := parts[0].trunk) is not None:
        width = max(part.trunk.hidden.shape[1] for part in parts if part.trunk)
        padded = [functional.pad(p.trunk.hidden, (0, 0, 0, width - p.trunk.hidden.shape[1])) for p in parts if p.trunk]
        trunk = Trunk(first.layer, torch.cat(padded)[place_B])
    ids, lengths = (torch.cat([getattr(part, name) for part in parts])[place_B] for name in ("ids", "lengths"))
    return Responses(ids, torch.cat([part.figures for part in parts], dim=1)[:, place_B], lengths, trunk)
