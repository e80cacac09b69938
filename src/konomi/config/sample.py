"""The settings of `konomi sample`: who writes candidates, to which prompts, how many."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from konomi.config.ppo import DataConfig, ModelConfig, RolloutConfig
from konomi.config.rewards import Name
from konomi.config.section import Positive, Section, StageConfig


class SampleConfig(Section):
    """How many candidates are drawn, and for which prompts."""

    candidates: Annotated[int, Field(ge=2)] = 4
    """Responses to each prompt that are ranked against each other (K). K of them give K(K-1)/2 comparisons. Several models share
    them evenly."""
    rounds: Positive = 1
    """How many such sets each prompt gets. Each is a task of its own. More: more comparisons of the same prompts."""
    attempts: Annotated[int, Field(ge=0)] = 3
    """How often a response that is the same as another of its task (white space around aside) is drawn again. After that the task
    goes with fewer candidates, and with fewer than two it is dropped."""
    batch_size: Positive = 64
    """Responses drawn together. Changes no result beyond float error."""
    prompts: Literal["train", "held_out", "all"] = "all"
    """The side of the prompts by data.held_out. all: `konomi reward` holds out by the same hash, so that with the same share it
    learns from no prompt that the before/after of `konomi ppo` asks. train: these are not even ranked; the reward model then
    needs a larger data.held_out."""


def _default_models() -> dict[str, ModelConfig]:
    return {"gemma3-270m-ja": ModelConfig(name="embedded:gemma3-270m-ja")}


class SampleJob(Section):
    """A whole `konomi sample` file."""

    models: Annotated[dict[Name, ModelConfig], Field(min_length=1)] = Field(default_factory=_default_models)
    """The models that write, each under a name of one's own: [models.NAME]. The name is kept with each candidate."""
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    sample: SampleConfig = SampleConfig()
    run: StageConfig = StageConfig()

    @model_validator(mode="after")
    def _sides(self) -> SampleJob:
        if self.data.query_tokens and self.sample.prompts == "all":
            raise ValueError(
                'data.query_tokens with sample.prompts = "all": a prompt that is cut is another text, so that `konomi reward` '
                "would hold out others than `konomi ppo` and learn from those that its before/after asks; set "
                'sample.prompts = "train"'
            )
        return self
