"""What a text's score comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from konomi.config.section import Positive, Section, check_address

Name = Annotated[str, Field(pattern=r"^[\w-]{1,60}$")]
"""A name that a user gives to a part or a judge: it becomes part of a metric's name."""
Precision = Literal["auto", "fp32", "bf16"]
"""Of a model that is not trained."""
_NOT_EMBEDDED = ("batch_size", "chat", "max_length", "offload", "precision", "revision", "trust_remote_code")
"""Settings of a classifier that an embedded one has no use for."""


class ClassifierReward(Section):
    """Reward = what a text classifier says of one label."""

    kind: Literal["classifier"] = "classifier"
    name: str = "embedded:asari"
    """embedded:asari (Japanese sentiment), embedded:vader (English sentiment), or any sequence-classification model: hub name or
    directory."""
    label: str | int = "positive"
    """The label whose score is the reward, by name or index."""
    use: Literal["logit", "probability", "log-odds"] = "logit"
    """logit: the raw output (of the embedded ones the log-odds). probability: after soft-max, 0 to 1. log-odds: log p/(1-p)."""
    text: Literal["both", "response"] = "both"
    """Score prompt + response, or the response alone."""
    chat: bool = False
    """Read prompt and response as a conversation, written by the classifier's own chat template: for reward models of the hub
    that were trained so."""
    batch_size: Positive | None = None
    """Texts a forward pass, at most. None: as many as have 4,096 tokens on a processor, 32,768 on a GPU."""
    precision: Precision = "auto"
    """Of its weights and products. auto: bf16 where the device multiplies it in hardware, else fp32. bf16 takes half the memory;
    scores then differ by rounding."""
    offload: bool = False
    """Keep it in the processor's memory while it is not asked: room on a GPU for a policy that needs it; a copy at each use."""
    max_length: Positive = 512
    """Tokens that it reads of a text, in its own. Longer texts are cut, by most tokenizers at the end, where the response is."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository ships."""

    @model_validator(mode="after")
    def _whole(self) -> ClassifierReward:
        if self.chat and self.text == "response":
            raise ValueError('chat = true: not with text = "response": a conversation is read whole')
        changed = [name for name in _NOT_EMBEDDED if getattr(self, name) != type(self).model_fields[name].default]
        if changed and self.name.startswith("embedded:"):
            raise ValueError(
                f"{changed[0]}: no setting of {self.name}, which reads whole plain texts one by one on the processor; remove it"
            )
        return self


class FunctionReward(Section):
    """Reward = a Python function of one's own."""

    kind: Literal["function"]
    name: str
    """package.module:function or path/to/file.py:function. It is called with the arguments that it names, out of `texts`,
    `prompts`, `responses` and the data set's other columns (lists of equal length; of conversations `messages`), and returns one
    number a text, or pairs for one that is scored along its way (see the per-token form)."""


class ModelReward(Section):
    """Reward = the score of a reward model that `konomi reward` trained, with its own tokenizer, or of several."""

    kind: Literal["model"]
    name: str | tuple[str, ...]
    """Directory of the model: RUN/model. A list of several: the reward is the mean of their normalised scores, less `pessimism`
    times their spread."""
    pessimism: Annotated[float, Field(ge=0)] = 0.0
    """How many deviations of the models' scores of a text are taken off their mean, where several are named. Usual 0.5 to 2;
    higher: PPO keeps to texts on which they agree."""
    precision: Precision = "auto"
    """Of its weights and products. auto: bf16 where the device multiplies it in hardware, else fp32. bf16 takes half the memory;
    scores then differ by rounding."""
    offload: bool = False
    """Keep it in the processor's memory while it is not asked: room on a GPU for a policy that needs it; a copy at each use."""
    normalized: bool = True
    """Subtract the mean and divide by the deviation of the initial model's samples, which are saved with the model; a model
    that has none is refused. false: raw scores."""

    @field_validator("name", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list | tuple) or not names or not all(isinstance(each, str) for each in names):
            raise ValueError('give the directory of a reward model, or a list of several: ["RUN", "RUN"]')
        if twice := sorted({each for each in names if names.count(each) > 1}):
            raise ValueError(f"{twice[0]} is named twice; an ensemble needs different models")
        return given

    @model_validator(mode="after")
    def _of_several(self) -> ModelReward:
        if self.pessimism and len(self.names) == 1:
            raise ValueError(f"pessimism = {self.pessimism:g}: one model has no spread; name several, or remove it")
        if not self.normalized and len(self.names) > 1:
            raise ValueError("normalized = false: the raw scores of several models have no common scale; remove it")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Directory of each model."""
        return (self.name,) if isinstance(self.name, str) else self.name


class HttpReward(Section):
    """Reward = what a service answers over HTTP."""

    kind: Literal["http"]
    url: str
    """Where the texts are posted to as JSON: http://... or https://..., without a user, password or query in it."""
    token_env: str | None = None
    """Name of an environment variable that holds a token. It is sent as `Authorization: Bearer`, and written nowhere."""
    batch_size: Positive = 64
    """Texts a request."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that a request may take, from the look-up of its host to the last byte of the answer."""
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    """Further tries when the service cannot be reached, takes too long, or answers 429 or 5xx. Any other error stops at once."""
    backoff: Annotated[float, Field(ge=0)] = 1.0
    """Seconds before the first of them; doubled before each other, up to 30."""

    @model_validator(mode="after")
    def _address(self) -> HttpReward:
        check_address(self.url)
        return self


_Single = ClassifierReward | FunctionReward | ModelReward | HttpReward
"""All kinds but the sum of them."""


class SumReward(Section):
    """Reward = a weighted sum of other rewards."""

    kind: Literal["sum"]
    parts: dict[Name, Annotated[_Single, Field(discriminator="kind")]]
    """The rewards to add up: one table [reward.parts.NAME] each, of any other kind, with all settings of that kind."""
    weights: dict[Name, float] = Field({})
    """Factor of each part, of its raw score; 1.0 if it is left out. Negative: less of it is better."""

    @model_validator(mode="before")
    @classmethod
    def _no_sum_in_a_sum(cls, data: Any) -> Any:
        parts = data.get("parts") if isinstance(data, Mapping) else None
        for name, part in parts.items() if isinstance(parts, Mapping) else ():
            if isinstance(part, Mapping) and part.get("kind") == "sum":
                raise ValueError(f"parts.{name}: a sum cannot be a part of a sum; give its parts here, with their weights")
        return data

    @model_validator(mode="after")
    def _named(self) -> SumReward:
        if not self.parts:
            raise ValueError("parts: none is given; write at least one table [reward.parts.NAME]")
        if unknown := sorted(set(self.weights) - set(self.parts)):
            raise ValueError(f"weights: no part is named {', '.join(unknown)}; the parts are: {', '.join(self.parts)}")
        return self


RewardConfig = Annotated[_Single | SumReward, Field(discriminator="kind")]
