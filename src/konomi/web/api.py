"""The JSON behind the pages. Requests are authenticated; responses never reveal a text's author or what others answered."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import ValidationError

from konomi.errors import DataError
from konomi.labelling import answers as saved_answers
from konomi.labelling import assignments
from konomi.labelling import people as raters
from konomi.labelling.database import Store
from konomi.labelling.records import Answer, Body, Person, Shown, Text
from konomi.report.page import numbers
from konomi.text import visible
from konomi.web.errors import Json, Refusal, reader_language
from konomi.web.figures import NEEDED_COMPARISONS, Found
from konomi.web.followed_run import FollowedRun
from konomi.web.guidelines import section_for, to_html, version_of
from konomi.web.session import Site, admin_of, person_of

router = APIRouter(prefix="/api")
_LOG = logging.getLogger("konomi.web")
PAGE = 50
"""Own answers that are listed at a time."""
SAMPLES = 2000
"""Lines of sample texts that are sent at once."""


class AnswerBody(Answer):
    """An answer, the revision that it replaces, and its author: another person may have signed in to the browser since."""

    revision: int | None = None
    person: Text | None = None


class MeBody(Body):
    """Settings of a person."""

    guidelines_seen: Text | None = None
    shortcuts: bool | None = None


class PersonBody(Body):
    """A person to invite."""

    name: Text


class FreezeBody(Body):
    """Whether the collection is closed."""

    frozen: bool


B = TypeVar("B", bound=Body)


def body_of(request: Request, kind: type[B]) -> B:
    """The body of a request. Raises Refusal: it is not JSON, or not what ``kind`` says."""
    try:
        return kind.model_validate(json.loads(request.state.body))
    except (ValueError, ValidationError, RecursionError):
        raise Refusal("bad_request") from None


def context(request: Request, who: Callable[[Request], Person] = person_of) -> tuple[Site, Store, Person]:
    """The app's state, the store, and the person who asks, as ``who`` finds them. Raises Refusal: also, there is no project."""
    person, site = who(request), request.app.state.site
    return site, site.opened()[1], person


@router.get("/me")
def me(request: Request) -> Json:
    """The person and their settings."""
    site, _, person = context(request)
    return _me(site, person)


@router.post("/me")
def set_me(request: Request) -> Json:
    """Save which guidelines were read, or whether single-key shortcuts are on."""
    site, store, person = context(request)
    body = body_of(request, MeBody)
    if body.guidelines_seen is not None and len(body.guidelines_seen) > 64:
        raise Refusal("bad_request")
    return _me(site, raters.remember(store, person, guidelines_seen=body.guidelines_seen, shortcuts=body.shortcuts))


def _me(site: Site, person: Person) -> Json:
    own = {"person": person.id, **{key: getattr(person, key) for key in ("name", "admin", "shortcuts", "guidelines_seen")}}
    project, _ = site.opened()
    about = {"languages": site.languages, "lang": site.lang, "title": visible(project.title)}
    return Json({**own, **about, "asked": project.label.model_dump()})


@router.get("/next")
def next_task(request: Request) -> Json:
    """The next task of the person, or null, and the progress."""
    site, store, person = context(request)
    shown = None
    if site.closing:
        assignments.give_up(store, person)
    else:
        shown = assignments.next_task(store, person, time.time())
    return Json({"task": None if shown is None else task_json(shown), "progress": progress_of(site, store, person)})


@router.post("/answers")
def answers(request: Request) -> Json:
    """Save an answer durably; idempotent."""
    site, store, person = context(request)
    body = body_of(request, AnswerBody)
    if body.person not in (None, person.id):
        raise Refusal("no_access")
    answer = Answer(**{name: getattr(body, name) for name in Answer.model_fields})
    options = site.opened()[0].label
    saved = saved_answers.save(store, person, answer, time.time(), seen=body.revision, options=options)
    return Json({"saved": True, "id": saved.id, "revision": saved.revision})


@router.get("/mine")
def mine(request: Request) -> Json:
    """The person's answers, newest first, from before ``?before=SHOWN`` on; ``more``: whether there are older ones."""
    _, store, person = context(request)
    listed = saved_answers.own_answers(store, person, PAGE + 1, request.query_params.get("before"))
    return Json({"answers": [dict(vars(each)) for each in listed[:PAGE]], "more": len(listed) > PAGE})


@router.get("/shown/{shown_id}")
def shown(request: Request, shown_id: str) -> Json:
    """A task that the person has seen, and their latest answer to it."""
    _, store, person = context(request)
    task = assignments.find_shown(store, person, shown_id)
    if task is None:
        raise Refusal("unknown_task")
    answer = saved_answers.answer_of(store, person, shown_id)
    fields = ("kind", "ranks", "reason", "flags", "comment", "confidence", "strength", "edits")
    return Json({"task": task_json(task), "answer": answer and {name: getattr(answer, name) for name in fields}})


@router.get("/progress")
def progress(request: Request) -> Json:
    """Progress of the person and of the team."""
    site, store, person = context(request)
    return Json(progress_of(site, store, person))


