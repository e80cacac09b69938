"""Disputed tasks and the owner's decisions on them. Decisions never enter agreement or any other figure of the raters."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from konomi.labelling import queue
from konomi.labelling.answers import decision_of
from konomi.labelling.assignments import shown_texts
from konomi.labelling.database import Store
from konomi.labelling.records import KEYS, Answer, LabelOptions, Person, Refused, Shown
from konomi.labelling.tables import ANSWERS, DECISIONS, checked_answer, task_of, write_decision
from konomi.labelling.validation import validated

_RANKED = f"""{ANSWERS} AND answers.revision = shown.revision JOIN tasks ON tasks.id = task
    WHERE repeat = 0 AND answers.kind = 'ranked' AND tasks.kind = 'rank'"""


@dataclass(frozen=True)
class Dispute:
    """A task in which raters ordered two texts in opposite ways, now or when it was decided."""

    task: int
    prompt: str
    raters: int  # who ranked it
    share: float  # of the pairs of its texts, those that are ordered both ways
    decided: bool


@dataclass(frozen=True)
class Disputed:
    """A disputed task as the owner sees it: blind, with each rater's ranks. ``ranks``: the decision by key, or None."""

    shown: Shown  # its id is the task's number
    order: tuple[int, ...]  # numbers of the texts, in the order shown
    rankings: tuple[dict[str, int], ...]
    ranks: dict[str, int] | None
    comment: str


def disputes(store: Store) -> list[Dispute]:
    """All disputed or decided tasks, undecided ones first, then by how much the raters differ."""
    with store.snapshot() as db:
        ranked: dict[int, list[list[int]]] = {}
        for row in map(checked_answer, db.execute(_RANKED)):
            ranked.setdefault(row[2], []).append(json.loads(row[8]))
        decided = {row[1] for row in db.execute(DECISIONS) if decision_of(row) is not None}
        by_task = {task: ranked.get(task, []) for task in ranked.keys() | decided}
        listed = [
            Dispute(task, task_of(db, task)[0][2], len(rankings), share, task in decided)
            for task, rankings in by_task.items()
            if (share := differing(rankings)) or task in decided
        ]
    return sorted(listed, key=lambda each: (each.decided, -each.share, each.task))


def differing(rankings: Sequence[Sequence[int]]) -> float:
    """The share of pairs that are ordered both ways; a tie counts as neither.

    >>> differing([[1, 2, 3], [2, 1, 3]]), differing([[1, 2], [1, 1]])
    (0.3333333333333333, 0.0)
    """
    if not rankings:
        return 0.0
    pairs = list(itertools.combinations(range(len(rankings[0])), 2))
    ways = [{ranks[i] < ranks[j] for ranks in rankings if ranks[i] != ranks[j]} for i, j in pairs]
    return sum(len(way) == 2 for way in ways) / len(pairs)


def disputed(store: Store, owner: Person, task: int) -> Disputed:
    """A ranked task with its texts in a random order.

    Raises:
        Refused: there is no such task.
    """
    with store.snapshot() as db:
        digest = db.execute("SELECT digest FROM tasks WHERE id = ? AND kind = 'rank'", (task,)).fetchone()
        if digest is None:
            raise Refused("unknown_task", f"there is no task {task}")
        (_, lang, prompt, _), candidates = task_of(db, task)
        rows = [checked_answer(row) for row in db.execute(f"{_RANKED} AND task = ? ORDER BY answers.at, answers.id", (task,))]
        row = db.execute(f"{DECISIONS} WHERE task = ?", (task,)).fetchone()
        decision, revision = (None, 0) if row is None else (decision_of(row), int(row[3]))
    order = queue.order(len(candidates), digest[0], owner.id, store.settings)
    shown = Shown(str(task), prompt, lang, shown_texts(candidates, order), revision)
    keyed = dict(zip(KEYS, order, strict=False))
    given = [json.loads(each[8]) for each in rows]
    rankings = tuple({key: int(ranks[number]) for key, number in keyed.items()} for ranks in given)
    own = None if decision is None else {key: decision.ranks[number] for key, number in keyed.items()}
    return Disputed(shown, order, rankings, own, decision.comment if decision else "")


def decide(store: Store, owner: Person, task: int, ranks: Mapping[str, int], comment: str, seen: int, now: float) -> int:
    """Save the owner's decision on a task, or withdraw it if ``ranks`` is empty; return its revision.

    Args:
        ranks: by the keys of :func:`disputed`.
        seen: the revision that the owner saw, 0: none.
        now: seconds since 1970.

    Raises:
        Refused: there is no such task; ranks or comment are not what they should be; ``conflict_revision``: it was decided in
            another window meanwhile.
    """
    disputed_task = disputed(store, owner, task)
    texts = {each.key: each.text for each in disputed_task.shown.texts}
    answer = Answer(
        id="", shown=disputed_task.shown.id, kind="ranked" if ranks else "all_bad", ranks=dict(ranks), comment=comment
    )
    answer = validated(answer, texts, LabelOptions())
    with store.write() as db:
        row: Any = db.execute("SELECT revision FROM decisions WHERE task = ?", (task,)).fetchone()
        revision = int(row[0]) if row else 0
        if seen != revision:
            raise Refused("conflict_revision", f"task {task} was decided meanwhile: revision {revision}, not {seen}")
        keys = [key for _, key in sorted(zip(disputed_task.order, KEYS, strict=False))]
        stored = json.dumps([answer.ranks[key] for key in keys]) if ranks else None
        write_decision(db, task, owner.id, revision + 1, now, stored, answer.comment)
    return revision + 1
