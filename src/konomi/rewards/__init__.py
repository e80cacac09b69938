"""Rewards give texts scores. Builds the reward that a configuration names."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from konomi.config import ClassifierReward, FunctionReward, HttpReward, ModelReward, RewardConfig, Section, SumReward, build
from konomi.errors import ConfigError, ModelError
from konomi.files import model_path
from konomi.rewards.base import Reward, WeightedSum, score

__all__ = ["Reward", "as_reward", "build_judges", "build_reward", "in_precision", "reward_config", "score"]

REWARD_FILE = "reward.json"
"""In the directory of a reward model that `konomi reward` wrote."""


def build_reward(
    config: RewardConfig, columns: Iterable[str] | None = None, device: Any = "cpu", where: str = "reward"
) -> Reward:
    """Make the reward that ``config`` names, ready to be called. A service is asked for the score of one text.

    ``columns``: names of the data set's other columns, or a row of them; given, a function that needs another is refused now and
    not at the first batch. ``where``: the table that ``config`` is read from, for messages.

    Raises:
        ConfigError: the function cannot be imported or called; the label does not exist; the embedded name is unknown; the
            environment variable of a token is not set.
        ModelError: the classifier cannot be found, reached or read; the service does not answer.
    """
    if isinstance(config, SumReward):
        parts = {name: build_reward(part, columns, device, f"{where}.parts.{name}") for name, part in config.parts.items()}
        return WeightedSum(parts, config.weights)
    try:
        return _build(config, columns, device)
    except (ConfigError, ModelError) as error:
        if where == "reward":
            raise
        text = str(error)  # the table that was read, instead of ``reward``
        named = f"{where}.{text.removeprefix('reward.')}" if text.startswith("reward.") else f"{where}: {text}"
        raise type(error)(named) from error.__cause__


def reward_config(given: Any) -> RewardConfig:
    """Return the settings of a job file that stand for a reward.

    Args:
        given: settings, as a model or a mapping; ``"file.py:function"``; ``"package.module:function"``; ``"http://..."``;
            ``"embedded:..."``; a directory that ``konomi reward`` wrote; another classifier's name; or a Python function.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(given, str | Path):
        name = str(given)
        if name.startswith(("http://", "https://")):
            given = {"kind": "http", "url": name}
        elif (model_path(name, ConfigError) / REWARD_FILE).is_file():
            given = {"kind": "model", "name": name}
        elif ":" in name and not name.startswith("embedded:"):
            given = {"kind": "function", "name": name}
        else:
            given = {"kind": "classifier", "name": name}
    elif callable(given):
        given = {"kind": "function", "name": _name_of(given)}
    if isinstance(given, Section):
        given = given.model_dump()
    if not isinstance(given, Mapping):
        raise ConfigError(f"reward: {given!r}; give a function, a name or the settings of [reward]")
    return build(_Given, {"reward": given}, where="reward").reward


def in_precision(config: RewardConfig, precision: str) -> RewardConfig:
    """The settings of a reward, with ``precision`` for every model whose own is left to the device; embedded ones have none."""
    if isinstance(config, SumReward):
        parts = {name: in_precision(part, precision) for name, part in config.parts.items()}
        return config.model_copy(update={"parts": parts})
    embedded = isinstance(config, ClassifierReward) and config.name.startswith("embedded:")
    if isinstance(config, FunctionReward | HttpReward) or embedded or config.precision != "auto":
        return config
    return config.model_copy(update={"precision": precision})


class _Given(Section):
    reward: RewardConfig


def as_reward(given: Any, columns: Iterable[str] | None = None, device: Any = "cpu") -> Reward:
    """Return ``given`` as a reward: a reward as it is, a function called with the arguments that it names, and of anything else
    the reward of its :func:`reward_config`."""
    if isinstance(given, Reward):
        return given
    if callable(given):
        return _function(FunctionReward(kind="function", name=_name_of(given)), columns, given)
    return build_reward(reward_config(given), columns, device)


def _name_of(function: Any) -> str:
    """The name of a Python function in a job file; a function that was typed into a session cannot be found again by it."""
    name = getattr(function, "name", None) or getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", "python")
    file = getattr(sys.modules.get(module), "__file__", None) if module == "__main__" else None
    return f"{file or module}:{name}"


def build_judges(
    configs: Mapping[str, RewardConfig], columns: Iterable[str] | None = None, device: Any = "cpu"
) -> dict[str, Reward]:
    """Make the judges of ``[judges.NAME]`` as :func:`build_reward` does."""
    return {name: build_reward(config, columns, device, f"judges.{name}") for name, config in configs.items()}


def _function(config: FunctionReward, columns: Iterable[str] | None, function: Any = None) -> Reward:
    from konomi.rewards.function import FunctionReward as Function

    reward = Function(config, function)
    if columns is not None:
        reward.check(columns)
    return reward


def _build(config: RewardConfig, columns: Iterable[str] | None, device: Any) -> Reward:
    assert not isinstance(config, SumReward)
    if isinstance(config, FunctionReward):
        return _function(config, columns)
    if isinstance(config, HttpReward):
        from konomi.rewards.http import HttpReward as Service

        service = Service(config)
        service.probe(columns or ())
        return service
    if isinstance(config, ModelReward):
        from konomi.rewards.model import RewardModelEnsemble, RewardModelReward

        _check_distinct(config.names)
        members = [RewardModelReward(config, name, device) for name in config.names]
        return RewardModelEnsemble(members, config.pessimism) if len(members) > 1 else members[0]
    if config.name.startswith("embedded:"):
        from konomi.rewards.sentiment import SentimentReward

        return SentimentReward(config)
    from konomi.rewards.model import ClassifierModelReward

    return ClassifierModelReward(config, device)


def _check_distinct(names: Iterable[str]) -> None:
    """Raise ConfigError where two names are of one directory: RUN and RUN/model."""
    seen: dict[Path, str] = {}
    for name in names:
        place = model_path(name, ModelError).resolve()
        if place in seen:
            raise ConfigError(f"reward.name: {seen[place]} and {name} are one model; an ensemble needs different ones")
        seen[place] = name