@router.get("/guidelines")
def guidelines(request: Request) -> Json:
    """The current guidelines in the reader's language."""
    site, _, _ = context(request)
    try:
        text = site.opened()[0].guidelines()
    except DataError as error:
        _LOG.error("%s", visible(error))
        raise Refusal("no_guidelines") from None
    return Json({"html": to_html(section_for(text, reader_language(request))), "version": version_of(text)})


@router.get("/people")
def people(request: Request) -> Json:
    """All people and their agreement, for owners."""
    site, store, _ = context(request, admin_of)
    latest = None if site.figures is None else site.figures.get(saved_answers.changes(store), people=True)
    known = latest.people or {} if latest else {}
    everybody = [{**_person(each), "figures": known.get(each.id)} for each in raters.all_people(store)]
    return Json({"people": everybody, "frozen": store.frozen})


@router.post("/people")
def invite(request: Request) -> Json:
    """Add a person; returns their invite link, which cannot be read again."""
    site, store, _ = context(request, admin_of)
    person, token = raters.add_person(store, body_of(request, PersonBody).name)
    return Json({"invite": _link(request, site, token), "person": _person(person)})


@router.post("/people/{person_id}/invite")
def invite_again(request: Request, person_id: str) -> Json:
    """A new invite link for a person who lost theirs or whose access was revoked."""
    site, store, _ = context(request, admin_of)
    token = raters.new_token(store, person_id)
    return Json({"invite": _link(request, site, token), "person": _person(raters.find_person(store, person_id))})


@router.post("/freeze")
def freeze(request: Request) -> Json:
    """Close or reopen the collection; for owners."""
    _, store, _ = context(request, admin_of)
    store.freeze(body_of(request, FreezeBody).frozen)
    return Json({"frozen": store.frozen})


@router.delete("/people/{person_id}")
def revoke(request: Request, person_id: str) -> Json:
    """Revoke a person's access; their answers stay."""
    _, store, owner = context(request, admin_of)
    person = raters.find_person(store, person_id)
    if person.id == owner.id:
        raise Refusal("yourself")
    raters.revoke(store, person.id)
    return Json({"person": _person(raters.find_person(store, person.id))})


def _link(request: Request, site: Site, token: str) -> str:
    return f"{site.address or str(request.base_url).rstrip('/')}/i/{token}"


def _person(person: Person) -> dict[str, Any]:
    return {"id": person.id, "name": person.name, "admin": person.admin, "active": person.active}


def task_json(shown: Shown) -> dict[str, Any]:
    """A task for a page."""
    # field by field, so that new fields of Shown do not leak
    texts = [{"key": each.key, "text": each.text, "lang": each.lang, "flags": each.flags} for each in shown.texts]
    return {"id": shown.id, "prompt": shown.prompt, "lang": shown.lang, "texts": texts, "revision": shown.revision}


def progress_of(site: Site, store: Store, person: Person) -> dict[str, Any]:
    """The progress of a person and the team, for a page."""
    counts = dict(vars(assignments.progress_of(store, person, time.time())))
    counts["frozen"] |= site.closing
    latest = None if site.figures is None else site.figures.get(saved_answers.changes(store))
    comparisons = saved_answers.comparisons(store)
    if comparisons is not None:  # counted at once, unlike the rest
        latest = replace(latest or Found(False, 0, NEEDED_COMPARISONS), comparisons=comparisons)
    return {**counts, **({"agreement": None, "enough": None} if latest is None else latest.shown())}


@router.get("/runs")
def runs(request: Request) -> Json:
    """The followed runs. Everything about runs is for owners."""
    admin_of(request)
    followed: Sequence[FollowedRun] = request.app.state.site.runs
    return Json({"runs": [run.summary(number) for number, run in enumerate(followed)]})


@router.get("/runs/{number}")
def run(request: Request, number: str) -> Json:
    """A run beside its metrics and texts; null while its files cannot be read."""
    return Json({"run": _followed(request, number).data()})


@router.get("/runs/{number}/metrics")
def metrics(request: Request, number: str) -> Json:
    """Metrics of updates after ``?after=``; all of them if lines were removed since ``?generation=`` of an earlier response."""
    rows, generation = _followed(request, number).metrics()
    after = -1 if integer(request, "generation", generation) != generation else integer(request, "after", -1)
    return Json({"rows": [numbers(row) for row in rows if row["update"] > after], "generation": generation})


@router.get("/runs/{number}/samples")
def samples(request: Request, number: str) -> Json:
    """Sample texts from line ``?from=`` on, and the next line; from 0 if lines were removed since ``?generation=``."""
    rows, generation = _followed(request, number).samples.rows()
    first = 0 if integer(request, "generation", generation) != generation else max(0, integer(request, "from", 0))
    new = rows[first : first + SAMPLES]
    return Json({"samples": new, "from": first, "next": first + len(new), "generation": generation})


def _followed(request: Request, number: str) -> FollowedRun:
    admin_of(request)
    followed: Sequence[FollowedRun] = request.app.state.site.runs
    if not re.fullmatch("[0-9]{1,9}", number) or int(number) >= len(followed):
        raise Refusal("unknown_run")
    return followed[int(number)]


def integer(request: Request, name: str, default: int) -> int:
    """A number in the address of a request. Raises Refusal: it is none, or has more than 12 digits."""
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"-?[0-9]{1,12}", text):
        raise Refusal("bad_request")
    return int(text)
