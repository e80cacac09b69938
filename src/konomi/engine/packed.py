"""A causal language model over sequences laid end to end, so that no padding goes through a matrix product.

The trunk sees one row of T tokens, the sequences one after another; only attention, a small part of the work, pads them, and
causality keeps every token from the padding to its right. Attention is replaced through the interface of transformers, so that
each family's code is used unchanged; a family without that interface runs padded. The sampler uses the same attention with
`KeyValues`: a decoding step is a row of one token a sequence.

Shape suffixes: B sequences, L tokens of the longest, T tokens of all, H heads, G key-value heads, S room for tokens,
D width, d width of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from konomi.engine.device import is_processor, many_alone, prefers_products
from konomi.engine.families import trial
from konomi.engine.kv_cache import KeyValues, whole_lanes
from konomi.engine.layout import Layout
from konomi.errors import ModelError

INTERFACE = "konomi_packed"


@dataclass(frozen=True)
class Trunk:
    """Hidden states between two layers, kept so that the frozen layers below run once."""

    layer: int
    """The first layer that has not run."""
    hidden: Tensor
    """[B, L, D]: what goes into that layer; padding has no meaning."""

    def select(self, rows: Tensor) -> Trunk:
        """The given rows."""
        return Trunk(self.layer, self.hidden[rows.to(self.hidden.device)])


class CannotPack(ModelError):
    """This family passes its attention more, or less, than :func:`_attention` handles."""


def trunk_of(lm: PreTrainedModel) -> Any:
    """The model without its head, and without its parts for images and sound."""
    trunk = lm.get_decoder()
    if trunk is lm or not isinstance(trunk, PreTrainedModel):  # these names mean something else in this family
        trunk = next((part for part in lm.children() if isinstance(part, PreTrainedModel)), lm)
    return trunk


def packs(lm: PreTrainedModel) -> bool:
    """Whether this family's attention can be replaced, and does not need padding."""
    return bool(getattr(trunk_of(lm), "_supports_attention_backend", False)) and not hasattr(lm, "konomi_padded")


def needs_padding(lm: PreTrainedModel) -> None:
    """Make :func:`packs` false for this model and its copies."""
    lm.konomi_padded = True


def run(lm: PreTrainedModel, ids_T: Tensor, positions_T: Tensor, layout: Layout | None, cache: KeyValues | None = None) -> Tensor:
    """The last hidden state [T, D] of packed tokens; ``layout`` is of the sequences, or None in a step of decoding."""
    trunk = trunk_of(lm)
    with _plugged(trunk):
        out = trunk(input_ids=ids_T[None], position_ids=positions_T[None], use_cache=False, layout=layout, key_values=cache)
    hidden_TD: Tensor = out.last_hidden_state[0]
    return hidden_TD


def run_from(lm: PreTrainedModel, trunk: Trunk, ids_T: Tensor, layout: Layout) -> Tensor:
    """The last hidden state [T, D], from where ``trunk`` was kept."""
    base, name = trunk_of(lm), _layers_name(lm)
    layers = getattr(base, name)
    above = copy.copy(base)
    below = [_RunLayer(layer, layout.pack(trunk.hidden[:, : layout.length])[None]) for layer in layers[: trunk.layer]]
    above._modules = {**base._modules, name: nn.ModuleList([*below, *layers[trunk.layer :]])}
    with _plugged(base):
        out = above(input_ids=ids_T[None], position_ids=layout.positions_T[None], use_cache=False, layout=layout)
    hidden_TD: Tensor = out.last_hidden_state[0]
    return hidden_TD


