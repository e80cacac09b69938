"""Run a model and its head: hidden states, log-probabilities, the full KL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from konomi.data.tokens import lengths_to_mask, pad_right
from konomi.engine import packed
from konomi.engine.device import HEAD_TOKENS, head_blocks
from konomi.engine.families import is_near, refusal, trial
from konomi.engine.layout import Layout, Pass, scatter
from konomi.engine.packed import Trunk
from konomi.engine.rollout import Rollout
from konomi.engine.shared_weights import cast_once, head_copy
from konomi.errors import FAULTS
from konomi.ops import entropy, full_kl, linear_logits, linear_logprobs, selected_logprobs


@dataclass(frozen=True)
class Evaluation:
    """A policy's log-probabilities, values and entropies of a rollout; 0 at padding. Or, of a pass, flat: [N]."""

    logprobs: Tensor
    """[B, R] float32: log-probability of each response token, nats."""
    values: Tensor
    """[B, R] float32: value before each response token, normalised score; 0 without a value head."""
    entropy: Tensor
    """[B, R] float32: entropy of the distribution that the token was drawn from, nats; carries no gradient."""


def plan_pass(lm: PreTrainedModel, rollout: Rollout, rows: Tensor | None = None, static: bool = False) -> Pass:
    """What a pass of this model over these rows reads. ``static``: of sizes that come again, if the model runs packed."""
    packs = packed.packs(lm)
    return Pass(rollout, rows, lm.device, packs, static and packs)


@torch.no_grad()
def reference_logprobs(lm: PreTrainedModel, rollout: Rollout, temperature: float, trunk: Trunk | None = None) -> Tensor:
    """[B, R] log-probability (nats) of each response token under a frozen model; 0 at padding."""
    p = plan_pass(lm, rollout)
    return scatter([(p, pass_logprobs(lm, p, temperature, trunk)[None])], len(rollout))[0]


@torch.no_grad()
def pass_logprobs(lm: PreTrainedModel, p: Pass, temperature: float, trunk: Trunk | None = None) -> Tensor:
    """[N] log-probability (nats) of each response token of a pass under a frozen model."""
    with cast_once(lm):
        return through_head(lm, response_hidden(lm, p, trunk), p.targets, temperature, with_entropy=False)[0]


def rounds_coarsely(lm: PreTrainedModel) -> bool:
    """Whether two passes over the same tokens may differ by more than float error when their shapes differ: weights in half
    precision, products in TF32, or experts that are chosen at a near tie."""
    config = lm.config.get_text_config()
    experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    return experts or lm.dtype.itemsize < 4 or torch.get_float32_matmul_precision() != "highest"


@torch.no_grad()
def pass_full_kl(
    lm: PreTrainedModel, reference: PreTrainedModel, p: Pass, temperature: float, trunk: Trunk | None = None
) -> Tensor:
    """[N] exact KL(policy || reference) (nats) before each response token of a pass."""
    return _of_both(lambda own, other, _: full_kl(own, other), lm, reference, p, temperature, trunk)


