"""Reward = the score of a reward model that `konomi reward` trained, on the scale of the initial model's samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from konomi.config import ModelReward
from konomi.errors import ConfigError
from konomi.models.backbone import open_reward_model


class RewardModelReward:
    """A reward model, with its own tokenizer. On the CPU until ``to`` is called.

    Raises:
        ConfigError: the model has no scale and the settings ask for one; it is a classifier.
        ModelError, DataError: it cannot be read.
    """

    def __init__(self, config: ModelReward) -> None:
        self.name = config.name
        self.reads: set[str] = set()
        self._config = config
        self._model = open_reward_model(config.name)
        self.readers = [self._model.reader]
        if self._model.model.config.num_labels != 1:
            raise ConfigError(f'reward.name: {config.name} gives labels, not a score; use kind = "classifier" with it')
        if config.normalized and self._model.normalisation is None:
            raise ConfigError(
                f"reward.name: {config.name} has no scale: the samples of the initial model were not scored when it was trained, "
                "so that the KL coefficient has no meaning. Train it with normalize.samples, or set reward.normalized = false"
            )

    def to(self, device: torch.device | str) -> RewardModelReward:
        """Move the model; return self."""
        self._model.to(device)
        return self

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str],
        responses: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float]:
        """Return the score of each text; texts to the same prompt go through the model together."""
        together: dict[str, dict[str, None]] = {}
        for prompt, text in zip(prompts, texts, strict=True):
            together.setdefault(prompt, {})[text] = None
        numbers = self._model.predict([list(each) for each in together.values()])
        flat = torch.cat(numbers)[:, 0].tolist() if numbers else []
        unique = [(prompt, text) for prompt, each in together.items() for text in each]
        scores = dict(zip(unique, flat, strict=True))
        scale = self._model.normalised if self._config.normalized else float
        return [scale(scores[pair]) for pair in zip(prompts, texts, strict=True)]
