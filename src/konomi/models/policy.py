"""The policy: a causal language model, with a value head where a critic is trained; and the frozen reference it is held to.

A sequence is query and response. The trunk runs over all tokens but the last, packed without padding (`konomi.engine.packed`),
the vocabulary head and the value head only over positions that predict a response token: no [B, L, V] tensor ever exists.
Where only the top layers are trained, the output of the layers below is kept and handed in as a `Trunk`.

Shape suffixes: B sequences, L tokens, R response tokens, N valid response tokens of the batch in row order, T tokens of all
sequences, V vocabulary, D width.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from konomi.engine import packed
from konomi.engine.forward import Evaluation, check_head, goes_on_from, head_weight, plan_pass, response_hidden, through_head
from konomi.engine.layout import Pass, scatter
from konomi.engine.packed import Trunk
from konomi.engine.recompute import recomputing
from konomi.engine.rollout import Rollout
from konomi.engine.shared_weights import cast_once, one_gradient
from konomi.errors import ConfigError
from konomi.models.deterministic import fuse_gelu
from konomi.models.load import quiet
from konomi.models.lora import adapted_layers, are_zero, merged, plain_parameters, save_adapter, without_adapters

VALUE_HEAD_FILE = "value_head.safetensors"


class Policy(nn.Module):
    """A causal language model and, for a critic, a value head on its last hidden state.

    The value head is a linear map that begins at zero: the first values are the mean of the normalised scores, 0.

    Args:
        lm: the language model, as it is, without dropout; its GELU is fused.
        freeze_embeddings: do not train the token embeddings and the vocabulary head.
        top_layers: train only this many top layers and the norm after them.
        critic: make the value head.

    Raises:
        ModelError: this family's hidden states, packed, do not give the family's own logits.
        ConfigError: the model has fewer layers than ``top_layers``.
    """

    def __init__(
        self, lm: PreTrainedModel, freeze_embeddings: bool = False, top_layers: int | None = None, critic: bool = True
    ) -> None:
        super().__init__()
        fuse_gelu(lm)
        check_head(lm)
        self.lm = lm
        self._below = train_only(lm, freeze_embeddings, top_layers)
        if self._below and packed.packs(lm) and not goes_on_from(lm, self._below):
            self._below = None  # its upper layers read more of the lower ones than their hidden states
        self.value_head = _value_head(head_weight(lm)) if critic else None

    def forward(
        self, rollout: Rollout | Pass, temperature: float = 1.0, trunk: Trunk | None = None, with_entropy: bool = True
    ) -> Evaluation:
        """Evaluate response tokens; log-probabilities and values carry gradients. Of a `Pass`, all are flat: [N]."""
        p = rollout if isinstance(rollout, Pass) else plan_pass(self.lm, rollout)
        with cast_once(self.lm), one_gradient(self.lm), recomputing(self.lm):
            hidden_ND = response_hidden(self.lm, p, trunk)
            logprobs_N, entropy_N = through_head(self.lm, hidden_ND, p.targets, temperature, with_entropy)
        values_N = torch.zeros_like(logprobs_N) if self.value_head is None else self.values(hidden_ND)
        flat = (logprobs_N, values_N, entropy_N)
        if isinstance(rollout, Pass):
            return Evaluation(*flat)
        return Evaluation(*(scatter([(p, x_N[None])], len(rollout))[0] for x_N in flat))

    @property
    def trunk_layer(self) -> int | None:
        """The first layer that is trained, where the output of those below can be kept as a `Trunk`."""
        return self._below if packed.packs(self.lm) else None

    def values(self, hidden_ND: Tensor) -> Tensor:
        """[N] values of last hidden states, by the value head."""
        assert self.value_head is not None
        with torch.autocast(hidden_ND.device.type, enabled=False):  # bfloat16 would round values to 8 bits
            values_N: Tensor = self.value_head(hidden_ND.to(self.value_head.weight.dtype)).squeeze(-1)
        return values_N

    def save(self, directory: str | Path, own_names: bool = False) -> None:
        """Write ``model.safetensors`` with its configuration, as plain transformers does, and the value head beside it. What
        adapters add is in the weights.

        ``own_names``: keep the model's own names and shapes of weights; its family's files may differ (experts one by one).
        """
        self.save_lm(directory, own_names)
        self._save_head(directory)

    def save_lm(self, directory: str | Path, own_names: bool = False) -> None:
        """The same without the value head."""
        with quiet():
            merged(self.lm).save_pretrained(directory, save_original_format=not own_names)

    def save_adapter(self, directory: str | Path) -> None:
        """Write the adapters, as peft does, and the value head beside them."""
        save_adapter(self.lm, Path(directory))
        self._save_head(directory)

    def _save_head(self, directory: str | Path) -> None:
        if self.value_head is not None:
            save_file({k: v.contiguous() for k, v in self.value_head.state_dict().items()}, Path(directory) / VALUE_HEAD_FILE)


def _value_head(weight_VD: Tensor) -> nn.Linear:
    """A value head for the hidden states that this vocabulary head reads."""
    head = nn.Linear(weight_VD.shape[1], 1, dtype=torch.promote_types(weight_VD.dtype, torch.float32))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def train_only(lm: PreTrainedModel, freeze_embeddings: bool = False, top_layers: int | None = None) -> int | None:
    """Freeze the rest of a model; return the number of layers below ``top_layers``, if that is given.

    Raises:
        ConfigError: the model has fewer layers than ``top_layers``.
    """
    if freeze_embeddings:
        lm.get_input_embeddings().requires_grad_(False)
        lm.get_output_embeddings().requires_grad_(False)
    if top_layers is None:
        return None
    below = layers_below(lm, top_layers)
    lm.requires_grad_(False)
    for parameter in packed.top_parameters(lm, top_layers):
        parameter.requires_grad_(True)
    return below


def layers_below(lm: PreTrainedModel, top_layers: int) -> int:
    """How many layers are below the top ones. Raises ConfigError if it has fewer than those."""
    layers = packed.layer_count(lm)
    if top_layers > layers:
        raise ConfigError(f"model.top_layers = {top_layers}: the model has {layers} layers")
    return layers - top_layers


def make_reference(policy: Policy) -> PreTrainedModel:
    """A frozen copy of a policy's language model. Weights that the policy does not train are shared; with adapters all are."""
    if adapted_layers(policy.lm):
        return cast(PreTrainedModel, without_adapters(policy.lm).requires_grad_(False).eval())
    shared = {id(p): p for p in policy.lm.parameters() if not p.requires_grad}
    return cast(PreTrainedModel, copy.deepcopy(policy.lm, memo=dict(shared)).requires_grad_(False).eval())


@torch.no_grad()
def same_weights(lm: PreTrainedModel, reference: PreTrainedModel, frozen: bool = False) -> bool:
    """Whether a policy is its reference, to the bit; ``frozen``: in what is not trained."""
    own, others = plain_parameters(lm), plain_parameters(reference)
    if not (frozen or are_zero(lm)):
        return False
    return own.keys() == others.keys() and all(
        weight is others[name] or torch.equal(weight, others[name])
        for name, weight in own.items()
        if not (frozen and weight.requires_grad)
    )
