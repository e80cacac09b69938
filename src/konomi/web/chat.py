"""Conversations with a model on the page, and their JSON. The model answers in a thread, one rater at a time.

No request waits for it: the page polls its state.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import APIRouter, Request

from konomi.data.messages import Conversation, readable
from konomi.data.records import Candidate, Prompt
from konomi.errors import ConfigError, DataError
from konomi.labelling import chats
from konomi.labelling.database import Store
from konomi.labelling.records import Body, ChatOptions, Person, Refused, Text
from konomi.text import visible
from konomi.web.api import body_of, context, progress_of, task_json
from konomi.web.errors import Json, Refusal, described

router = APIRouter(prefix="/api/chat")
_LOG = logging.getLogger("konomi.web")
TRIES = 4
"""Attempts to draw two different answers."""


class Policy(Protocol):
    """The model that answers."""

    def drawn(self, prompt: Prompt, streams: Sequence[int]) -> list[Candidate]:
        """An answer for each random stream. Raises ConfigError, DataError: the prompt cannot be answered, as it is too long."""


class ChatBody(Body):
    """A message, the turn from which the conversation goes on (none: it begins), and its author, as in an answer's."""

    text: Text
    after: Text | None = None
    person: Text | None = None


@dataclass
class _Job:
    """Two answers that are wanted: the showing that they become, and when the model began, monotonic seconds."""

    future: Future[str]
    began: float | None = None


@dataclass
class Chat:
    """The model and its queue of raters."""

    policy: Policy
    options: ChatOptions
    store: Store
    _jobs: dict[str, _Job] = field(default_factory=dict)
    """By person, in the order in which they asked."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: bool = False

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="konomi-chat")

    def ask(self, person: Person, text: str, after: str | None) -> None:
        """Queue a message for the model. Raises Refused: it is not accepted, or the model still answers this person."""
        messages = chats.next_messages(self.store, person, after, text, self.options.system)
        with self._lock:
            if (job := self._jobs.get(person.id)) is not None and not job.future.done():
                raise Refused("chat_busy", "the model is answering the message before")
            self._jobs.pop(person.id, None)
            self._jobs[person.id] = _Job(self._pool.submit(self._answer, person, messages))

    def state(self, person: Person) -> dict[str, Any]:
        """The state of a person's answers. A failure is reported once."""
        with self._lock:
            job = self._jobs.get(person.id)
            if job is None:
                return {"state": "idle"}
            if not job.future.done():
                ahead = [name for name, each in self._jobs.items() if not each.future.done()].index(person.id)
                seconds = None if job.began is None else round(time.monotonic() - job.began)
                return {"state": "waiting" if seconds is None else "writing", "ahead": ahead, "seconds": seconds}
            del self._jobs[person.id]
        error = job.future.exception()
        return {"state": "idle"} if error is None else {"state": "failed", "error": described(_code(error))}

    def close(self) -> None:
        """Stop: answers in progress are discarded."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, person: Person, messages: Conversation) -> str:
        with self._lock:
            self._jobs[person.id].began = time.monotonic()
        prompt, first = Prompt(readable(messages), {"messages": messages}), time.time_ns() // 1000
        for number in range(TRIES):
            try:
                answers = self.policy.drawn(prompt, [first + 2 * number, first + 2 * number + 1])
            except (ConfigError, DataError) as error:
                _LOG.error("%s", visible(error))  # every message may fail like that, as the template takes no system message
                raise Refused("chat_long", str(error)) from error
            with self._lock:
                if self._closed:
                    return ""
                try:
                    return chats.add_turn(self.store, person, messages, answers, time.time())
                except Refused as refused:
                    if refused.code != "chat_same" or number == TRIES - 1:
                        raise
        raise AssertionError("the last try returns or raises")


def _code(error: BaseException) -> str:
    """The error code of a failure in the thread; unexpected ones are also logged."""
    if isinstance(error, Refused):
        return error.code
    _LOG.error("%s", visible("".join(traceback.format_exception(error))))  # it may quote a message
    return "chat_failed"


@router.get("")
def state(request: Request) -> Json:
    """The model's state, and the person's turn: the one that waits for a choice, else the last one."""
    site, store, person = context(request)
    now = _chat(request).state(person)
    turn = chats.last_turn(store, person) if now["state"] in ("idle", "failed") else None
    shown_turn: dict[str, Any] = {"turn": None}
    if turn is not None:
        waits = turn.after is None
        talk = turn.before if turn.after is None else turn.after
        shown_turn["turn"] = {"id": turn.shown.id, "talk": _shown(talk), "task": task_json(turn.shown) if waits else None}
    return Json({**now, **shown_turn, "progress": progress_of(site, store, person)})


@router.post("")
def ask(request: Request) -> Json:
    """Send a message to the model."""
    _, _, person = context(request)
    body = body_of(request, ChatBody)
    if body.person not in (None, person.id):
        raise Refusal("no_access")
    _chat(request).ask(person, body.text, body.after)
    return Json({"asked": True})


def _shown(talk: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The messages that the page shows: those of user and assistant."""
    return [{"role": m["role"], "text": str(m["content"])} for m in talk if m["role"] in ("user", "assistant")]


def _chat(request: Request) -> Chat:
    chat: Chat | None = request.app.state.site.chat
    if chat is None:
        raise Refusal("not_found")
    return chat
