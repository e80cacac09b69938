"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) by peft, put into a model in place.

A linear layer ``y = W x`` becomes ``y = W x + (alpha / rank) B A x``. W is frozen. B begins at zero, and the model as it was.
The model stays of its own class, so that whatever runs it runs it with its adapters: packed, sampled, as a reward model. peft is
imported when adapters are asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from konomi.config import LoraConfig
from konomi.engine.packed import trunk_of
from konomi.errors import ConfigError, ModelError
from konomi.files import model_path, new_directory
from konomi.models.four_bits import dequantized, is_quantized, quantize_trunk
from konomi.runs.processes import is_main
from konomi.seeds import stream_seed

ADAPTER_FILE = "adapter_model.safetensors"
"""peft's name of the weights, beside its adapter_config.json."""
_NAME = "default"
"""peft's name of the only adapter."""

_READ = ("r", "lora_alpha", "target_modules", "exclude_modules", "fan_in_fan_out", "use_rslora", "use_dora", "rank_pattern",
         "alpha_pattern", "layers_to_transform", "layers_pattern")  # fmt: skip
"""Settings of a saved adapter that decide what it adds."""
_INERT = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
          "lora_dropout", "eva_config", "runtime_config")  # fmt: skip
"""Settings of a saved adapter that change nothing in what it adds."""
_INITIAL = (True, False, "gaussian", "eva", "orthogonal")
"""peft's first weights of adapters that leave the weights beneath them as they are; others subtract what they begin with."""

ModelT = TypeVar("ModelT", bound=nn.Module)


def require_peft(config: LoraConfig) -> None:
    """Raise ConfigError if adapters are asked for and their packages are missing. Call it before a model is loaded."""
    if config.rank is None:
        return
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'adapters (LoRA) need peft: {error}; pip install "konomi[lora]"') from None
    if config.quantize != "none" and find_spec("bitsandbytes") is None:
        raise ConfigError(f'lora.quantize = "{config.quantize}": bitsandbytes is missing; pip install "konomi[qlora]"')


def add_adapters(
    model: Any, config: LoraConfig, *, seed: int = 0, base: str = "", revision: str | None = None, heads: Sequence[str] = (),
) -> None:  # fmt: skip
    """Freeze a model and put adapters beside the linear layers of its trunk, in place. Without ``config.rank`` nothing is done.

    Args:
        model: of transformers, on the CPU.
        config: rank, alpha and targets.
        seed: of the first weights of A.
        base: the name of the model, for whoever opens the saved adapter.
        revision: of a model of the hub, its commit.
        heads: names of modules that are trained whole and saved with the adapter.

    Raises:
        ConfigError: a package is missing; no linear layer has the name of a target, or none can be held in 4 bits.
    """
    if config.rank is None:
        return
    require_peft(config)
    import peft

    if config.quantize != "none":
        quantize_trunk(model, config.quantize)
        model.is_loaded_in_4bit = True  # peft asks for it
    layers = _targets(model, config, heads)
    names = {name.rpartition(".")[2] for name in layers}
    alike = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in names} - layers.keys()
    settings = peft.LoraConfig(
        task_type="SEQ_CLS" if heads else "CAUSAL_LM", r=config.rank, lora_alpha=config.alpha, target_modules=sorted(names),
        exclude_modules=sorted(alike) or None, fan_in_fan_out=isinstance(next(iter(layers.values())), Conv1D),
        base_model_name_or_path=_resolved(base), revision=revision,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "lora"))
        peft.inject_adapter_in_model(settings, model, adapter_name=_NAME)
    vars(model).pop("is_loaded_in_4bit", None)
    settings.modules_to_save = list(heads) or None  # not before: peft would put a copy in place of each
    for layer in adapted_layers(model):  # where it has to be, autocast casts: peft would cast to float32 first
        layer.cast_input_dtype_enabled = layer.base_layer.weight.dtype.itemsize < 4
    for name, parameter in model.named_parameters():
        if _is_adapter(name) or _is_in(name, heads):
            parameter.data = parameter.data if parameter.dtype.itemsize >= 4 else parameter.data.float()
            parameter.requires_grad_(True)


