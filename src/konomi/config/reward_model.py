"""The settings of `konomi reward`: a model that gives texts scores or labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from konomi.config.model import TrainedModel
from konomi.config.section import Positive, SavedConfig, Section, check_multiple


class RewardData(Section):
    """What the reward model learns from."""

    file: str
    """Task preference: rankings or pairs. Task score: scores. Task classification: labelled texts, as .jsonl, .csv or
    .parquet, or a hub data set's name or a directory with a copy of one."""
    evaluation: str | None = None
    """A file of the same kind to evaluate on. Not set: the prompts (texts) that held_out takes."""
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the prompts that is kept for evaluation, chosen by the hash of the prompt: never by pair."""
    truth: str | None = None
    """Scores of the same responses by a judge that is certain. The model is held against them too."""
    chat: bool = False
    """A prompt that is a text is a user's message, written with its response by the model's chat template. Conversations are
    written so in any case where the model has a template, else as plain text."""
    text: str = "text"
    """Column that holds the text. Task classification."""
    label: str = "label"
    """Column that holds the label, a name or a number. Task classification."""
    labels: tuple[str, ...] = ()
    """Names of the labels 0, 1, 2 and so on. Not set: what the data set says, else the labels found, sorted. Task
    classification."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    split: str = "train"
    """Split of a hub data set to train on."""
    evaluation_split: str | None = None
    """Split of the same hub data set to evaluate on. Not set: see held_out."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set, for example refs/convert/parquet."""
    limit: Positive | None = None
    """Read no more than this many rows."""


class RewardTraining(Section):
    """How the reward model is trained."""

    task: Literal["preference", "score", "classification"] = "preference"
    """preference: a scalar from rankings and pairs. score: a scalar from numbers. classification: a label."""
    epochs: Positive = 1
    """Passes over the data. A preference model is trained for 1: it is soon too sure of the pairs it has seen."""
    batch_size: Positive = 16
    """Prompts (classification, score: texts) an optimiser step; all responses to a prompt are in one."""
    micro_batch_size: Positive | None = None
    """Prompts (texts) in one forward pass: bounds memory. Divides batch_size. Not set: all."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """At its highest. Usual 5e-6 to 5e-5."""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Of the new head. Not set: as learning_rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls to 0 over the run; constant: it stays."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the steps in which the learning rate rises to its highest."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW, not of biases and norms. Usual 0 to 0.1."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    evaluations: Positive = 1
    """Evaluations an epoch. The model with the lowest evaluation loss is kept."""
    patience: Positive | None = None
    """Stop after so many evaluations without a lower loss. Not set: all epochs are run."""
    strength_margin: Annotated[float, Field(ge=0)] = 0.0
    """By how many score units a response that is said to be much better has to be ahead before the loss is content (the margin of
    Llama 2); two thirds of it for better, a third for slightly better. For comparisons with a strength. Usual 0 to 3; higher:
    strong preferences are learnt more, weak ones less."""
    lm_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight in the loss of the negative log-likelihood, nats a token, of the best response to each prompt under the language
    model that the reward model is made from: the trunk keeps what it knows of language. Usual 0.001 to 0.1; higher: it keeps more
    of it, and follows the comparisons less. Task preference, on a language model."""
    max_length: Positive = 512
    """Longer texts are cut, in tokens: a decoder's at the beginning, an encoder's at the end."""

    @model_validator(mode="after")
    def _fits(self) -> RewardTraining:
        if self.lm_weight and self.task != "preference":
            raise ValueError(f'lm_weight is for task = "preference"; with task = "{self.task}" remove it')
        if self.strength_margin and self.task != "preference":
            raise ValueError(f'strength_margin is for task = "preference"; with task = "{self.task}" remove it')
        if self.micro_batch_size:
            check_multiple(self, "batch_size", "micro_batch_size")
        return self


class EnsembleConfig(Section):
    """What gives the score together with the network."""

    text_weight: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the text baseline, which counts characters, in the score; both are standardised first. 0: the network alone. Usual
    0.3 to 0.6; higher: leans more on which characters occur, less on what the network reads. Task preference."""


class NormalizeConfig(Section):
    """The scale of the scores: that of what the initial model writes."""

    samples: str | None = None
    """Candidates that the initial model wrote, from `konomi sample`. Their mean score becomes 0, their deviation 1. Not set:
    the model is saved without a scale, and PPO refuses it unless told otherwise."""
    model: str | None = None
    """Use the candidates of this model only, where several wrote."""
    count: Annotated[int, Field(ge=2)] = 1024
    """Candidates at most, chosen by the seed, all those of a task together."""


class RewardJob(TrainedModel):
    """A whole `konomi reward` file."""

    data: RewardData
    train: RewardTraining = RewardTraining()
    ensemble: EnsembleConfig = EnsembleConfig()
    normalize: NormalizeConfig = NormalizeConfig()
    run: SavedConfig = SavedConfig()

    @model_validator(mode="after")
    def _fits(self) -> RewardJob:
        if self.model.precision == "fp64":
            raise ValueError('model.precision = "fp64": a reward model is trained in "fp32" or "bf16"; set one of them')
        if self.train.task == "classification" and (self.normalize.samples or self.data.truth):
            raise ValueError('normalize.samples and data.truth are for scores; task = "classification" has labels')
        if self.train.task != "preference" and self.ensemble.text_weight:
            raise ValueError(f'ensemble.text_weight is for task = "preference"; with task = "{self.train.task}" remove it')
        if self.train.task == "score" and self.data.truth:
            raise ValueError('data.truth is for task = "preference"; with task = "score" the scores are the truth')
        if self.train.task != "classification":
            for key in ("text", "label", "labels"):
                if getattr(self.data, key) != RewardData.model_fields[key].default:
                    raise ValueError(f'data.{key} is for task = "classification"; remove it')
        elif self.data.chat:
            raise ValueError('data.chat is for prompts with responses; task = "classification" has texts')
        if self.data.evaluation and self.data.evaluation_split:
            raise ValueError("data.evaluation and data.evaluation_split: set one of them")
        return self
