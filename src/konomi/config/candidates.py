"""The settings of `konomi sample`, `pick` and `judge`, and of a pipeline's stages in which people rank or models are compared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from konomi.config.model import ModelConfig
from konomi.config.ppo import DataConfig, SamplingConfig
from konomi.config.results import CompareConfig
from konomi.config.rewards import ClassifierReward, Name, RewardConfig
from konomi.config.section import Positive, Section, Share, StageConfig


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
    rollout: SamplingConfig = SamplingConfig()
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


class PickConfig(Section):
    """Which of many candidates are shown."""

    rankings: str | None = None
    """Rankings or pairs that are there already: their responses are not shown again, and what they tell is not asked again. Not
    set: nothing is ranked yet. In a pipeline with rounds "@STAGE.rankings*" of the stage that ranks what is picked: of all rounds
    before, in the first one none."""
    tasks: Positive = 200
    """Tasks to pick, of all prompts together."""
    candidates: Annotated[int, Field(ge=2, le=9)] = 2
    """Responses of a task. K of them give K(K-1)/2 comparisons; 2 teach most for each comparison."""
    held_out: Share = 0.2
    """As data.held_out of `konomi reward`. Of the prompts that it holds out tasks are drawn at random, so that it is evaluated on
    usual pairs. 1: all tasks are drawn at random."""


class PickJob(Section):
    """A whole `konomi pick` file."""

    candidates: str
    """The file of candidates that are picked from, as `konomi sample` writes it."""
    pick: PickConfig = PickConfig()
    run: StageConfig = StageConfig()


class JudgeConfig(Section):
    """How well the simulated rater agrees with itself."""

    agreement: Annotated[float, Field(gt=0.5, le=1.0)] = 0.75
    """Share of the pairs that two of its rankings of the same candidates order alike: noise of this much is added to the scores.
    People who ranked texts agreed on 0.63 to 0.73 of the pairs. 1: no noise."""
    overlap: Share = 0.2
    """Share of the prompts, by hash, whose tasks are ranked a second time under another name, so that agreement can be
    measured."""


class JudgeJob(Section):
    """A whole `konomi judge` file."""

    candidates: str
    """The file of candidates that are ranked, as `konomi sample` writes it."""
    reward: RewardConfig = ClassifierReward()
    judge: JudgeConfig = JudgeConfig()
    run: StageConfig = StageConfig()


class LabelConfig(Section):
    """Where people rank, and when it is enough."""

    project: str
    """Directory of the labelling project. It is made if it is not there, and it stays when the stage runs again: no answer is
    lost with a run."""
    comparisons: Positive | None = None
    """Go on once people have made so many comparisons: two texts, one person, no tie. Without it: when every task has its
    answers. Either way the owner can close the collection on the page."""
    overlap: Annotated[float, Field(ge=1, le=100)] = 1.0
    """People a task, for a project that is made now; 1.25: every fourth task goes to two."""
    strength: bool = False
    """Raters may say how much better the better of two texts is, for a project that is made now. `train.strength_margin` of
    `konomi reward` uses it."""
    edit: bool = False
    """Raters may make a better text of one, for a project that is made now: an example for `konomi sft`, and a comparison."""
    invite: tuple[str, ...] = ()
    """People for whom an invite link is printed."""
    people: str | None = None
    """A project whose people are let in here too, by the invites that they have. In rounds it is that of the round before."""
    host: str = "127.0.0.1"
    """The address to listen on. Others than this machine's own need allow_network."""
    allow_network: bool = False
    """Let other machines reach the page. It is not encrypted."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port; without it the one of the last time, or a free one."""
    names: tuple[str, ...] = ()
    """Further host names that the page is opened by."""
    public_url: str | None = None
    """Where people open the page when a proxy with TLS stands before it: https://HOST."""


class LabelJob(Section):
    """A stage `label` of a pipeline file."""

    candidates: str
    """The file of candidates that are ranked, as `konomi sample` writes it."""
    label: LabelConfig
    run: StageConfig = StageConfig()


class CompareJob(Section):
    """A stage `compare` of a pipeline file: two models answer held-out prompts."""

    model: ModelConfig = ModelConfig()
    before: str
    """The model that it is held against: a hub name, a directory, a run."""
    initial: str | None = None
    """The model from which the KL of both is measured. Not set: before."""
    data: DataConfig = DataConfig()
    rollout: SamplingConfig = SamplingConfig()
    reward: RewardConfig = ClassifierReward()
    judges: dict[Name, RewardConfig] = Field(default_factory=dict)
    """Rewards that nothing was trained against, each under a name of one's own."""
    compare: CompareConfig = CompareConfig()
    run: StageConfig = StageConfig()
