"""The settings of `konomi dpo`: a language model that learns from comparisons without a reward model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from konomi.config.model import TrainedModel
from konomi.config.ppo import SamplingConfig
from konomi.config.results import CompareConfig
from konomi.config.rewards import Name, RewardConfig
from konomi.config.section import Positive, SavedConfig, Section, check_multiple


class DPOData(Section):
    """The comparisons to learn from: the files that `konomi reward` reads."""

    file: str
    """Rankings, pairs or scores, as texts or conversations: a .jsonl, .csv or .parquet file, or a hub data set's name. Of scores,
    the response with the higher one is preferred."""
    evaluation: str | None = None
    """A file of the same kind to evaluate on. Not set: the prompts that held_out takes."""
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the prompts that is kept for evaluation, chosen by the hash of the prompt: never by pair."""
    chat: bool = False
    """A prompt that is a text is a user's message, and the response the answer: the model's chat template writes them. A
    conversation is always written so."""
    prompts: str | None = None
    """Prompts of the before/after: a file, a hub data set's name or an embedded list with a column `text`, of which it asks those
    that held_out takes. Not set: the held-out prompts of the comparisons."""
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

    @model_validator(mode="after")
    def _one_evaluation(self) -> DPOData:
        if self.evaluation and self.evaluation_split:
            raise ValueError("evaluation and evaluation_split: set one of them")
        return self


class DPOConfig(Section):
    """Direct preference optimisation (Rafailov et al. 2023): better responses become likelier than under the reference."""

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: the loss of a reward model whose score is beta times the log-ratio to the reference. ipo: draws the gap of two
    log-ratios to 1/(2 beta), and no further: for labels that leave no doubt, where sigmoid would go on for ever."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Holds the model to its reference, in score units per nat. Higher: nearer to it. Usual 0.05 to 0.5; for sigmoid with
    log-ratios per token 1 to 10."""
    per_token: Literal["auto", "yes", "no"] = "auto"
    """Whether a log-ratio is divided by the tokens of its response, so that long responses do not weigh more. auto: yes for ipo,
    whose authors did, no for sigmoid."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the labels that are taken to be wrong (conservative DPO). Higher: more cautious. Usual 0 to 0.2. Where several
    people judged the same two responses, the target is the share of their votes in any case."""
    end_of_text: bool = True
    """The end of text belongs to each response, so that the model learns to stop. false: for responses that were cut at a
    length, as `konomi sample` cuts them with rollout.stop = "length"."""
    epochs: Positive = 1
    """Passes over the data. Usual 1 to 3."""
    batch_size: Positive = 16
    """Prompts an optimiser step; all responses to a prompt are in one. A multiple of micro_batch_size. Usual 8 to 64."""
    micro_batch_size: Positive = 4
    """Prompts in one forward pass: bounds memory, changes no result beyond float error. Divides batch_size."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    """Highest learning rate. Usual 5e-7 (large models) to 1e-5 (small ones), ten times that with adapters. Higher: further from
    the reference, and sooner unstable."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What follows the warm-up. linear, cosine: the learning rate falls to 0 over the run."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the optimiser steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay (AdamW); none of biases and norms."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    evaluations: Positive = 2
    """Evaluations an epoch. The model with the lowest evaluation loss is kept."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Evaluations in a row without a lower loss after which training ends early. 0: it never does."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Tokens of a prompt with its response. A longer response is cut, and then has no end of text; a prompt that leaves no room
    for one is refused."""

    @model_validator(mode="after")
    def _divisions(self) -> DPOConfig:
        check_multiple(self, "batch_size", "micro_batch_size")
        return self


class DPOJob(TrainedModel):
    """A whole `konomi dpo` file."""

    data: DPOData
    dpo: DPOConfig = DPOConfig()
    reward: RewardConfig | None = None
    """What the before/after scores responses with; nothing is trained against it. Not set: there is no before/after."""
    judges: dict[Name, RewardConfig] = Field({})
    """Further scores, shown beside it: one table [judges.NAME] each."""
    rollout: SamplingConfig = SamplingConfig()
    compare: CompareConfig = CompareConfig()
    run: SavedConfig = SavedConfig()

    @model_validator(mode="after")
    def _measured(self) -> DPOJob:
        if self.reward is None and (self.judges or self.data.prompts):
            what = "judges" if self.judges else "data.prompts"
            raise ValueError(f"{what} without reward: there is no before/after; name what it scores with under [reward]")
        return self
