"""What is refused, with which status, and how that is said: JSON to programs, a page to people, in the reader's language."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from konomi.files import plain, utf8
from konomi.labelling.project import LANGUAGES
from konomi.web.words import catalogue, preferred, say

STATUS = {
    "frozen": 409,
    "conflict": 409,
    "conflict_revision": 409,
    "name_taken": 409,
    "yourself": 409,
    "unknown_task": 404,
    "unknown_person": 404,
    "unknown_run": 404,
    "not_found": 404,
    "bad_method": 405,
    "no_access": 401,
    "not_admin": 403,
    "cross_site": 403,
    "bad_host": 421,
    "not_json": 415,
    "bad_request": 400,
    "too_large": 413,
    "too_slow": 408,
    "too_many": 429,
    "damaged": 500,
    "failed": 500,
    "no_guidelines": 500,
    "busy": 503,
}
"""HTTP status by code; what is not here is a mistake in what was sent: 422."""


class Json(JSONResponse):
    """JSON of whatever is in the files: halves of characters as their escapes, NaN as null."""

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return utf8(json.dumps(plain(content), ensure_ascii=False, allow_nan=False, separators=(",", ":")))


class Refusal(Exception):
    """A request that gets no. ``code`` names the reason; the words are ``error_CODE`` of the catalogue."""

    def __init__(self, code: str, *, wait: int | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.wait = wait
        """Seconds after which another try makes sense."""


def reader_language(request: Request) -> str:
    """The language of who reads the answer: ``?lang=``; of a page the cookie, then the browser's; of data the other way round, as
    the page asks in its own; else the project's."""
    said: dict[str, Any] = request.scope.get("state", {})
    known, default = said.get("languages", LANGUAGES), said.get("lang", LANGUAGES[0])
    wishes = [request.cookies.get("lang"), preferred(request.headers.get("accept-language", ""), known)]
    if request.url.path.startswith("/api/"):
        wishes.reverse()
    wishes.insert(0, request.query_params.get("lang"))
    return next((wish for wish in wishes if wish is not None and wish in known), str(default))


def small_page(lang: str, message: str, links: Mapping[str, str], status: int = 200, *, refresh: str = "") -> HTMLResponse:
    """A page of one sentence and a few links, address -> words; ``refresh``: an address that it goes to by itself."""
    parts = "".join(f'<p><a href="{escape(address)}">{escape(words)}</a></p>' for address, words in links.items())
    going = f'<meta http-equiv="refresh" content="0; url={escape(refresh)}">' if refresh else ""
    return HTMLResponse(
        f'<!doctype html><html lang="{lang}"><head><meta charset="utf-8"><title>konomi</title>{going}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="/static/icon.svg" type="image/svg+xml">'
        '<link rel="stylesheet" href="/static/page.css"><link rel="stylesheet" href="/static/label.css"></head>'
        f'<body><main class="prose"><h1>konomi</h1><p>{escape(message)}</p>{parts}</main></body></html>',
        status,
    )


def refused(request: Request, refusal: Refusal) -> Response:
    """The answer that says no."""
    code = refusal.code if f"error_{refusal.code}" in catalogue("errors")["en"] else "failed"
    status = STATUS.get(code, 422)
    lang = reader_language(request)
    message = say(f"error_{code}", lang)
    headers = {} if refusal.wait is None else {"retry-after": str(refusal.wait)}
    if request.url.path.startswith("/api/"):
        messages = {each: say(f"error_{code}", each) for each in LANGUAGES}  # a reader may switch while it is on the screen
        return Json({"error": {"code": code, "message": message, "messages": messages}}, status, headers)
    # no name of anybody's in it: the words are ours
    answer = small_page(lang, message, {} if code == "no_access" else {"/": say("page_start", lang)}, status)
    answer.headers.update(headers)
    return answer
