"""What a text's score comes from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from konomi.config.section import Positive, Section


class ClassifierReward(Section):
    """Reward = what a text classifier says of one label."""

    kind: Literal["classifier"] = "classifier"
    name: str = "embedded:asari"
    """embedded:asari (Japanese sentiment), or any sequence-classification model: hub name or directory."""
    label: str | int = "positive"
    """The label whose score is the reward, by name or index."""
    use: Literal["logit", "probability", "log-odds"] = "logit"
    """logit: the raw output (embedded:asari: the log-odds). probability: after soft-max, 0 to 1. log-odds: log p/(1-p)."""
    text: Literal["both", "response"] = "both"
    """Score prompt + response, or the response alone."""
    batch_size: Positive = 32
    """Texts a forward pass."""
    max_length: Positive = 512
    """Longer texts are cut, in the classifier's own tokens."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository ships."""


class FunctionReward(Section):
    """Reward = a Python function of one's own."""

    kind: Literal["function"]
    name: str
    """package.module:function or path/to/file.py:function. It is called with the arguments that it names, out of `texts`,
    `prompts`, `responses` and the data set's other columns (lists of equal length), and returns one number a text."""


class ModelReward(Section):
    """Reward = the score of a reward model that `konomi reward` trained, with its own tokenizer."""

    kind: Literal["model"]
    name: str
    """Directory of the model: RUN/model."""
    normalized: bool = True
    """Subtract the mean and divide by the deviation of the initial model's samples, which are saved with the model; a model
    that has none is refused. false: raw scores."""


RewardConfig = Annotated[ClassifierReward | FunctionReward | ModelReward, Field(discriminator="kind")]
