"""Reward = what a text classifier says of one label: the embedded asari, or any sequence-classification model.

Shapes: B texts, L the longest in tokens, C labels.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from konomi.config import ClassifierReward
from konomi.data.sources import hub_problem
from konomi.data.tokens import lengths_to_mask, pad_right
from konomi.errors import ConfigError, ModelError

# asari's probabilities are float32, which near 1 go in steps of 6e-8: further out log-odds would be noise, or infinite
_MAX_LOG_ODDS = 16.0
_NO_ASARI = "embedded:asari: {}; install it with: pip install 'konomi[embedded]'"


class AsariReward:
    """Japanese sentiment by asari 0.2.0 (MIT): TF-IDF and a linear model, about 5 ms a short text on one core.

    ``label``: negative (0) or positive (1). ``use``: logit and log-odds are the same here, log p/(1-p) within +-16;
    probability is p. asari cuts nothing, so ``max_length`` is not used.
    """

    def __init__(self, config: ClassifierReward) -> None:
        self.name = config.name
        self._config = config
        self._session, labels = _asari_session()
        self.label = labels[find_label(config.label, labels, config.name)]
        self._tokenizer = _janome()

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str],
        responses: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float]:
        """Return the score of each text (or response, as configured)."""
        # lower-cased here: the graph does it too, but in its locale, where only ASCII letters have a lower case
        rows = [" ".join(self._tokenizer.tokenize(text)).lower() for text in self._chosen(texts, responses)]
        size = self._config.batch_size
        scores = []
        for start in range(0, len(rows), size):
            (batch,) = self._session.run(["output_probability"], {"text": rows[start : start + size]})
            scores += [self._score(float(probabilities[self.label])) for probabilities in batch]
        return scores

    def _chosen(self, texts: Sequence[str], responses: Sequence[str]) -> Sequence[str]:
        return responses if self._config.text == "response" else texts

    def _score(self, probability: float) -> float:
        if self._config.use == "probability":
            return probability
        if not 0.0 < probability < 1.0:
            return _MAX_LOG_ODDS if probability > 0.5 else -_MAX_LOG_ODDS
        return max(-_MAX_LOG_ODDS, min(_MAX_LOG_ODDS, math.log(probability) - math.log1p(-probability)))


@functools.cache
def _janome() -> Any:
    from janome.tokenizer import Tokenizer

    return Tokenizer(wakati=True)


@functools.cache
def _asari_session() -> tuple[Any, list[str]]:
    """Open asari's graph; return the session and the labels. The package's own code is not imported: see below."""
    spec = importlib.util.find_spec("asari")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(_NO_ASARI.format("the package asari is not installed"))
    try:
        import janome  # noqa: F401
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ModelError(_NO_ASARI.format(error)) from error
    path = Path(spec.submodule_search_locations[0], "data", "pipeline.onnx")
    if not path.is_file():
        raise ModelError(_NO_ASARI.format(f"{path} is missing"))
    model = onnx.load(path)
    labels: list[str] = []
    for node in model.graph.node:
        if node.op_type == "StringNormalizer":
            # the default, en_US.UTF-8, is not installed everywhere, and the session cannot be made without it
            node.attribute.append(onnx.helper.make_attribute("locale", "C"))
        elif node.op_type == "ZipMap":
            labels = [label.decode() for label in onnx.helper.get_node_attr_value(node, "classlabels_strings")]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # two are slower
    options.log_severity_level = 3
    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, labels


class ClassifierModelReward:
    """Any sequence-classification model of transformers, with its own tokenizer. On the CPU until ``to`` is called.

    ``use``: logit, the label's raw output; probability, after soft-max over the labels; log-odds, log p/(1-p), which is
    the logit less the log-sum-exp of the others. (A model for several labels at once has a sigmoid a label instead: its
    logit is its log-odds.) A model with one output, such as a scalar reward model, has label 0 and use = "logit" only.
    """

    def __init__(self, config: ClassifierReward) -> None:
        self.name = config.name
        self._config = config
        self._model, self._tokenizer, self.label = _load(config)
        self._several = self._model.config.problem_type == "multi_label_classification"
        pads = (self._tokenizer.pad_token_id, self._model.config.pad_token_id, self._tokenizer.eos_token_id)
        self._pad_id: int = next((each for each in pads if each is not None), 0)
        self._model.config.pad_token_id = self._pad_id  # decoders ask for it to find each row's last token
        self._max_length = min(config.max_length, _positions(self._model), self._tokenizer.model_max_length)

    def to(self, device: torch.device | str) -> ClassifierModelReward:
        """Move the model; return self."""
        self._model.to(device)
        return self

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str],
        responses: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float]:
        """Return the score of each text (or response, as configured); what is in the same batch does not change it."""
        chosen = list(responses if self._config.text == "response" else texts)
        if not chosen:
            return []
        rows = self._tokenizer(chosen, truncation=True, max_length=self._max_length, verbose=False)["input_ids"]
        rows = [row or [self._pad_id] for row in rows]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self._config.batch_size):
            batch = order[start : start + self._config.batch_size]
            for index, value in zip(batch, self._batch([rows[i] for i in batch]), strict=True):
                scores[index] = value
        return scores

    @torch.no_grad()
    def _batch(self, rows: list[list[int]]) -> list[float]:
        ids_BL, lengths_B = pad_right(rows, self._pad_id)
        mask_BL = lengths_to_mask(lengths_B, ids_BL.shape[1]).long()
        device = self._model.device
        output = self._model(input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device))
        logits_BC: torch.Tensor = output.logits.double().cpu()
        if self._config.use == "probability":
            scores_BC = logits_BC.sigmoid() if self._several else logits_BC.softmax(-1)
        elif self._config.use == "log-odds" and not self._several:
            others_BC = logits_BC.clone()
            others_BC[:, self.label] = -torch.inf
            scores_BC = logits_BC - others_BC.logsumexp(-1, keepdim=True)
        else:
            scores_BC = logits_BC
        values: list[float] = scores_BC[:, self.label].tolist()
        return values


def find_label(label: str | int, labels: Sequence[str], name: str) -> int:
    """Return the index of ``label``, a name (upper and lower case are the same) or an index, in ``labels``."""
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    folded = [each.casefold() for each in labels]
    if isinstance(label, str) and folded.count(label.casefold()) == 1:
        return folded.index(label.casefold())
    known = ", ".join(f"{index} {each!r}" for index, each in enumerate(labels))
    raise ConfigError(f"reward.label: {name} has no label {label!r}; it has: {known}")


def _load(config: ClassifierReward) -> tuple[Any, Any, int]:
    """Return the model (float32, evaluation mode), its tokenizer, and the index of the label."""
    import transformers
    from safetensors import SafetensorError

    name, path = config.name, Path(config.name).expanduser()
    local = path.is_dir()
    problem = None if local else hub_problem()
    where: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if not local:
        where |= {"revision": config.revision, "local_files_only": problem is not None}
    source = str(path) if local else name
    try:
        model_config = transformers.AutoConfig.from_pretrained(source, **where)
        names = [str(model_config.id2label[index]) for index in range(model_config.num_labels)]
        label = find_label(config.label, names, name)
        if len(names) == 1 and config.use != "logit":
            raise ConfigError(f'reward.use = "{config.use}": {name} has one output and no probabilities; use "logit"')
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **where)
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            source, config=model_config, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **where
        )
    except (OSError, ValueError, LookupError, RuntimeError, ImportError, SafetensorError) as error:
        if problem is None:
            raise ModelError(f"reward.name: {name} cannot be used as a classifier: {error}") from error
        raise ModelError(
            f"reward.name: {name}: no such directory; as a model of the hub it is not in the cache and cannot be "
            f"fetched ({problem}). Without a network, use a directory or embedded:asari"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"reward.name: {name} lacks trained weights for {', '.join(missing[:3])} and would score at random; "
            "a model that was fine-tuned for classification is needed"
        )
    return model.eval(), tokenizer, label


def _positions(model: Any) -> int:
    """Return how many tokens the model has places for."""
    places: int | None = getattr(model.config, "max_position_embeddings", None)
    if not places or places < 0:
        return 2**31
    # RoBERTa's places begin behind the padding index
    offset = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    return places if offset is None else places - offset - 1
