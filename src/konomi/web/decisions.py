"""JSON of disputed tasks, for owners. It names neither models nor raters."""

from __future__ import annotations

import re
import time

from fastapi import APIRouter, Request

from konomi.labelling import decisions
from konomi.labelling.records import Body, Text
from konomi.web.api import body_of, context, integer, task_json
from konomi.web.errors import Json, Refusal
from konomi.web.session import admin_of

router = APIRouter(prefix="/api/disputes")
PAGE = 100
"""Tasks that are listed if no number is asked for."""


class DecisionBody(Body):
    """A decision (no ranks: withdraw it), and the revision that it replaces."""

    ranks: dict[Text, int]
    comment: Text = ""
    revision: int


@router.get("")
def listed(request: Request) -> Json:
    """The first ``?count=`` tasks on which raters differ, undecided ones first; ``all``: how many there are, ``open``: without a
    decision."""
    _, store, _ = context(request, admin_of)
    count = max(0, integer(request, "count", PAGE))
    listed_tasks = decisions.disputes(store)
    return Json({
        "disputes": [dict(vars(each)) for each in listed_tasks[:count]],
        "all": len(listed_tasks),
        "open": sum(not each.decided for each in listed_tasks),
    })  # fmt: skip


@router.get("/{task}")
def one(request: Request, task: str) -> Json:
    """A task, blind, with the raters' ranks and the decision."""
    _, store, owner = context(request, admin_of)
    dispute = decisions.disputed(store, owner, _number(task))
    answer = None if dispute.ranks is None else {"ranks": dispute.ranks, "comment": dispute.comment}
    return Json({"task": task_json(dispute.shown), "rankings": list(dispute.rankings), "answer": answer})


@router.post("/{task}")
def decide(request: Request, task: str) -> Json:
    """Save or withdraw a decision; also while the collection is closed."""
    _, store, owner = context(request, admin_of)
    body = body_of(request, DecisionBody)
    revision = decisions.decide(store, owner, _number(task), body.ranks, body.comment, body.revision, time.time())
    return Json({"saved": True, "revision": revision})


def _number(task: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", task):
        raise Refusal("unknown_task")
    return int(task)
