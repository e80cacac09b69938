"""Frozen weights beneath adapters in 4 bits (QLoRA; Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

A weight is one of 16 values (NormalFloat) times the scale of its block of 64; the scales are in 8 bits themselves. Each product
makes the weight anew in the precision of the run. bitsandbytes is imported when 4 bits are asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from konomi.engine.packed import trunk_of
from konomi.errors import ConfigError


def quantize_trunk(model: Any, quantize: str = "nf4") -> None:
    """Hold the weights of the linear layers of a model's trunk in 4 bits, in place. Embeddings, norms and heads stay as they are.

    Raises:
        ConfigError: the family's layers are not torch's linear ones (GPT-2).
    """
    layers = {name: layer for name, layer in trunk_of(model).named_modules() if type(layer) is nn.Linear}
    if not layers:
        raise ConfigError(
            f'lora.quantize = "{quantize}": {type(model).__name__} has no linear layers of torch that could be held in 4 bits; '
            'use lora.quantize = "none"'
        )
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        setattr(trunk_of(model).get_submodule(parent), own, _quantized(layer, quantize))


def _quantized(layer: nn.Linear, kind: str) -> nn.Module:
    import bitsandbytes as bnb

    with torch.device("meta"):
        held: Any = bnb.nn.Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, quant_type=kind)
    weight = bnb.nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type=kind, compress_statistics=True, module=held)
    held.weight = weight.to(layer.weight.device)  # this quantises
    held.bias = layer.bias
    held.compute_type_is_set = True  # by the hook
    held.support_avx512bf16_for_cpu = False  # it would pack the weight for passes without gradient, and not unpack it for others
    held.register_forward_pre_hook(_in_precision)
    return held.train(layer.training)


def _in_precision(layer: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Compute in the precision of autocast where it is on, as other linear layers do."""
    (x,) = inputs
    kind = x.device.type
    layer.compute_dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return (x.to(layer.compute_dtype),)


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer holds its weight in 4 bits."""
    return getattr(getattr(layer, "weight", None), "quant_state", None) is not None


@torch.no_grad()
def dequantized(layer: Any, added: Tensor | None = None) -> nn.Linear:
    """The linear layer that a quantised one stands for, on the CPU; ``added``: to its weight, whose type may then be wider."""
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    merged = (weight if added is None else weight + added).cpu()
    with torch.device("meta"):
        plain = nn.Linear(merged.shape[1], merged.shape[0], layer.bias is not None)
    plain.weight, plain.bias = nn.Parameter(merged, requires_grad=False), layer.bias
    return plain
