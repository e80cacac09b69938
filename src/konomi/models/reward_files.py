"""Reward models by name: made from a language model or an encoder, or read from a directory.

On disk a reward model is a sequence-classification model of transformers, which others can load too, with ``reward.json`` beside
it: what it was trained on, and the mean and deviation of the initial model's scores. Where its score is that of an ensemble, the
text baseline is beside it too; transformers alone reads the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from konomi.config import LoraConfig, ModelConfig
from konomi.data.messages import Text
from konomi.data.tokens import read_tokenizer
from konomi.errors import ConfigError, DataError, ModelError
from konomi.files import model_path, read_utf8
from konomi.models.deterministic import fuse_gelu, remove_dropout
from konomi.models.embedded import Progress
from konomi.models.find import find_files, licence_of, refuse_adapter
from konomi.models.language_head import LanguageHead
from konomi.models.load import explained, load_causal_lm, quiet, use_template
from konomi.models.lora import add_adapters
from konomi.models.reward import FILE, VERSION, Normalisation, RewardModel
from konomi.models.text_baseline import FILE as TEXT_BASELINE
from konomi.models.text_baseline import Ensemble, read_text_baseline
from konomi.reading import parse_json

_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class NewRewardModel:
    """A reward model that is to be trained.

    fresh: the head was drawn, not read from the files.
    revision: hub: the commit; GGUF and embedded: SHA-256 of the file; directory: None.
    note: what the model's licence asks to be stated.
    summed: beside its files is a text baseline, which is not read: their score is that of an ensemble, this one the network's.
    """

    model: RewardModel
    fresh: bool
    revision: str | None
    note: str | None
    summed: bool = False


def make_reward_model(
    config: ModelConfig, *, outputs: int, labels: Sequence[str] = (), seed: int, max_length: int, chat: bool | None = False,
    progress: Progress | None = None, lora: LoraConfig | None = None, language: bool = False,
) -> NewRewardModel:  # fmt: skip
    """Put a head of ``outputs`` numbers, drawn with ``seed``, on the model that ``config`` names; on the CPU, float32.

    ``chat``: as in :class:`RewardModel`; None: where the tokenizer has a chat template.

    The head of a classifier is kept where it has as many outputs and the same labels. With ``lora`` adapters are trained, and the
    head whole. With ``language`` the model has the vocabulary head beside it (`LanguageHead`).

    Raises:
        ModelError: it cannot be found or read, has no form for classification in transformers, or no chat template.
        ConfigError: it has fewer layers than ``config.top_layers``, or no vocabulary head that ``language`` could have.
    """
    name, say = config.name, progress or (lambda message: None)
    local = name.startswith("embedded:") or name.endswith(".gguf")
    files, revision = (None, None) if local else find_files(name, config.revision, say)
    note = licence_of(files) if files else None
    lm: Any = None
    if files is None or _is_language_model(files, config):
        loaded = load_causal_lm(config, progress=progress)
        lm, tokenizer, revision, note, fresh = loaded.model, loaded.tokenizer, loaded.revision, loaded.note, True
        model = _with_head(lm, name)
    else:
        with torch.random.fork_rng():  # transformers draws whatever else is new from the global state
            torch.manual_seed(seed)
            model, tokenizer, fresh = _classifier(files, config, outputs, labels)
        use_template(tokenizer, config)
    if fresh:
        init_head(_replace_head(model, outputs), seed)
    model.config.num_labels = outputs
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
    model.config.problem_type = None if outputs == 1 else "single_label_classification"
    frozen = config.freeze == "embeddings"
    reward = RewardModel(
        model, tokenizer, max_length=max_length, top_layers=config.top_layers, freeze_embeddings=frozen,
        chat=bool(tokenizer.chat_template) if chat is None else chat,
    )  # fmt: skip
    reward.reader.name = name
    if language:
        if lm is None or not reward.packs:
            why = "is no language model" if lm is None else f"is a {type(lm).__name__}, whose hidden states cannot be had here"
            raise ConfigError(f"train.lm_weight: {name} {why}; remove it, or begin with another model")
        reward.language = LanguageHead(lm)
    if lora is not None:
        add_adapters(model, lora, seed=seed, base=name, revision=None if local else revision, heads=_heads(model))
    summed = files is not None and (files / TEXT_BASELINE).is_file()
    return NewRewardModel(reward.eval(), fresh, revision, note, summed)


@torch.no_grad()
def rescale_head(
    model: RewardModel, texts: Sequence[Sequence[Text]], autocast: Callable[[], AbstractContextManager[Any]]
) -> None:
    """Scale a drawn head down to a standard deviation of at most 1 over some texts: the last hidden states of some families
    (Gemma) are many times larger than those that the draw is meant for."""
    std = float(torch.cat(model.predict(texts, autocast=autocast)).std())
    if std > 1.0:
        _head(model.model).weight.div_(std)


def open_reward_model(name: str) -> RewardModel:
    """Read a reward model that :meth:`RewardModel.save` wrote; on the CPU, float32, in evaluation mode.

    Raises:
        ModelError: there is no such directory; its weights cannot be read or are incomplete.
        DataError: it has no reward.json, or that is damaged.
    """
    from transformers import AutoModelForSequenceClassification

    path = model_path(name, ModelError)
    if not path.is_dir():
        raise ModelError(f"{name}: no such directory; give the model/ of a `konomi reward` run")
    refuse_adapter(str(path), name)
    facts = read_facts(path)
    try:
        max_length = int(facts["max_length"])
        scale = Normalisation(facts["mean"], facts["std"], facts["count"], facts["data_sha256"]) if "mean" in facts else None
        factors = [float(facts["ensemble"][name]) for name in ("network", "text")] if "ensemble" in facts else []
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path / FILE}: incomplete ({error}); train the model again") from None
    ensemble = Ensemble(read_text_baseline(path), *factors) if factors else None
    with quiet(), explained(name, "reward model"):
        tokenizer = read_tokenizer(path)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{name}: weights are missing, such as {missing[0]}; save the reward model again")
    remove_dropout(model)
    fuse_gelu(model)
    reward = RewardModel(model, tokenizer, max_length=max_length, chat=bool(facts.get("chat"))).eval()
    reward.normalisation, reward.ensemble, reward.reader.name = scale, ensemble, name
    return reward


def _is_language_model(files: Path, config: ModelConfig) -> bool:
    from transformers import AutoConfig

    with explained(config.name, "config"):
        model_config = AutoConfig.from_pretrained(files, trust_remote_code=config.trust_remote_code)
    architectures = getattr(model_config, "architectures", None) or [""]
    return str(architectures[0]).endswith(_LANGUAGE_MODELS)


def _with_head(lm: Any, name: str) -> Any:
    """The trunk of a language model under a classification head, without a copy of it."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification

    if type(lm.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(f"{name}: transformers has no {lm.config.model_type} model for classification; use another backbone")
    with torch.device("meta"), quiet():
        model = AutoModelForSequenceClassification.from_config(lm.config)
    setattr(model, model.base_model_prefix, lm.base_model)
    _replace_head(model, 1)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(f"{name}: its classification form has more than a linear head, which cannot be made here")
    return model.float().eval()


def _classifier(files: Path, config: ModelConfig, outputs: int, labels: Sequence[str]) -> tuple[Any, Any, bool]:
    """An encoder or a classifier; the third says whether its head has to be drawn."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    trust = {"trust_remote_code": config.trust_remote_code}
    with quiet(), explained(config.name, "model"):
        model_config = AutoConfig.from_pretrained(files, **trust)
        same = model_config.num_labels == outputs and (not labels or list(model_config.id2label.values()) == list(labels))
        model_config.num_labels = outputs
        tokenizer = read_tokenizer(files, **trust)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            files, config=model_config, use_safetensors=True, dtype=torch.float32, output_loading_info=True,
            ignore_mismatched_sizes=True, **trust,
        )  # fmt: skip
    lacking = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    inside = sorted(key for key in lacking if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key)
    if inside:
        raise ModelError(f"{config.name}: its files lack {len(inside)} weights of the trunk, such as {inside[0]}")
    fuse_gelu(model)
    return model, tokenizer, bool(lacking) or not same


def _heads(model: Any) -> list[str]:
    """The names of the modules behind the trunk; a pooler is drawn with them, and counts as one."""
    trunk = {id(module) for module in model.base_model.modules()}
    behind = [name for name, child in model.named_children() if id(child) not in trunk and any(True for _ in child.parameters())]
    return [*behind, *(["pooler"] if getattr(model.base_model, "pooler", None) is not None else [])]


def _head(model: Any) -> nn.Linear:
    """The last linear map outside of the trunk."""
    trunk = {id(module) for module in model.base_model.modules()}
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in trunk]
    if not heads:
        raise ModelError(f"{type(model).__name__}: no linear head is found in it")
    return heads[-1]


def _replace_head(model: Any, outputs: int) -> nn.Linear:
    head = _head(model)
    place = next(name for name, module in model.named_modules() if module is head)
    parent, _, child = place.rpartition(".")
    new = nn.Linear(head.in_features, outputs, bias=head.bias is not None)
    setattr(model.get_submodule(parent), child, new)
    if hasattr(model, "num_labels"):
        model.num_labels = outputs
    return new


def init_head(head: nn.Linear, seed: int) -> None:
    """Draw a head's weights from N(0, 1/sqrt(D + 1)) (Stiennon et al. 2020, arXiv:2009.01325, appendix); the bias is 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = torch.randn(head.weight.shape, generator=generator) * (head.in_features + 1) ** -0.5
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.zero_()


def read_facts(directory: Path) -> dict[str, Any]:
    """What ``reward.json`` of a saved reward model says.

    Raises:
        DataError: there is none, it is damaged, or a newer konomi wrote it.
    """
    path = directory / FILE
    try:
        facts = parse_json(read_utf8(path))
    except FileNotFoundError:
        raise DataError(
            f"{directory}: no {FILE}, so this is no reward model that konomi trained (a language model gives no scores). Give "
            'the model/ of a `konomi reward` run, or, for a classifier from elsewhere, kind = "classifier"'
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); train the model again") from None
    version = facts.get("version") if isinstance(facts, dict) else None
    if not isinstance(version, int) or version > VERSION:
        raise DataError(f"{path}: format {version!r}, this konomi reads {VERSION}; update konomi")
    return dict(facts)