@contextmanager
def keeping(lm: PreTrainedModel, layer: int | None) -> Iterator[list[Tensor]]:
    """Collect the input [T, D] of ``layer`` at each call of :func:`run`."""
    kept: list[Tensor] = []
    if layer is None:
        yield kept
        return

    def collect(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append((args[0] if args else kwargs["hidden_states"])[0].detach())

    hook = getattr(trunk_of(lm), _layers_name(lm))[layer].register_forward_pre_hook(collect, with_kwargs=True)
    try:
        yield kept
    finally:
        hook.remove()


def layer_count(lm: PreTrainedModel) -> int:
    """Layers of the trunk."""
    return int(lm.config.get_text_config().num_hidden_layers)


def top_parameters(lm: PreTrainedModel, count: int) -> list[nn.Parameter]:
    """Those of the last ``count`` layers and of what runs after them, such as a norm.

    Raises:
        ModelError: the layers are not found, or the family's code fails.
    """
    trunk, layers, after = trunk_of(lm), getattr(trunk_of(lm), _layers_name(lm)), list[nn.Module]()
    below = {id(module) for module in [trunk, *layers.modules()]}
    hooks = [layers[-1].register_forward_hook(lambda *_: after.clear())]
    hooks += [m.register_forward_pre_hook(lambda m, _: after.append(m)) for m in trunk.modules() if id(m) not in below]
    try:
        with trial(lm):
            trunk(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=lm.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(parameter for module in [*layers[-count:], *after] for parameter in module.parameters()))


class _RunLayer(nn.Module):
    """Takes the place of a layer that has run."""

    def __init__(self, layer: nn.Module, hidden: Tensor) -> None:
        super().__init__()
        self.attention_type = getattr(layer, "attention_type", None)
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.hidden


def _layers_name(lm: PreTrainedModel) -> str:
    count = layer_count(lm)
    for name, child in trunk_of(lm).named_children():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return name
    raise ModelError(f"{type(lm).__name__}: its {count} layers are not found, so that model.top_layers cannot be used with it")


@contextmanager
def _plugged(base: Any) -> Iterator[None]:
    """Replace attention by :func:`_attention`."""
    config = base.config.get_text_config()
    attention = config._attn_implementation
    config._attn_implementation = INTERFACE
    try:
        yield
    finally:
        config._attn_implementation = attention


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *, layout: Layout | None = None,
    key_values: KeyValues | None = None, scaling: float | None = None, sliding_window: int | None = None,
    softcap: float | None = None, **rest: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers calls it: query [1, H, T, d], key and value [1, G, T, d] -> [1, T, H, d]."""
    if layout is None and key_values is None:
        raise CannotPack("this family does not hand on to its attention what konomi gives its model")
    if attention_mask is not None:
        raise CannotPack("this family makes a mask of its own")
    if any(rest.get(name) is not None for name in ("s_aux", "sinks", "indices", "block_indices")):
        raise CannotPack("this family's attention has sinks or chooses what it sees")
    kinds = getattr(getattr(module, "config", None), "layer_types", None) or ()
    kind = kinds[module.layer_idx] if len(kinds) > module.layer_idx else "full_attention"  # type: ignore[operator, index]
    if kind == "chunked_attention" or (kind == "sliding_attention" and sliding_window is None):
        raise CannotPack("this family keeps its window in the mask, which packed sequences have not")
    # rotary embeddings widen queries and keys; attention takes them in the precision of the products, as autocast would
    query_THd, key_TGd, value_TGd = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    layer: int = module.layer_idx  # type: ignore[assignment]
    if layout is None:
        assert key_values is not None
        keys, values = key_values.extend(layer, key_TGd, value_TGd)
        # the heads that share keys and values are as many queries of them
        grouped_BGxd = query_THd.view(len(query_THd), keys.shape[1], -1, query_THd.shape[-1])
        out = _attend(grouped_BGxd, keys, values, key_values.mask(sliding_window, values.dtype), scaling, softcap)
        return out.reshape(1, *query_THd.shape), None
    query_BHLd, key_BGLd, value_BGLd = (layout.pad(x).transpose(1, 2) for x in (query_THd, key_TGd, value_TGd))
    if key_values is not None:
        key_values.prefill(layer, key_BGLd, value_BGLd)
    limited = sliding_window is not None and layout.length > sliding_window
    mask = layout.mask(sliding_window, value.dtype) if limited or softcap is not None or prefers_products(query_BHLd) else None
    out_BHLd = _attend(query_BHLd, key_BGLd, value_BGLd, mask, scaling, softcap)
    return layout.pack(out_BHLd.transpose(1, 2))[None], None


def _attend(
    query_BHLd: Tensor, key_BGSd: Tensor, value_BGSd: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    """Soft-max attention [B, H, L, d]: with ``mask`` (0 or -inf) added to the scores, causal without one."""
    if mask is not None and softcap is None and many_alone(query_BHLd):
        return _one_query_each(query_BHLd, key_BGSd, value_BGSd, mask, scaling)
    shared = query_BHLd.shape[1] != key_BGSd.shape[1]
    in_products = prefers_products(query_BHLd)
    grouped = shared and softcap is None and not is_processor(query_BHLd.device)
    if shared and not grouped:
        key_BGSd, value_BGSd = (x.repeat_interleave(query_BHLd.shape[1] // x.shape[1], dim=1) for x in (key_BGSd, value_BGSd))
    if softcap is None and not in_products:
        return functional.scaled_dot_product_attention(
            query_BHLd, key_BGSd, value_BGSd, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
    assert mask is not None
    spare = whole_lanes(key_BGSd.shape[2]) - key_BGSd.shape[2]
    if in_products and spare:
        key_BGSd, value_BGSd = (functional.pad(x, (0, 0, 0, spare)) for x in (key_BGSd, value_BGSd))
        mask = functional.pad(mask, (0, spare), value=-torch.inf)
    scale = query_BHLd.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query_BHLd @ key_BGSd.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.softmax(scores.float() + mask.float(), -1).to(value_BGSd.dtype) @ value_BGSd


def _one_query_each(query_BH1d: Tensor, key_BHSd: Tensor, value_BHSd: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Attention of one query a head, in half precision but for scores and soft-max: [B, H, 1, d]."""
    batch, heads, _, width = query_BH1d.shape
    scale = width**-0.5 if scaling is None else scaling
    flat_n1d, keys_nSd, values_nSd = (x.flatten(0, 1) for x in (query_BH1d, key_BHSd, value_BHSd))
    scores_n1S = torch.bmm(flat_n1d, keys_nSd.transpose(1, 2), out_dtype=torch.float32) * scale
    weights_BH1S = torch.softmax(scores_n1S.view(batch, heads, 1, -1) + mask.float(), -1)
    return torch.bmm(weights_BH1S.flatten(0, 1).to(value_BHSd.dtype), values_nSd).view(batch, heads, 1, -1)


AttentionInterface.register(INTERFACE, _attention)
