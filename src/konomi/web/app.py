"""The app: pages, static files, API routes and error handlers."""

from __future__ import annotations

import logging
import mimetypes
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException

from konomi.errors import ConfigError, DataError, RunError
from konomi.labelling.people import SESSION_SECONDS, new_token
from konomi.labelling.project import Project
from konomi.labelling.records import LabelOptions, Person, Refused
from konomi.report.advice import locale
from konomi.text import visible
from konomi.web import api, chat, decisions
from konomi.web.chat import Chat, Policy
from konomi.web.errors import Refusal, catalogue, reader_language, refused, say, small_page
from konomi.web.figures import Figures
from konomi.web.followed_run import FollowedRun
from konomi.web.security import BUSY_SECONDS, RETRY_SECONDS, Guard, Hosts, RateLimiter
from konomi.web.session import Site, admin_of, person_of

HERE = Path(__file__).parent
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
"""Off whatever the environment says, since addresses hold tokens."""
_LOG = logging.getLogger("konomi.web")

# some systems map .js to another type, and browsers then run no module
mimetypes.add_type("text/javascript", ".js")
mimetypes.add_type("text/css", ".css")


def make_app(
    project: Project | None = None,
    *,
    runs: Sequence[Path] = (),
    start: str | None = None,
    address: str | None = None,
    public: str | None = None,
    hosts: Hosts | None = None,
    addresses: RateLimiter | None = None,
    people: RateLimiter | None = None,
    policy: Policy | None = None,
) -> FastAPI:
    """The app for a labelling project, for runs to follow, or for both.

    Args:
        project: the labelling project; its store is open until the app stops.
        runs: directories of runs.
        start: the secret of the start address ``/start/SECRET``; None: a new one, see ``app.state.site.start``.
        address: ``http://HOST:PORT`` for invite links; None: that of the request.
        public: ``https://HOST`` of a proxy in front of the app; replaces ``address``.
        hosts: host names that the app answers to; None: the loopback names.
        policy: the model that raters talk with, for a project of this kind.
        addresses, people: rate limits per address and per person; None: 200 a second (600 at once), 20 (100).

    Raises:
        DataError: the store is damaged or missing, or a run is none.
        RunError: the store cannot be opened.
        ConfigError: the project needs a policy.
    """
    if project is not None and project.chat is not None and policy is None:
        raise ConfigError(f"{project.path}: raters of this project talk with a model: konomi label {project.path} loads it")
    followed = [FollowedRun(path) for path in runs]
    store = None if project is None else project.store(BUSY_SECONDS)
    figures = None if project is None else Figures(project.path)
    start = start or secrets.token_urlsafe(32)
    site = Site(project, store, figures, followed, start, public or address, people or RateLimiter(20, 100))
    if store is not None and project is not None and project.chat is not None and policy is not None:
        site.chat = Chat(policy, project.chat, store)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        site.close()

    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan, redirect_slashes=False, telemetry=NO_TELEMETRY
    )
    app.state.site = site
    app.state.pages = _pages()
    app.add_middleware(
        Guard,
        hosts=hosts or Hosts(),
        addresses=addresses or RateLimiter(200, 600),
        public=public,
        state={"languages": site.languages, "lang": site.lang},
    )
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    pages: dict[str, Callable[..., Response]] = {
        "/": front,
        "/guidelines": _project_page("guidelines", person_of),
        "/people": _project_page("people", admin_of),
        "/decisions": _project_page("decisions", admin_of),
        "/watch": watch_page,
        "/start/{token}": start,
        "/i/{token}": accept_invite,
    }
    for route, page in pages.items():
        app.add_api_route(route, page, methods=["GET"], response_class=HTMLResponse)
    app.include_router(api.router)
    app.include_router(decisions.router)
    app.include_router(chat.router)
    app.mount("/static", StaticFiles(directory=HERE / "static", packages=[("konomi.report", "static")]))
    for kind in (Refusal, Refused, DataError, RunError, HTTPException):
        app.add_exception_handler(kind, _explain)


