"""A language model by its name: hub, directory, .gguf file, or embedded.

The model has float32 weights, is in eval mode and has no active dropout: PPO compares log-probabilities of two passes. Weights
are read from safetensors only (a pickled checkpoint can run code), and a repository's own code runs only if the config allows it.

Refused: weights that are missing from the files (transformers would draw them at random), an empty tokenizer, a quantised model,
an adapter beside weights, another head (a language model's may be tied and so missing without a sign), a model that looks at
later tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from konomi.config import ModelConfig
from konomi.data.chat import template_render
from konomi.data.tokens import Tokens, read_tokenizer
from konomi.engine.families import families_that_work
from konomi.errors import FAULTS, DataError, ModelError
from konomi.files import local_path, model_path, read_utf8
from konomi.models.deterministic import fuse_gelu, remove_dropout
from konomi.models.embedded import EMBEDDED_DEFAULT, Converted, Progress, embedded_model, gguf_model, is_complete
from konomi.models.find import adapter_settings, find_files, licence_of
from konomi.models.lora import open_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OTHER_HEAD = re.compile("Classification|RewardModel|QuestionAnswering|MultipleChoice|Regression")
"""In the names of architectures with another head."""
_HEADS = ("score.", "classifier.")
"""First part of the names of their weights."""


@dataclass(frozen=True)
class Loaded:
    """A causal language model ready for use.

    model: float32 weights, eval mode, every dropout 0.
    source: the name that was asked for.
    revision: hub: the commit; GGUF and embedded: SHA-256 of the GGUF file; directory: None.
    note: what the model's licence asks to be stated where the model is used.
    eos_ids: ids that end a text, in the place of those of tokenizer and model: those that a run began with.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    revision: str | None = None
    note: str | None = None
    eos_ids: tuple[int, ...] | None = None

    @property
    def commit(self) -> str | None:
        """The revision, if it is of a model of the hub."""
        return None if self.source.startswith("embedded:") or self.source.endswith(".gguf") else self.revision

    @cached_property
    def tokens(self) -> Tokens:
        """The tokenizer, with this model's ends of text and vocabulary size."""
        return Tokens(self.tokenizer, end_ids(self.model), vocabulary_size(self.model), self.eos_ids)


def load_causal_lm(config: ModelConfig, *, progress: Progress | None = None, verify: bool = False, fuse: bool = True) -> Loaded:
    """Load the model and tokenizer that ``config.name`` names: hub name, directory, .gguf file, or ``embedded:...``.

    Args:
        config: name, revision (hub only), trust_remote_code and chat_template are used. A directory may hold a LoRA adapter
            alone: it is merged into its base model.
        progress: called with a message before each slow step.
        fuse: see :func:`fuse_gelu`; fine-tuning keeps the family's own arithmetic.
        verify: for GGUF and embedded, check the SHA-256 of every file of the cached conversion and renew it if damaged.

    Raises:
        ModelError: it cannot be found, reached, read, or is not a causal language model that can be trained.
    """
    loaded = _load(config, progress or (lambda message: None), verify)
    use_template(loaded.tokenizer, config)
    settings = loaded.model.generation_config
    if loaded.tokenizer.chat_template and settings and not loaded.tokens.eos_ids <= end_ids(loaded.model):
        settings.eos_token_id = sorted(loaded.tokens.eos_ids)  # saved with the model, for whoever uses it then
    if fuse:
        fuse_gelu(loaded.model)
    return loaded


def use_template(tokenizer: Any, config: ModelConfig) -> None:
    """Give the tokenizer the chat template that ``config`` names. Raises ModelError if it cannot be read or does not work."""
    given = config.chat_template
    if given is None:
        return
    try:
        tokenizer.chat_template = given if "{{" in given or "{%" in given else read_utf8(local_path(given))
        template_render(tokenizer)([{"role": "user", "content": "a"}])
    except (OSError, DataError) as error:
        raise ModelError(f"model.chat_template: {error}; give a file with a template, or the template itself") from error


def _load(config: ModelConfig, say: Progress, verify: bool, adapters: bool = True) -> Loaded:
    name, path = config.name, model_path(config.name, ModelError)
    embedded, gguf = name.startswith("embedded:"), name.endswith(".gguf")
    if config.revision is not None and (embedded or gguf):
        raise ModelError(f"{name}: model.revision = {config.revision!r} is for hub models only; remove it")
    if adapters and config.revision is None and (adapter := adapter_settings(path)) is not None:
        named, revision = adapter["base_model_name_or_path"], adapter.get("revision")
        of_hub = isinstance(revision, str) and not model_path(named, ModelError).exists()
        base = config.model_copy(update={"name": named, "revision": revision if of_hub else None})
        loaded = _load(base, say, verify, adapters=False)
        with explained(name, "adapter"):
            return replace(loaded, model=open_adapter(loaded.model, path, adapter), source=name, revision=None)
    with quiet():
        if embedded:
            short = name.removeprefix("embedded:")
            return _from_cache(name, lambda full: embedded_model(short, say, verify=full), verify)
        if gguf:
            return _from_cache(name, lambda full: gguf_model(path, say, verify=full), verify)
        files, revision = find_files(name, config.revision, say)
        # of the hub by name, not by directory: transformers knows exceptions for some models by their names
        hub = {"revision": revision, "local_files_only": True} if revision else {}
        model, tokenizer = _read(name if revision else str(files), name, trust=config.trust_remote_code, **hub)
        return Loaded(model, tokenizer, name, revision, licence_of(files))


