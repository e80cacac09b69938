"""Reward = a weighted sum of other rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from konomi.rewards.base import Columns, Reward, Texts, TextScore, TokenRewards, ask, columns_read, readers


class SumReward:
    """Adds up other rewards, each times its weight. Each part reads the texts in its own way, with its own tokenizer.

    Where a part gives pairs for a text, so does the sum; the plain numbers of the others then stand at its end.
    """

    def __init__(self, parts: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        self._parts, self._weights = parts, {name: weights.get(name, 1.0) for name in parts}
        self.name = " ".join(f"{self._weights[name]:+g} {name}" for name in parts)
        self.readers = readers(*parts.values())
        self.reads = columns_read(parts.values())
        self.last_parts: dict[str, list[TextScore]] = {}

    def __call__(self, texts: Texts, *, prompts: Texts, responses: Texts, columns: Columns) -> list[TextScore]:
        """Return the sum for each text. Raises RunError, with the part's own name, where a part failed."""
        self.last_parts = {
            name: ask(part, texts, prompts=prompts, responses=responses, columns=columns) for name, part in self._parts.items()
        }
        weights = list(self._weights.values())
        rows = zip(*self.last_parts.values(), strict=True)
        return [_added(row, weights, len(response)) for row, response in zip(rows, responses, strict=True)]


def _added(row: Sequence[TextScore], weights: Sequence[float], length: int) -> TextScore:
    """The sum for one text of ``length`` characters of response.

    >>> _added([1.0, 3.0], [1.0, -0.5], 9), _added([1.0, [(4, 3.0)]], [1.0, -0.5], 9)
    (-0.5, [(9, 1.0), (4, -1.5)])
    """
    if all(isinstance(each, float) for each in row):
        return float(sum(weight * each for weight, each in zip(weights, row, strict=True) if isinstance(each, float)))
    pairs: TokenRewards = []
    for weight, each in zip(weights, row, strict=True):
        pairs += [(end, weight * score) for end, score in ([(length, each)] if isinstance(each, float) else each)]
    return pairs