def front(request: Request) -> Response:
    """The ranking page, that of conversations, or the page of runs if there is no project."""
    person, site = person_of(request), request.app.state.site
    return _page(request, person, "chat" if site.chat else "rank") if site.project else RedirectResponse("/watch", 303)


def _project_page(name: str, who: Callable[[Request], Person]) -> Callable[[Request], Response]:
    def page(request: Request) -> Response:
        return _page(request, api.context(request, who)[2], name)

    return page


def watch_page(request: Request) -> Response:
    """The page of runs, for owners: it shows model names."""
    owner = admin_of(request)
    if not request.app.state.site.runs:
        raise Refusal("not_found")
    return _page(request, owner, "watch")


def start(request: Request, token: str) -> Response:
    """Exchange the start secret for a session cookie."""
    if _from_another_site(request):
        return _reload_from_here(request)
    session = request.app.state.site.owner_session(token)
    if session is None:
        raise Refusal("no_access")
    return _sign_in(request, session)


def accept_invite(request: Request, token: str) -> Response:
    """Exchange an invite token for a session cookie; ask first if another person is signed in."""
    site: Site = request.app.state.site
    if _from_another_site(request):
        return _reload_from_here(request)
    guest, here = site.guest(token), site.who(site.session_in(request.cookies))
    if guest is None:
        raise Refusal("no_access")
    if here is not None and here.id != guest.id and request.query_params.get("switch") != "yes":
        lang = reader_language(request)
        links = {"?switch=yes": say("switch_yes", lang, guest=guest.name), "/": say("switch_no", lang, here=here.name)}
        return small_page(lang, say("switch_question", lang, guest=guest.name, here=here.name), links)
    return _sign_in(request, new_token(site.opened()[1], guest.id, session=True))


def _from_another_site(request: Request) -> bool:
    return request.headers.get("sec-fetch-site") in ("cross-site", "same-site")


def _reload_from_here(request: Request) -> Response:
    # browsers leave SameSite=strict cookies out of what starts on another site; "?" reloads this address, now from our own page
    return small_page(reader_language(request), "", {"?": "konomi"}, refresh="?")


def _sign_in(request: Request, session: str) -> Response:
    site: Site = request.app.state.site
    old_session = site.session_in(request.cookies)
    person, before = site.who(session), site.who(old_session)
    if person is not None and before is not None and before.id == person.id:
        site.end_session(old_session)
    answer = RedirectResponse("/", 303)
    secure = request.url.scheme == "https" or (site.address or "").startswith("https://")
    max_age = None if site.store is None else SESSION_SECONDS  # without a store, sessions end with the server
    answer.set_cookie(site.cookie, session, max_age=max_age, path="/", secure=secure, httponly=True, samesite="strict")
    return answer


def _pages() -> Environment:
    loader = FileSystemLoader(HERE / "templates")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.policies["json.dumps_kwargs"] = {"ensure_ascii": False}  # half the size for Japanese
    return pages


def _page(request: Request, person: Person, name: str) -> Response:
    site: Site = request.app.state.site
    template = request.app.state.pages.get_template(f"label/{name}.html")
    more = locale("page") if name == "watch" else {}
    words = {lang: {**catalogue("page")[lang], **more.get(lang, {})} for lang in site.languages}
    title = visible(site.project.title) if site.project else "konomi"
    parts = {"project": site.project is not None, "chat": site.chat is not None, "admin": person.admin}
    parts["runs"] = bool(site.runs) and person.admin
    asked = site.project.label if site.project else LabelOptions()
    return HTMLResponse(template.render(lang=reader_language(request), words=words, title=title, asked=asked, **parts))


def _explain(request: Request, error: Exception) -> Response:
    if isinstance(error, Refusal):
        return refused(request, error)
    if isinstance(error, Refused):
        return refused(request, Refusal(error.code))
    if isinstance(error, HTTPException):
        return refused(request, Refusal({404: "not_found", 405: "bad_method"}.get(error.status_code, "bad_request")))
    _LOG.error("%s", visible(error))  # for the owner's terminal only: it holds paths
    return refused(request, Refusal("damaged") if isinstance(error, DataError) else Refusal("busy", wait=RETRY_SECONDS))
