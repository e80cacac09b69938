"""The settings of `konomi judge`, a stand-in for people who rank."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from konomi.config.rewards import ClassifierReward, RewardConfig
from konomi.config.section import Section, Share, StageConfig


class JudgeConfig(Section):
    """How well the stand-in agrees with itself."""

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
