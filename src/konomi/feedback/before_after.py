"""A run's before/after for people: tasks of two texts each, and what their answers say. The rest is in verdict.py.

Which text is from before and which from after training is in their sources, which nobody who judges ever sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from konomi.data.records import Candidate
from konomi.errors import DataError
from konomi.feedback.records import Exported, Item, Judgement, NewTask
from konomi.feedback.verdict import Vote, judge
from konomi.feedback.votes import enough_votes

SIDES = ("before", "after")


def tasks_of_comparison(comparison: Mapping[str, Any], run: str) -> list[NewTask]:
    """The held-out prompts of a ``compare.json`` as tasks.

    Where a prompt is there several times, two different texts of the same model become a further task (A/A): it shows what
    people say when there is nothing to find. At most one such task for each ten others.

    Args:
        comparison: what is in the file.
        run: names the run in the sources of the texts.

    Raises:
        DataError: no held-out prompt has two different texts.
    """
    tasks: list[NewTask] = []
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for row in comparison.get("texts", ()):
        if row.get("held_out"):
            by_prompt.setdefault(row["prompt"], []).append(row)
            tasks.append(NewTask(row["prompt"], tuple(_candidate(row, side, run) for side in SIDES), kind="compare"))
    if not any(len({each.text.strip() for each in task.candidates}) == 2 for task in tasks):
        raise DataError("compare.json has no held-out prompt with two different texts: there is nothing to compare blind")
    same = []
    for number, (prompt, rows) in enumerate(by_prompt.items()):
        side = SIDES[number % 2]
        texts = {row[side].strip(): _candidate(row, side, run) for row in rows}
        if len(texts) > 1:
            same.append(NewTask(prompt, tuple(texts.values())[:2], kind="same"))
    return tasks + same[: len(tasks) // 10]


def _candidate(row: Mapping[str, Any], side: str, run: str) -> Candidate:
    return Candidate(row[side], {"model": side, "run": run, "score": row.get(f"score_{side}")})


def is_comparison(exported: Exported) -> bool:
    """Whether there are tasks of before and after in a store."""
    return any(item.kind == "compare" for item in exported.items.values())


def votes_of(exported: Exported) -> list[Vote]:
    """What was said of before and after, repeats too. What was skipped, or called all bad, is no vote."""
    found = []
    for each in exported.judgements:
        item = exported.items[each.task]
        if item.kind in ("compare", "same") and each.kind == "ranked" and each.ranks is not None:
            found.append(_vote(item, each, each.ranks))
    return found


def _vote(item: Item, said: Judgement, ranks: tuple[int, ...]) -> Vote:
    same = item.kind == "same"
    before, after = (0, 1) if same else [[c.source["model"] for c in item.candidates].index(side) for side in SIDES]
    scores = [item.candidates[number].source.get("score") for number in (before, after)]
    known = [float(score) for score in scores if not same and isinstance(score, (int, float))]
    return Vote(
        item.prompt,
        item.candidates[before].text,
        item.candidates[after].text,
        (1 + (ranks[after] < ranks[before]) - (ranks[after] > ranks[before])) / 2,
        said.rater,
        after_first=said.order.index(after) < said.order.index(before),
        gap=known[1] - known[0] if len(known) == 2 else None,
        same=same,
    )


def verdict(exported: Exported, seed: int = 0) -> dict[str, Any]:
    """What :func:`konomi.feedback.verdict.judge` finds in the answers; ``enough``: what so many prompts can show at all."""
    prompts = sum(item.kind == "compare" for item in exported.items.values())
    return {**judge(votes_of(exported), seed), "enough": enough_votes(prompts)}
