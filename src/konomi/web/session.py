"""State of the app, and authentication of requests."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request

from konomi.labelling import people as raters
from konomi.labelling.database import Store
from konomi.labelling.people import SESSION_SECONDS, is_session
from konomi.labelling.project import LANGUAGES, Project
from konomi.labelling.records import Person
from konomi.web.errors import Refusal
from konomi.web.figures import Figures
from konomi.web.security import RateLimiter

if TYPE_CHECKING:
    from konomi.web.chat import Chat
    from konomi.web.followed_run import FollowedRun

OWNER = "owner"
"""Name of the person who starts the server."""
_WATCHER = Person("p-watcher", OWNER, admin=True)


@dataclass
class Site:
    """State of the app.

    Attributes:
        project, store, figures: of the labelling project; None if only runs are followed.
        runs: the runs that are followed.
        start: the secret in the start address; stored nowhere else.
        address: of the server, for invite links; None: the address of the request.
        people: rate limit per person.
        chat: the model that raters talk with, in a project of this kind.
        closing: the server is about to stop: answers are accepted, no task is handed out.
        before_end: called before the store is closed.
    """

    project: Project | None
    store: Store | None
    figures: Figures | None
    runs: Sequence[FollowedRun]
    start: str
    address: str | None
    people: RateLimiter
    chat: Chat | None = None
    closing: bool = False
    before_end: Callable[[], None] | None = None
    _watchers: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def cookie(self) -> str:
        """Name of the session cookie, unique per project: browsers send cookies to all ports of a host."""
        return _cookie(self.address or "" if self.project is None else f"{self.project.created!r} {self.project.path.resolve()}")

    def session_in(self, cookies: Mapping[str, str]) -> str:
        """The session's token, also under the cookie's name of konomi up to 0.1; "" if there is none."""
        return cookies.get(self.cookie) or (cookies.get(_cookie(repr(self.project.created)), "") if self.project else "")

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages of the pages."""
        return LANGUAGES if self.project is None else self.project.languages

    @property
    def lang(self) -> str:
        """The default language."""
        return "en" if self.project is None else self.project.lang

    def close(self) -> None:
        """Stop background work and close the store."""
        if self.before_end is not None:
            self.before_end()
        if self.chat is not None:
            self.chat.close()
        if self.figures is not None:
            self.figures.close()
        if self.store is not None:
            self.store.close()

    def opened(self) -> tuple[Project, Store]:
        """The project and its store. Raises Refusal: only runs are followed."""
        if self.project is None or self.store is None:
            raise Refusal("not_found")
        return self.project, self.store

    def owner_session(self, start: str) -> str | None:
        """A new session token for the owner; None if ``start`` is not the secret."""
        if not hmac.compare_digest(start.encode("utf-8", "replace"), self.start.encode()):
            return None
        with self._lock:
            if self.store is None:
                token = secrets.token_urlsafe(32)
                self._watchers[token] = time.monotonic()
                return token
            people = raters.all_people(self.store)
            for person in people:
                if person.admin:
                    return raters.new_token(self.store, person.id, session=True)
            taken = {person.name for person in people}
            names = itertools.chain([OWNER], (f"{OWNER} {number}" for number in itertools.count(2)))
            owner, _ = raters.add_person(self.store, next(name for name in names if name not in taken), admin=True)
            return raters.new_token(self.store, owner.id, session=True)

    def guest(self, invite: str) -> Person | None:
        """The person of an invite link; None if it is invalid."""
        return None if self.store is None or is_session(invite) else raters.person_of(self.store, invite)

    def end_session(self, token: str) -> None:
        """Invalidate a session."""
        self._watchers.pop(token, None)
        if self.store is not None:
            raters.end_session(self.store, token)

    def who(self, token: str) -> Person | None:
        """The person of a session; None if it is invalid."""
        if not token or len(token) > 200:
            return None
        if self.store is None:
            since = self._watchers.get(token)
            return _WATCHER if since is not None and time.monotonic() - since < SESSION_SECONDS else None
        return raters.person_of(self.store, token) if is_session(token) else None


def _cookie(own: str) -> str:
    return f"konomi_{hashlib.sha256(own.encode('utf-8', 'replace')).hexdigest()[:12]}"


def person_of(request: Request) -> Person:
    """The person who sent a request. Raises Refusal: unknown (``no_access``), or over the rate limit (``too_many``)."""
    site: Site = request.app.state.site
    person = site.who(site.session_in(request.cookies))
    if person is None:
        raise Refusal("no_access")
    wait = site.people.take(person.id)
    if wait:
        raise Refusal("too_many", wait=wait)
    return person


def admin_of(request: Request) -> Person:
    """As :func:`person_of`, for owners. Raises Refusal: also ``not_admin``."""
    person = person_of(request)
    if not person.admin:
        raise Refusal("not_admin")
    return person
