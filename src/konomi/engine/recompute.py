"""Gradient checkpointing: recompute layers in the backward pass instead of storing their activations. Less memory, more time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from konomi.errors import ConfigError


def recompute_layers(model: PreTrainedModel) -> None:
    """Make the layers of a model store only their inputs for the backward pass.

    Raises:
        ConfigError: this family has no layers of transformers' kind for it.
    """
    if not _layers(model):
        raise ConfigError(
            f"model.gradient_checkpointing = true: a {type(model).__name__} has no layers that can be computed anew in the "
            "backward pass; set it to false"
        )
    config = model.config.get_text_config()

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _attention(config, config._attn_implementation)

    # the first is its name in newer releases
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    # the state of random numbers is read, which a device may wait for, only where something draws from it
    enable({"use_reentrant": False, "preserve_rng_state": _is_random(model), "context_fn": contexts})


@contextmanager
def recomputing(model: PreTrainedModel) -> Iterator[None]:
    """Recompute the layers marked by :func:`recompute_layers` although the model is in evaluation mode."""
    layers = [each for each in _layers(model) if each.gradient_checkpointing] if torch.is_grad_enabled() else []
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.training = training


def _layers(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _is_random(model: PreTrainedModel) -> bool:
    """Whether a dropout is on: in a module of its own, or as a rate that a layer keeps."""
    rates = (value for module in model.modules() for key, value in vars(module).items() if "drop" in key)
    modules = (module.p for module in model.modules() if isinstance(module, torch.nn.modules.dropout._DropoutNd))
    return any(rate > 0 for rate in (*rates, *modules) if isinstance(rate, float))


@contextmanager
def _attention(config: object, name: str) -> Iterator[None]:
    """Use the attention that was in place when a layer ran."""
    before = config._attn_implementation  # type: ignore[attr-defined]
    config._attn_implementation = name  # type: ignore[attr-defined]
    try:
        yield
    finally:
        config._attn_implementation = before  # type: ignore[attr-defined]