@torch.no_grad()
def pass_beside(lm: PreTrainedModel, reference: PreTrainedModel, p: Pass, temperature: float) -> Tensor:
    """[2, N] of each response token of a pass, nats: the exact KL(lm || reference) before it, and its log-probability under the
    reference."""

    def both(own: Tensor, other: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([full_kl(own, other), selected_logprobs(other, targets)])

    return _of_both(both, lm, reference, p, temperature)


def _of_both(
    call: Callable[[Tensor, Tensor, Tensor], Tensor], lm: PreTrainedModel, reference: PreTrainedModel, p: Pass,
    temperature: float, trunk: Trunk | None = None,
) -> Tensor:  # fmt: skip
    """``call(logits, the reference's logits, targets)`` of all response tokens of a pass [..., N], `HEAD_TOKENS` at a time."""
    with cast_once(lm), cast_once(reference):
        hidden, others = (response_hidden(model, p, trunk).split(HEAD_TOKENS) for model in (lm, reference))
        chunks = zip(hidden, others, p.targets.split(HEAD_TOKENS), strict=True)
        # nothing holds the logits of one chunk while the next ones are made
        parts = [call(head_logits(lm, h, temperature), head_logits(reference, r, temperature), y) for h, r, y in chunks]
    return torch.cat(parts, -1)


def response_hidden(lm: PreTrainedModel, p: Pass, trunk: Trunk | None = None) -> Tensor:
    """The last hidden state [N, D] at each position that predicts a response token."""
    if p.layout is None:
        hidden_BLD: Tensor = packed.trunk_of(lm)(input_ids=p.ids.view(p.shape), use_cache=False).last_hidden_state
        return hidden_BLD.flatten(0, 1).index_select(0, p.at)
    if trunk:
        return packed.run_from(lm, trunk, p.ids, p.layout).index_select(0, p.at)
    return packed.run(lm, p.ids, p.layout.positions_T, p.layout).index_select(0, p.at)


def head_logits(lm: PreTrainedModel, hidden: Tensor, temperature: float) -> Tensor:
    """[N, V] logits over the vocabulary, float32 at least, divided by the temperature."""
    head = lm.get_output_embeddings()
    copy = None if torch.is_grad_enabled() else head_copy(lm)
    logits = linear_logits(hidden, head.weight if copy is None else copy, head_blocks(hidden.device))[:, : len(head.weight)]
    if getattr(head, "bias", None) is not None:
        logits = logits + head.bias
    cap = _soft_cap(lm)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits if temperature == 1.0 else logits / temperature


def head_weight(lm: PreTrainedModel) -> Tensor:
    """[V, D] weight of the vocabulary head."""
    return cast(Tensor, lm.get_output_embeddings().weight)


def check_head(lm: PreTrainedModel) -> None:
    """Make sure that trunk + head, as called here, equal the model: a family may scale or shift between them, attend otherwise,
    or see padding.

    Raises:
        ModelError: the logits differ from the model's own.
    """
    ids = torch.arange(5, device=lm.device).remainder(lm.config.get_text_config().vocab_size)
    rows, lengths_B = (ids[:2], ids[2:]), torch.tensor([2, 3])
    with trial(lm):
        theirs = torch.cat([lm(input_ids=row[None], use_cache=False).logits[0].float() for row in rows])

        def same(hidden: Tensor) -> bool:
            return is_near(head_logits(lm, hidden, 1.0).float(), theirs, lm)

        if packed.packs(lm):
            layout = Layout(lengths_B, device=lm.device)
            with suppress(packed.CannotPack, *FAULTS):
                if same(packed.run(lm, ids, layout.positions_T, layout)):
                    return
            packed.needs_padding(lm)
        trunk, padded_BL = packed.trunk_of(lm), pad_right([row.tolist() for row in rows], 0)[0].to(lm.device)
        if not same(torch.cat([trunk(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows])):
            raise refusal(
                lm,
                "it changes its hidden states or logits between trunk and head in a way that konomi does not know, so its "
                "log-probabilities would be wrong",
            )
        hidden_BLD = trunk(input_ids=padded_BL, use_cache=False).last_hidden_state
        if not same(hidden_BLD[lengths_to_mask(lengths_B, 3).to(lm.device)]):
            raise refusal(lm, "what it makes of a sequence changes with the padding beside it")


def goes_on_from(lm: PreTrainedModel, layer: int) -> bool:
    """Whether the layers from ``layer`` on need nothing from those below but the kept hidden states."""
    ids, layout = torch.zeros(5, dtype=torch.int64, device=lm.device), Layout(torch.tensor([2, 3]), device=lm.device)
    with suppress(*FAULTS), torch.no_grad(), torch.autocast(lm.device.type, enabled=False):
        with packed.keeping(lm, layer) as kept:
            whole_TD = packed.run(lm, ids, layout.positions_T, layout)
        return is_near(packed.run_from(lm, Trunk(layer, layout.pad(kept[0])), ids, layout), whole_TD, lm)
    return False


def through_head(
    lm: PreTrainedModel, hidden_ND: Tensor, targets_N: Tensor, temperature: float, with_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N] of the targets [N] after last hidden states [N, D], with gradients, and entropies [N] without."""
    if _soft_cap(lm) is None and getattr(lm.get_output_embeddings(), "bias", None) is None:
        return linear_logprobs(
            hidden_ND, head_weight(lm), targets_N, temperature, head_blocks(hidden_ND.device), copy_VD=head_copy(lm),
            with_entropy=with_entropy,
        )  # fmt: skip
    logprobs, entropies = [], []
    for hidden, targets in zip(hidden_ND.split(HEAD_TOKENS), targets_N.split(HEAD_TOKENS), strict=True):
        logits = head_logits(lm, hidden, temperature)
        logprobs.append(selected_logprobs(logits, targets))
        entropies.append(entropy(logits.detach()) if with_entropy else torch.zeros_like(logprobs[-1]))
    return torch.cat(logprobs), torch.cat(entropies)


def _soft_cap(lm: PreTrainedModel) -> float | None:
    return getattr(lm.config.get_text_config(), "final_logit_softcapping", None)
