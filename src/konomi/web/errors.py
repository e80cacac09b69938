"""Errors that a request gets, with their HTTP status, and the words of the pages: JSON to programs, a page to people.

Words are in locales/, one catalogue for each language, with the same keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from konomi.files import plain, utf8
from konomi.labelling.project import LANGUAGES
from konomi.report.advice import locale

LOCALES = Path(__file__).parent / "locales"
_CODES = {
    400: "bad_request",
    401: "no_access",
    403: "not_admin cross_site",
    404: "unknown_task unknown_person unknown_run not_found",
    405: "bad_method",
    408: "too_slow",
    409: "frozen conflict conflict_revision name_taken yourself chat_open chat_busy",
    413: "too_large",
    415: "not_json",
    421: "bad_host",
    429: "too_many",
    500: "damaged failed no_guidelines chat_failed",
    503: "busy",
}
STATUS = {code: status for status, codes in _CODES.items() for code in codes.split()}
"""HTTP status by code; 422 for all others, which are mistakes in the request."""


def catalogue(name: str) -> Mapping[str, Mapping[str, str]]:
    """Language -> key -> words, from ``locales/NAME.LANGUAGE.json``."""
    return locale(name, LOCALES)


def say(key: str, lang: str, /, **values: Any) -> str:
    """The words of errors.LANGUAGE.json for a key, with ``{name}`` filled in from ``values``.

    >>> say("switch_yes", "en", guest="Hana")
    'Go on as Hana'
    """
    return catalogue("errors")[lang][key].format(**values)


def preferred(header: str, languages: Sequence[str]) -> str | None:
    """Which of ``languages`` an Accept-Language header likes best; None if none of them.

    >>> preferred("fr, en-GB;q=0.7, ja;q=0.8", ("ja", "en"))
    'ja'
    """
    accepted: list[tuple[float, int, str]] = []
    for number, part in enumerate(header[:500].split(",")):
        tag, _, rest = part.strip().partition(";")
        weight = rest.strip().removeprefix("q=") or "1"
        lang = tag.split("-")[0].lower()
        try:
            accepted.append((-float(weight), number, lang)) if lang in languages and float(weight) > 0 else None
        except ValueError:
            continue
    return min(accepted)[2] if accepted else None


class Json(JSONResponse):
    """JSON of file contents: lone surrogates are escaped, NaN is null."""

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return utf8(json.dumps(plain(content), ensure_ascii=False, allow_nan=False, separators=(",", ":")))


class Refusal(Exception):
    """A request is refused. ``code`` names the reason; its text is ``error_CODE`` of the catalogue."""

    def __init__(self, code: str, *, wait: int | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.wait = wait
        """Seconds to wait before retrying."""


def reader_language(request: Request) -> str:
    """The language of a response: ``?lang=``, then for a page the cookie before the browser's preference, for data the other way
    round (pages ask in the language they show), then the project's."""
    state: dict[str, Any] = request.scope.get("state", {})
    known, default = state.get("languages", LANGUAGES), state.get("lang", LANGUAGES[0])
    wishes = [request.cookies.get("lang"), preferred(request.headers.get("accept-language", ""), known)]
    if request.url.path.startswith("/api/"):
        wishes.reverse()
    wishes.insert(0, request.query_params.get("lang"))
    return next((wish for wish in wishes if wish is not None and wish in known), str(default))


def small_page(lang: str, message: str, links: Mapping[str, str], status: int = 200, *, refresh: str = "") -> HTMLResponse:
    """A page of one sentence and links (address -> words); ``refresh``: an address to redirect to."""
    parts = "".join(f'<p><a href="{escape(address)}">{escape(words)}</a></p>' for address, words in links.items())
    redirect = f'<meta http-equiv="refresh" content="0; url={escape(refresh)}">' if refresh else ""
    return HTMLResponse(
        f'<!doctype html><html lang="{lang}"><head><meta charset="utf-8"><title>konomi</title>{redirect}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="/static/icon.svg" type="image/svg+xml">'
        '<link rel="stylesheet" href="/static/page.css"><link rel="stylesheet" href="/static/label.css"></head>'
        f'<body><main class="prose"><h1>konomi</h1><p>{escape(message)}</p>{parts}</main></body></html>',
        status,
    )


def described(code: str) -> dict[str, Any]:
    """An error with its words in all languages: readers may switch while it is shown."""
    return {"code": code, "messages": {each: say(f"error_{code}", each) for each in LANGUAGES}}


def refused(request: Request, refusal: Refusal) -> Response:
    """The response to a refused request."""
    code = refusal.code if f"error_{refusal.code}" in catalogue("errors")["en"] else "failed"
    status = STATUS.get(code, 422)
    lang = reader_language(request)
    message = say(f"error_{code}", lang)
    headers = {} if refusal.wait is None else {"retry-after": str(refusal.wait)}
    if request.url.path.startswith("/api/"):
        return Json({"error": {**described(code), "message": message}}, status, headers)
    answer = small_page(lang, message, {} if code == "no_access" else {"/": say("page_start", lang)}, status)
    answer.headers.update(headers)
    return answer
