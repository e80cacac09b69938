"""Rankings of noisy raters, and comparisons with a reward model's scores, for the tests of statistics and of their verdicts."""

from __future__ import annotations

import random

import numpy as np

from konomi.data.records import Group, Pair, Ranking, groups

TEXTS = ("a", "b", "c", "d")

Scored = tuple[list[Group], list[list[float]]]
"""Comparisons by prompt, and the scores of each one's responses."""


def pair(prompt: str, chosen: str = "aa", rejected: str = "b", label: float = 1.0, rater: str | None = None) -> Pair:
    return Pair(prompt, chosen, rejected, label, rater=rater)


def many(count: int, right: int, longer: int | None = None) -> Scored:
    """``count`` prompts with one comparison; the model is right in the first ``right``, the longer text in ``longer``."""
    made, scores = [], []
    for i in range(count):
        is_longer = i < (count // 2 if longer is None else longer)
        made += groups([pair(f"p{i}", "long" if is_longer else "s", "s" if is_longer else "long")])
        scores.append([1.0, 0.0] if i < right else [0.0, 1.0])
    return made, scores


def ragged_records(seed: int, prompts: int = 40) -> list[Ranking | Pair]:
    """Prompts with 2 to 5 responses, rankings with ties of up to three raters, soft pairs, two sources."""
    rng = random.Random(seed)
    records: list[Ranking | Pair] = []
    for p in range(prompts):
        texts = tuple(f"{j}" * rng.randint(1, 30) for j in range(rng.randint(2, 5)))
        for rater in rng.sample(["ann", "bob", "eve", None], rng.randint(1, 3)):  # type: ignore[list-item]
            source = rng.choice([None, "web", "lab"])
            if rng.random() < 0.7:
                records.append(Ranking(f"p{p}", texts, tuple(rng.randint(1, 4) for _ in texts), rater, source))
            else:
                one, other = rng.sample(texts, 2)
                records.append(Pair(f"p{p}", one, other, rng.choice([0.0, 0.25, 0.5, 0.9, 1.0]), rater=rater, source=source))
    return records


def ragged(seed: int) -> Scored:
    """The same with scores, of which some are equal."""
    rng = random.Random(seed)
    made = groups(ragged_records(seed))
    return made, [[rng.choice([-1.0, 0.0, 0.5, 2.0, rng.gauss(0, 1)]) for _ in group.responses] for group in made]


def two_raters(prompts: int, right: float, model: float) -> Scored:
    """Two raters who are each right with probability ``right`` of a pair, and a model that is with ``model``."""
    rng = random.Random(0)
    records, scores = [], []
    for i in range(prompts):
        better, worse = rng.choice([("long", "s"), ("s", "long")])
        sides = [(better, worse) if rng.random() < right else (worse, better) for _ in range(2)]
        records += [Pair(f"p{i}", *side, rater=name) for side, name in zip(sides, ("ann", "bob"), strict=True)]
        ahead = (better if rng.random() < model else worse) == sides[0][0]
        scores.append([1.0, 0.0] if ahead else [0.0, 1.0])
    return groups(records), scores


def noisy_rankings(seed: int, prompts: int = 40) -> list[Ranking]:
    """Three people who see the same truth with noise, skip some tasks, do some twice, and call close ones equal."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(prompts):
        truth = rng.normal(size=4)
        for rater in "xyz":
            for _ in range(int(rng.random() < 0.8) + int(rng.random() < 0.3)):
                seen = np.round(truth + rng.normal(size=4))
                ranks = tuple(int(1 + (seen > value).sum()) for value in seen)
                order = rng.permutation(4)
                texts = tuple(TEXTS[k] for k in order)
                found.append(Ranking(f"prompt {i}", texts, tuple(ranks[k] for k in order), rater))
    return found
