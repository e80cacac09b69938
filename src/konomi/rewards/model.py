"""Models of transformers as rewards: any sequence classifier, and reward models of `konomi reward`.

Shapes: B texts, L the longest in tokens, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from konomi.config import ClassifierReward, ModelReward
from konomi.data.messages import Answered
from konomi.data.sources import hub_problem
from konomi.data.tokens import length_batches, lengths_to_mask, pad_right, read_tokenizer
from konomi.engine.device import choose_precision, score_tokens
from konomi.errors import FAULTS, ConfigError, ModelError
from konomi.files import model_path
from konomi.models.deterministic import fuse_gelu
from konomi.models.find import refuse_adapter
from konomi.models.half import hold_in_bf16
from konomi.models.reader import PART, Reader
from konomi.models.reward_files import open_reward_model
from konomi.ops import conservative_scores
from konomi.rewards.base import Columns, Texts, TextScore, answered, ask, find_label, total

_PADDING = 0.1
"""The share of a batch that may be padding, unless the batch is small."""


class RewardModelReward:
    """The score of a reward model, on the scale of the initial model's samples.

    Raises:
        ConfigError: the model has no scale and the settings ask for one; it is a classifier.
        ModelError, DataError: it cannot be read.
    """

    divisible = True

    def __init__(self, config: ModelReward, name: str, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.reads: set[str] = set()
        self._config = config
        self._model = open_reward_model(name)
        self.readers = [self._model.reader]
        if self._model.model.config.num_labels != 1:
            raise ConfigError(f'reward.name: {name} gives labels, not a score; use kind = "classifier" with it')
        if config.normalized and self._model.normalisation is None:
            or_raw = "" if len(config.names) > 1 else ", or set reward.normalized = false"
            raise ConfigError(
                f"reward.name: {name} has no scale: the samples of the initial model were not scored when it was trained, "
                f"so that the KL coefficient has no meaning. Train it with normalize.samples{or_raw}"
            )
        self._asked = _Place(self._model.model, config, device)

    def __call__(self, texts: Texts, *, prompts: Texts, responses: Texts, columns: Columns) -> list[float]:
        """Return the score of each text; texts to the same prompt go through the model together."""
        pairs = answered(prompts, responses, columns)
        by_prompt: dict[Answered, dict[str, Answered]] = {}
        for each in pairs:
            by_prompt.setdefault(replace(each, response=""), {}).setdefault(each.response, each)
        with self._asked():
            numbers = self._model.predict([list(each.values()) for each in by_prompt.values()])
        flat = torch.cat(numbers)[:, 0].tolist() if numbers else []
        unique = (each for group in by_prompt.values() for each in group.values())
        scores = dict(zip(unique, flat, strict=True))
        scale = self._model.normalised if self._config.normalized else float
        return [scale(scores[each]) for each in pairs]


class RewardModelEnsemble:
    """Several reward models as one: the mean of their scores, less ``pessimism`` times their spread; see
    :func:`konomi.ops.conservative_scores`. ``last_parts`` has the spread of each text."""

    composite = True

    def __init__(self, members: Sequence[RewardModelReward], pessimism: float) -> None:
        self._members, self._pessimism = members, pessimism
        less = f", less {pessimism:g} of their spread" if pessimism else ""
        self.name = f"mean of {', '.join(each.name for each in members)}{less}"
        self.readers = [reader for each in members for reader in each.readers]
        self.reads: set[str] = set()
        self.last_parts: dict[str, list[TextScore]] = {}

    def __call__(self, texts: Texts, *, prompts: Texts, responses: Texts, columns: Columns) -> list[float]:
        """Return the score of each text. Raises RunError, with the member's own name, where one failed."""
        if not texts:
            self.last_parts = {"spread": []}
            return []
        asked = [ask(each, texts, prompts=prompts, responses=responses, columns=columns) for each in self._members]
        scores_KN = torch.tensor([list(map(total, scores)) for scores in asked], dtype=torch.float64)
        scores_N, spread_N = conservative_scores(scores_KN, self._pessimism)
        self.last_parts = {"spread": spread_N.tolist()}
        numbers: list[float] = scores_N.tolist()
        return numbers


