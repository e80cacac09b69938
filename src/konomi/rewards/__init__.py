"""Text to score. One protocol (``base.Reward``); what a configuration names is made here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from konomi.config import ClassifierReward, ModelReward, RewardConfig
from konomi.errors import ConfigError
from konomi.rewards.base import Reward, score

__all__ = ["Reward", "build_reward", "score"]

_ASARI = "embedded:asari"


def build_reward(config: RewardConfig, columns: Iterable[str] | None = None, device: Any = "cpu") -> Reward:
    """Make the reward that ``config`` names, ready to be called.

    ``columns``: names of the data set's other columns; given, a function that asks for one that is not there is refused
    now and not at the first batch.

    Raises:
        ConfigError: the function cannot be imported or called; the label does not exist; the embedded name is unknown.
        ModelError: the classifier cannot be found, reached or read.
    """
    if isinstance(config, ModelReward):
        from konomi.rewards.model import RewardModelReward

        return RewardModelReward(config).to(device)
    if not isinstance(config, ClassifierReward):
        from konomi.rewards.function import FunctionReward

        reward = FunctionReward(config)
        if columns is not None:
            reward.check(columns)
        return reward
    if config.name == _ASARI:
        from konomi.rewards.asari import AsariReward

        return AsariReward(config)
    if config.name.startswith("embedded:"):
        raise ConfigError(f"reward.name: {config.name}: no such embedded classifier; known: {_ASARI}")
    from konomi.rewards.classifier import ClassifierModelReward

    return ClassifierModelReward(config).to(device)