def _targets(model: Any, config: LoraConfig, heads: Sequence[str]) -> dict[str, nn.Module]:
    """The layers that get adapters, by their full names."""
    inside = {id(module) for module in trunk_of(model).modules()}
    linear = {
        name: module for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, (nn.Linear, Conv1D)) and not _is_in(name, heads)
    }  # fmt: skip
    for target in config.targets:
        if not any(_ends(name, target) for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
            raise ConfigError(f"lora.targets: no linear layer of {type(model).__name__} is named {target}; there are: {known}")
    return {name: each for name, each in linear.items() if not config.targets or any(_ends(name, t) for t in config.targets)}


def _resolved(base: str) -> str:
    """The name of a model, or the absolute path of its directory."""
    path = model_path(base, ModelError) if base else Path(base)
    return str(path.resolve()) if base and path.exists() else base


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _is_in(name: str, heads: Sequence[str]) -> bool:
    return not set(heads).isdisjoint(name.split("."))


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def adapted_layers(model: nn.Module) -> list[Any]:
    """The layers with an adapter; none in a model without."""
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the model has without adapters, by the names that they then have."""
    return {name.replace(".base_layer.", "."): p for name, p in model.named_parameters() if not _is_adapter(name)}


def adapter_weights(model: Any) -> dict[str, nn.Parameter]:
    """What is trained, adapters and heads, by peft's names of saved weights; nothing for a model without adapters."""
    if not adapted_layers(model):
        return {}
    heads = model.peft_config[_NAME].modules_to_save or ()
    trained = {name: p for name, p in model.named_parameters() if _is_adapter(name) or _is_in(name, heads)}
    return {f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": parameter for name, parameter in trained.items()}


def save_adapter(model: Any, directory: Path) -> None:
    """Write the adapters, with heads that are trained whole, as peft does: ``PeftModel.from_pretrained(base, directory)``."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in adapter_weights(model).items()}
    save_file(tensors, directory / ADAPTER_FILE, metadata={"format": "pt"})
    settings = copy.copy(model.peft_config[_NAME])
    settings.inference_mode, settings.target_modules = True, sorted(settings.target_modules)  # a set would come in any order
    settings.save_pretrained(directory)


def save_model(loaded: Any, model: Path, adapter: Path) -> None:
    """Write a language model and its tokenizer, what adapters add in its weights; adapters, if there are any, beside it."""
    if not is_main():
        return
    if adapted_layers(loaded.model):
        with new_directory(adapter) as draft:
            save_adapter(loaded.model, draft)
    with new_directory(model) as draft:
        merged(loaded.model).save_pretrained(draft)
        loaded.tokenizer.save_pretrained(draft)


def open_adapter(model: Any, directory: Path, saved: Mapping[str, Any]) -> Any:
    """A language model with a saved LoRA adapter merged into its weights; ``saved``: what its adapter_config.json says.

    Raises:
        ConfigError: peft is missing.
        ModelError: it is another kind of adapter, or of another model.
    """
    require_peft(LoraConfig(rank=1))
    import peft

    if (more := _more(saved, peft.LoraConfig().to_dict())) is not None:
        raise ModelError(
            f"{directory}: an adapter that is more than LoRA of linear layers ({more} = {saved.get(more)!r}); merge it into its "
            "base model with peft"
        )
    # no other setting: some have peft import a module by its name
    settings = peft.LoraConfig(**{name: saved[name] for name in _READ if saved.get(name) is not None})
    peft.inject_adapter_in_model(settings, model, adapter_name=_NAME)
    keys = peft.set_peft_model_state_dict(model, load_file(directory / ADAPTER_FILE), adapter_name=_NAME)
    lacking = [name for name in keys.missing_keys if _is_adapter(name)]
    if odd := [*lacking, *keys.unexpected_keys]:
        raise ModelError(f"{directory}: adapter and base model do not fit: {odd[0]} is {'missing' if lacking else 'unknown'}")
    for layer in adapted_layers(model):
        layer.merge(safe_merge=True)
    return without_adapters(model).requires_grad_(True)


def _more(saved: Mapping[str, Any], defaults: Mapping[str, Any]) -> str | None:
    """The setting of a saved adapter by which it is more than konomi reads, if there is one; ``defaults``: those of peft."""
    if saved.get("peft_type") != "LORA":
        return "peft_type"
    if saved.get("init_lora_weights", True) not in _INITIAL:
        return "init_lora_weights"
    others = saved.keys() - {*_READ, *_INERT, "init_lora_weights"}
    return next((name for name in sorted(others) if saved[name] and saved[name] != defaults.get(name)), None)


@torch.no_grad()
def reset_adapters(model: nn.Module) -> None:
    """Set the adapters to zero, in place."""
    for layer in adapted_layers(model):
        layer.lora_B[_NAME].weight.zero_()


def are_zero(model: nn.Module) -> bool:
    """Whether the adapters add nothing; true of a model without any."""
    return not any(bool(layer.lora_B[_NAME].weight.any()) for layer in adapted_layers(model))


def without_adapters(model: ModelT) -> ModelT:
    """A copy that shares all weights, and has the layers beneath the adapters in their places. It takes no memory to speak of."""
    return _copied(model, _beneath, adapted_layers(model))


@torch.no_grad()
def merged(model: ModelT) -> ModelT:
    """A copy as :func:`without_adapters` makes it, but with what the adapters add in the weights, which are then on the CPU, of
    the wider type of the two: rounded to bfloat16, the sum would be another model. The model itself if it has no adapters."""

    if not (layers := adapted_layers(model)):
        return model
    beneath = {id(layer.base_layer) for layer in layers}
    held = [each for each in model.modules() if each not in layers and id(each) not in beneath and is_quantized(each)]

    def plain(layer: Any, shared: dict[int, Any]) -> nn.Module:
        return dequantized(layer) if layer in held else _merged_layer(layer, shared)

    return _copied(model, plain, [*layers, *held])


def _beneath(layer: Any, shared: dict[int, Any]) -> nn.Module:
    """The layer under an adapter, with its weights shared."""
    plain: nn.Module = copy.deepcopy(layer.base_layer, dict(shared))
    return plain


def _merged_layer(layer: Any, shared: dict[int, Any]) -> nn.Module:
    """The plain layer with the adapter merged into its weight."""
    added = layer.get_delta_weight(_NAME)
    if is_quantized(layer.base_layer):
        return dequantized(layer.base_layer, added)
    plain: Any = _beneath(layer, shared)
    plain.weight = nn.Parameter((layer.base_layer.weight + added).cpu(), requires_grad=False)
    return plain


def _copied(model: ModelT, plain: Callable[[Any, dict[int, Any]], nn.Module], layers: Sequence[nn.Module]) -> ModelT:
    """A copy of a model that shares its weights, with ``plain(layer, shared)`` in the place of each of the ``layers``."""
    shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    memo = shared | {id(layer): plain(layer, shared) for layer in layers}
    copied = copy.deepcopy(model, memo)
    del copied.peft_config
    return copied
