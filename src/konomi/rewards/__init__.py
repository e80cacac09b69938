"""Text to score. One protocol (``base.Reward``); what a configuration names is made here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from konomi.config import ClassifierReward, FunctionReward, HttpReward, ModelReward, RewardConfig, SumReward
from konomi.errors import ConfigError, ModelError
from konomi.rewards.base import Reward, score

__all__ = ["Reward", "build_judges", "build_reward", "score"]

_ASARI = "embedded:asari"


def build_reward(
    config: RewardConfig, columns: Iterable[str] | None = None, device: Any = "cpu", where: str = "reward"
) -> Reward:
    """Make the reward that ``config`` names, ready to be called.

    ``columns``: names of the data set's other columns, or a row of them; given, a function that asks for one that is not there
    is refused now and not at the first batch. ``where``: the table that ``config`` is read from, for messages. A service is
    asked for the score of one text.

    Raises:
        ConfigError: the function cannot be imported or called; the label does not exist; the embedded name is unknown; the
            environment variable of a token is not set.
        ModelError: the classifier cannot be found, reached or read; the service does not answer.
    """
    if isinstance(config, SumReward):
        from konomi.rewards.sum import SumReward as WeightedSum

        parts = {name: build_reward(part, columns, device, f"{where}.parts.{name}") for name, part in config.parts.items()}
        return WeightedSum(parts, config.weights)
    with _told_of(where):
        return _build(config, columns, device)


def build_judges(
    configs: Mapping[str, RewardConfig], columns: Iterable[str] | None = None, device: Any = "cpu"
) -> dict[str, Reward]:
    """Make the judges of ``[judges.NAME]`` as :func:`build_reward` does."""
    return {name: build_reward(config, columns, device, f"judges.{name}") for name, config in configs.items()}


def _build(config: RewardConfig, columns: Iterable[str] | None, device: Any) -> Reward:
    if isinstance(config, FunctionReward):
        from konomi.rewards.function import FunctionReward as Function

        function = Function(config)
        if columns is not None:
            function.check(columns)
        return function
    if isinstance(config, HttpReward):
        from konomi.rewards.http import HttpReward as Service

        service = Service(config)
        service.probe(columns or ())
        return service
    if isinstance(config, ModelReward):
        from konomi.rewards.model import RewardModelReward

        return RewardModelReward(config).to(device)
    assert isinstance(config, ClassifierReward)
    if config.name == _ASARI:
        from konomi.rewards.asari import AsariReward

        return AsariReward(config)
    if config.name.startswith("embedded:"):
        raise ConfigError(f"reward.name: {config.name}: no such embedded classifier; known: {_ASARI}")
    from konomi.rewards.classifier import ClassifierModelReward

    return ClassifierModelReward(config).to(device)


@contextmanager
def _told_of(where: str) -> Iterator[None]:
    """Messages say ``reward.name``; here they get the name of the table that was really read."""
    try:
        yield
    except (ConfigError, ModelError) as error:
        if where == "reward":
            raise
        text = str(error)
        named = f"{where}.{text.removeprefix('reward.')}" if text.startswith("reward.") else f"{where}: {text}"
        raise type(error)(named) from error.__cause__
