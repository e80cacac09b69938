"""Weights in bfloat16: of frozen models, which need no more, and of a policy that would not fit otherwise.

Buffers stay as they are: in bfloat16 the frequencies of rotary embeddings would turn a text of a few hundred tokens by whole
radians.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def weights_to_bf16(module: nn.Module) -> None:
    """Cast the parameters, in place; those that are tied stay tied."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


def products_to_bf16(lm: PreTrainedModel) -> None:
    """Cast the weights of the products within the layers, in place: under autocast in bfloat16 the results are the same.

    Embeddings, head and norms stay as they are.
    """
    outside = {id(part.weight) for part in (lm.get_input_embeddings(), lm.get_output_embeddings())}
    for module in lm.modules():
        if isinstance(module, (nn.Linear, Conv1D)) and id(module.weight) not in outside and module.weight.is_floating_point():
            module.weight.data = module.weight.data.to(torch.bfloat16)


def hold_in_bf16(model: Any) -> None:
    """Hold the trunk of a frozen model in bfloat16, in place: half the memory, and products without casts.

    What follows it, such as the head, stays float32 and is given float32: scores in bfloat16 would have 8 bits. A model without
    a trunk of its own stays as it is.
    """
    trunk = model.base_model
    if trunk is not model:
        weights_to_bf16(trunk)
        trunk.register_forward_hook(lambda module, given, output: tree_map(_widened, output))


def _widened(x: Any) -> Any:
    return x.float() if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 else x