class ClassifierModelReward:
    """Any sequence-classification model of transformers, with its own tokenizer.

    ``use``: logit, the label's raw output; probability, after soft-max over the labels; log-odds, log p/(1-p), which is
    the logit less the log-sum-exp of the others. (A model for several labels at once has a sigmoid a label instead: its
    logit is its log-odds.) A model with one output, such as a scalar reward model, has label 0 and use = "logit" only.
    """

    divisible = True

    def __init__(self, config: ClassifierReward, device: torch.device | str = "cpu") -> None:
        self.name = config.name
        self.reads: set[str] = set()
        self._config = config
        self._model, tokenizer, self.label = _load(config)
        self._several = self._model.config.problem_type == "multi_label_classification"
        reads_prompt = config.text == "both"
        self.reader = Reader(tokenizer, self._model, config.max_length, config.name, reads_prompt, config.chat)
        self.readers = [self.reader]
        self._model.config.get_text_config().pad_token_id = self.reader.pad_id  # decoders find each row's last token by it
        self._asked = _Place(self._model, config, device)

    def __call__(self, texts: Texts, *, prompts: Texts, responses: Texts, columns: Columns) -> list[float]:
        """Return the score of each text (or response, as configured). What is in the same batch changes it by float error alone,
        which in bf16 can be seen: products of another size may round otherwise.

        On a GPU nothing waits for a batch: the next texts are tokenised meanwhile, and all numbers are read at the end.
        """
        chosen = list(responses if self._config.text == "response" else texts)
        if self._config.chat:
            chosen = list(map(self.reader.written, answered(prompts, responses, columns)))
        with self._asked():
            read, logits = self._read(sorted(dict.fromkeys(chosen), key=len))
            scores = dict(zip(read, self._scores(logits), strict=True))
        return [scores[text] for text in chosen]

    def _read(self, texts: list[str]) -> tuple[list[str], list[torch.Tensor]]:
        """The texts in the order in which they were read, and the logits [b, C] of their batches, not waited for."""
        read: list[str] = []
        logits: list[torch.Tensor] = []
        for start in range(0, len(texts), PART):
            part = texts[start : start + PART]
            rows = self.reader.encode(part)
            for batch in batches([len(row) for row in rows], self._config.batch_size, score_tokens(self._model.device)):
                read += [part[i] for i in batch]
                logits.append(self._logits([rows[i] for i in batch]))
        return read, logits

    @torch.inference_mode()
    def _logits(self, rows: list[list[int]]) -> torch.Tensor:
        ids_BL, lengths_B = pad_right(rows, self.reader.pad_id)
        mask_BL = lengths_to_mask(lengths_B, ids_BL.shape[1]).long()
        device = self._model.device
        logits_BC: torch.Tensor = self._model(input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device)).logits
        return logits_BC

    def _scores(self, logits: list[torch.Tensor]) -> list[float]:
        """The label's score of each text, of the logits [b, C] of batches."""
        if not logits:
            return []
        logits_BC = torch.cat(logits).cpu().double()
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


def batches(lengths: list[int], size: int | None, limits: tuple[int, int]) -> list[list[int]]:
    """Divide rows of ``lengths`` tokens, longest first, into batches of at most ``size`` rows with little padding.

    ``limits``: see :func:`konomi.engine.device.score_tokens`.

    >>> batches([300, 2, 290, 3, 280], None, (1000, 100))
    [[0, 2, 4], [3, 1]]
    """
    most, free = limits

    def fits(batch: list[int]) -> bool:
        padded = lengths[batch[0]] * len(batch)
        waste = padded - sum(lengths[i] for i in batch)
        return len(batch) <= (size or most) and padded <= most and (padded <= free or waste <= _PADDING * padded)

    return list(length_batches(lengths, fits, longest_first=True))


class _Place:
    """Moves a frozen model to its device in the wanted precision; with ``offload`` only while it is in use."""

    def __init__(self, model: Any, config: ClassifierReward | ModelReward, device: torch.device | str) -> None:
        self.model, self.device, self.offload = model, torch.device(device), config.offload
        if choose_precision(config.precision, self.device) == "bf16":
            hold_in_bf16(model)
        if not self.offload:
            model.to(self.device)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The context in which the model is called."""
        if self.offload:
            self.model.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                self.model.to("cpu")


def _load(config: ClassifierReward) -> tuple[Any, Any, int]:
    """Return the model (float32, evaluation mode), its tokenizer, and the index of the label."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    name, path = config.name, model_path(config.name, ModelError)
    local = path.is_dir()
    problem = None if local else hub_problem()
    where: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if not local:
        where |= {"revision": config.revision, "local_files_only": problem is not None}
    source = str(path) if local else name
    try:
        refuse_adapter(source, f"reward.name: {name}", revision=where.get("revision"), local_files_only=problem is not None)
        model_config = transformers.AutoConfig.from_pretrained(source, **where)
        names = [str(model_config.id2label[index]) for index in range(model_config.num_labels)]
        label = find_label(config.label, names, name)
        if len(names) == 1 and config.use != "logit":
            raise ConfigError(f'reward.use = "{config.use}": {name} has one output and no probabilities; use "logit"')
        tokenizer = read_tokenizer(source, **where)
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            source, config=model_config, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **where
        )
    except (*FAULTS, MemoryError, SafetensorError, StrictDataclassError) as error:
        if problem is None:
            raise ModelError(f"reward.name: {name} cannot be used as a classifier: {error}") from error
        raise ModelError(
            f"reward.name: {name}: no such directory; as a model of the hub it is not in the cache and cannot be "
            f"fetched ({problem}). Without a network, use a directory, embedded:asari or embedded:vader"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"reward.name: {name} lacks trained weights for {', '.join(missing[:3])} and would score at random; "
            "a model that was fine-tuned for classification is needed"
        )
    fuse_gelu(model)
    return model.eval(), tokenizer, label