def end_ids(model: Any) -> set[int]:
    """The ids that end a text by a model's settings; a chat model often has more than its tokenizer."""
    settings = (getattr(model, "generation_config", None), model.config, model.config.get_text_config())
    named = [getattr(each, "eos_token_id", None) for each in settings]
    return {i for each in named for i in (each if isinstance(each, (list, tuple)) else [each]) if type(i) is int}


def vocabulary_size(model: Any) -> int:
    """How many tokens a model has embeddings for."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


def _from_cache(name: str, find: Callable[[bool], Converted], verify: bool) -> Loaded:
    converted = find(verify)
    try:
        model, tokenizer = _read(str(converted.path), name, trust=False)
    except ModelError:
        if is_complete(converted.path, verify=True):
            raise
        converted = find(True)  # damaged without a change of size: made again
        model, tokenizer = _read(str(converted.path), name, trust=False)
    return Loaded(model, tokenizer, name, converted.sha256, converted.note)


def _read(where: str, name: str, *, trust: bool, **hub: Any) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    with explained(name, "config"):
        model_config = AutoConfig.from_pretrained(where, trust_remote_code=trust, **hub)
        _check_config(model_config, name)
    with explained(name, "tokenizer"):
        tokenizer = read_tokenizer(where, trust_remote_code=trust, **hub)
        _check_tokenizer(tokenizer, name)
    with explained(name, "model"):
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                where,
                config=model_config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=trust,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported by _check_weights, with the names
                **hub,
            )
        except SafetensorError as error:
            raise ModelError(f"{name}: a .safetensors file is damaged or cut short: {error}. Fetch or save it again") from error
    _check_weights(info, name)
    with explained(name, "model"):
        model.float().eval()
        remove_dropout(model)
        _check_causal(model, name)
    return model, tokenizer


def _check_config(config: Any, name: str) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    kind = getattr(config, "model_type", type(config).__name__)
    if config.is_encoder_decoder or (type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote):
        raise ModelError(
            f"{name}: a {kind} model is not a causal language model (one that goes on with a text). {families_that_work()}; "
            f"{EMBEDDED_DEFAULT} needs no files"
        )
    if other := [each for each in getattr(config, "architectures", None) or () if _OTHER_HEAD.search(each)]:
        raise ModelError(_no_language_model(name, f"the architecture {other[0]}"))
    if (marks := getattr(config, "quantization_config", None)) is not None:
        method = marks.get("quant_method") if isinstance(marks, dict) else getattr(marks, "quant_method", marks)
        raise ModelError(
            f"{name}: the weights are quantised ({method}) and cannot be trained. Give the model that it was made from"
        )


def _check_tokenizer(tokenizer: Any, name: str) -> None:
    # transformers makes an empty tokenizer of some families when no tokenizer file is there
    if len(tokenizer) < 1000 and set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise ModelError(
            f"{name}: no tokenizer files (tokenizer.json, or *.model, or vocab.json and merges.txt). Save the "
            "tokenizer there: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )


def _no_language_model(name: str, what: str) -> str:
    return (
        f"{name}: it has {what}: a reward model or classifier, which gives scores or labels and writes no text. Give a language "
        'model; to score with this one, name it under [reward], with kind = "model" or "classifier"'
    )


def _check_weights(info: dict[str, Any], name: str) -> None:
    if head := sorted(key for key in info["unexpected_keys"] if key.startswith(_HEADS)):
        raise ModelError(_no_language_model(name, f"the weights {head[0]}"))
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{name}: its files lack {len(missing)} weights that a causal language model needs, such as {missing[0]}: "
            "they are incomplete, or of another kind of model (a classifier, an encoder)"
        )
    if odd := sorted(info["mismatched_keys"]):
        key, actual, expected = odd[0]
        raise ModelError(f"{name}: weights and config.json do not fit: {key} is {list(actual)}, should be {list(expected)}")


@torch.no_grad()
def _check_causal(model: Any, name: str) -> None:
    """Refuse a model whose output at a token changes with the tokens after it, or is not a number."""
    ids = torch.tensor([[0, 0], [0, 1]], device=model.device)
    first, second = model(input_ids=ids, use_cache=False).logits[:, 0].double()
    if not torch.isfinite(first).all():
        raise ModelError(f"{name}: its output is not finite (NaN or infinity): the weights are damaged")
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-5 * float(first.abs().max())):
        raise ModelError(f"{name}: not causal: its output at a token changes with the tokens that come after it")


@contextmanager
def explained(name: str, step: str) -> Iterator[None]:
    """Turn errors of transformers while reading ``step`` into a ModelError that says how to mend it."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (*FAULTS, MemoryError, SafetensorError, StrictDataclassError) as error:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise ModelError(
                f"{name}: the repository ships Python code of its own to be run. Read it, and if you trust it, set "
                "model.trust_remote_code = true"
            ) from error
        raise ModelError(f"{name}: its {step} cannot be read: {text[:500]}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off the console."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
