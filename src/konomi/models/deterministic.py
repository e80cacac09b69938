"""Changes to the modules of a model that has been loaded: no dropout, and GELU in one pass."""

from __future__ import annotations

from typing import Any

import torch


def fuse_gelu(model: torch.nn.Module) -> None:
    """Compute GELU in its tanh form, which transformers writes out in eight passes over the tensor, in one; in place."""
    from transformers.activations import FastGELUActivation, NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, (NewGELUActivation, FastGELUActivation)):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))


def remove_dropout(model: torch.nn.Module) -> None:
    """Set every dropout of ``model`` to 0, in place: modules, rates that layers keep as floats, and the config, so that a saved
    model or a copy made from the config has none either."""
    configs = [model.config] if hasattr(model, "config") else []
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero_rates(module)
        if (own := getattr(module, "config", None)) is not None:
            configs.append(own)
    for config in configs:
        _zero_rates(config)
        for nested in list(vars(config).values()):
            if hasattr(nested, "to_dict"):
                _zero_rates(nested)


def _zero_rates(thing: Any) -> None:
    for key, value in list(vars(thing).items()):
        # attention_dropout, attn_pdrop, layerdrop, dropout_p, ...: a rate is a number, never a bool
        if ("drop" in key) and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(thing, key, type(value)(0))  # a config may take no other type
