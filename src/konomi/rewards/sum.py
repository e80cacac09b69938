"""Reward = a weighted sum of other rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from konomi.rewards.base import Given, Places, Reward, ask, columns_read, readers


class SumReward:
    """Adds up what other rewards say, each times its weight. Each reads the texts in its own way, with its own tokenizer.

    Where a part gives pairs for a text, so does the sum; the plain numbers of the others then stand at its end.

    Attributes:
        readers: those of all parts.
        last_parts: what the parts said in the last call, by name, without their weights.
    """

    def __init__(self, parts: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        self._parts, self._weights = parts, {name: weights.get(name, 1.0) for name in parts}
        self.name = " ".join(f"{self._weights[name]:+g} {name}" for name in parts)
        self.readers = [reader for part in parts.values() for reader in readers(part)]
        self.reads = columns_read(parts.values())
        self.last_parts: dict[str, list[Given]] = {}

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str],
        responses: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[Given]:
        """Return the sum for each text.

        Raises:
            RunError: a part failed; it is named by its own name.
        """
        self.last_parts = {
            name: ask(part, texts, prompts=prompts, responses=responses, columns=columns) for name, part in self._parts.items()
        }
        weights = list(self._weights.values())
        rows = zip(*self.last_parts.values(), strict=True)
        return [_added(row, weights, len(response)) for row, response in zip(rows, responses, strict=True)]


def _added(row: Sequence[Given], weights: Sequence[float], length: int) -> Given:
    """The sum for one text of ``length`` characters of response.

    >>> _added([1.0, 3.0], [1.0, -0.5], 9), _added([1.0, [(4, 3.0)]], [1.0, -0.5], 9)
    (-0.5, [(9, 1.0), (4, -1.5)])
    """
    if all(isinstance(each, float) for each in row):
        return float(sum(weight * each for weight, each in zip(weights, row, strict=True) if isinstance(each, float)))
    places: Places = []
    for weight, each in zip(weights, row, strict=True):
        pairs = [(length, each)] if isinstance(each, float) else each
        places += [(end, weight * score) for end, score in pairs]
    return places
