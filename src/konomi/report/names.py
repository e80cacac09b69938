"""Names of what a run works with, as its config.json and run.json have them: model, algorithm, reward, machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_name(config: Mapping[str, Any]) -> str:
    """The model of a run and its revision."""
    model = config.get("model", {})
    return " ".join(str(model[key]) for key in ("name", "revision") if model.get(key))


def algorithm_name(config: Mapping[str, Any]) -> str:
    """What a run of `konomi ppo` learns by, as people write it."""
    return str(config.get("algorithm", {}).get("kind", "ppo")).upper()


def reward_in_words(reward: Mapping[str, Any]) -> str:
    """What a reward is, in a few words."""
    weights = reward.get("weights", {})
    parts = [f"{weights.get(name, 1.0):g} × {name}: {reward_in_words(part)}" for name, part in reward.get("parts", {}).items()]
    detail = parts or [str(reward[key]) for key in ("label", "use", "text") if reward.get(key) is not None]
    detail += [f"pessimism {reward['pessimism']:g}"] if reward.get("pessimism") else []
    return f"{reward.get('kind', '')} {_names(reward) or _address(reward)}".strip() + (
        f" ({', '.join(detail)})" if detail else ""
    )


def machine_line(machine: Mapping[str, Any]) -> str:
    """GPU, processor and system of a run, as its run.json has them.

    >>> machine_line({"gpu": "NVIDIA H100", "cpu": "Xeon", "cpus": 2, "platform": "Linux"})
    'NVIDIA H100, Xeon × 2, Linux'
    """
    processor = f"{machine['cpu']} × {machine.get('cpus', '')}" if "cpu" in machine else ""
    return ", ".join(str(part) for part in (machine.get("gpu"), processor, machine.get("platform")) if part)


def reward_name(reward: Mapping[str, Any]) -> str:
    """What a reward is, in a word or two."""
    name = _names(reward) or _address(reward) or " + ".join(reward.get("parts", {})) or reward.get("kind", "")
    label = reward.get("label")
    return str(name) + ("" if label is None else f" ({label})")


def _names(reward: Mapping[str, Any]) -> str:
    """What a reward is called; of several reward models all names."""
    name = reward.get("name", "")
    return str(name) if isinstance(name, str) else ", ".join(map(str, name))


def _address(reward: Mapping[str, Any]) -> str:
    return str(reward.get("url", "")).partition("?")[0]  # what follows may be a key
