"""The settings of `konomi sft`: which texts a language model goes on learning from, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from konomi.config.model import TrainedModel
from konomi.config.section import Positive, SavedConfig, Section, check_held_out, check_multiple


class SFTData(Section):
    """The texts to learn from."""

    texts: str
    """A .jsonl, .csv, .parquet or .txt file (.txt: one text a line), a hub data set's name, or an embedded list."""
    kind: Literal["auto", "text", "prompt-completion", "messages"] = "auto"
    """What a row is. text: one text. prompt-completion: a prompt and what should follow it, each as it is: a space between them
    has to be in one of the two. messages: a conversation, a list of {"role", "content"}, written with the tokenizer's chat
    template. auto: told by the columns."""
    text_column: str = "text"
    """Column of the text. The columns that are not named here are passed over."""
    prompt_column: str = "prompt"
    """Column of the prompt."""
    completion_column: str = "completion"
    """Column of what should follow the prompt."""
    messages_column: str = "messages"
    """Column of the conversation."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set, for example refs/convert/parquet."""
    held_out: float = 0.1
    """Share of the rows that training never sees, above 0 and below 1: the evaluation uses them. Chosen by the hash of the text,
    of the prompt, or of the conversation up to the first answer, so that rows with the same prompt are on the same side."""
    limit: Positive | None = None
    """Read no more than this many rows."""

    @model_validator(mode="after")
    def _range(self) -> SFTData:
        check_held_out(self.held_out, "the best model is chosen on texts that training never sees")
        return self


class SFTConfig(Section):
    """Supervised fine-tuning: the next token's cross-entropy, as in pre-training, on texts of one's own."""

    epochs: Positive = 3
    """Passes over the texts. Usual 1 to 5; the evaluation says when it is too many."""
    batch_size: Positive = 16
    """Rows an optimiser step. A multiple of micro_batch_size. Usual 8 to 128."""
    micro_batch_size: Positive = 4
    """Rows in one forward pass: bounds memory, changes no result beyond float error. Divides batch_size."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    """Highest learning rate. Usual 1e-5 (large models) to 1e-4 (small ones)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What follows the warm-up. linear, cosine: the learning rate falls to 0 over the run."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the optimiser steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay (AdamW); none of biases and norms."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Tokens a row, special tokens included. A longer text is cut, and then has no end of text; a prompt that leaves no room for
    its completion is refused."""
    loss: Literal["auto", "completion", "all"] = "auto"
    """Which tokens are learned. completion: what follows the prompt, or what the assistant says, with the end of text. all: every
    token but the first. auto: completion, and all for plain texts."""
    packing: bool = False
    """Lay several texts end to end in one row of max_length tokens; none sees another. Faster where texts are short and differ in
    length. A row then counts as one in batch_size."""
    evaluate_every: Positive | None = None
    """Optimiser steps between evaluations. None: after each epoch. There is always one before the first and one after
    the last step."""
    patience: Annotated[int, Field(ge=0)] = 3
    """Evaluations in a row without a lower loss after which training ends early. 0: it never does."""

    @model_validator(mode="after")
    def _divisions(self) -> SFTConfig:
        check_multiple(self, "batch_size", "micro_batch_size")
        return self


class SFTJob(TrainedModel):
    """A whole `konomi sft` file."""

    data: SFTData
    sft: SFTConfig = SFTConfig()
    run: SavedConfig = SavedConfig()
