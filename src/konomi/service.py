"""JSON over HTTP with a service that a setting names.

Redirects are not followed: what is sent and the token go to the given address and nowhere else.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

from konomi.errors import ConfigError, RunError
from konomi.text import plural

MAX_BYTES = 2**24  # of an answer
MAX_WAIT = 30.0  # seconds between two tries
SHOWN = 200  # characters of an answer in a message
UNREACHED = (OSError, http.client.HTTPException)
"""What `Service.once` raises where another try may go better."""


class Unanswered(RunError):
    """The service gave no answer after all tries."""


class Refused(RunError):
    """The service answered with an error that another try does not mend."""

    def __init__(self, message: str, status: int = 0) -> None:  # 0: one process gets it from another, with the status behind
        super().__init__(message)
        self.status = status


class Service:
    """A service at a URL.

    Args:
        kind: what messages call it: reward, for example.
        section: the settings that it comes from.
        url: without a user, password or query.
        timeout: seconds that a request may take, from the look-up of its host to the last byte of the answer.
        retries, backoff: further tries, and seconds before the first of them; doubled before each other, up to `MAX_WAIT`.
        token_env: name of the environment variable that holds a token.

    Raises:
        ConfigError: that variable is not set, or holds no token.
    """

    def __init__(
        self, kind: str, section: str, url: str, *, timeout: float, retries: int, backoff: float, token_env: str | None = None
    ) -> None:
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self.label, self._url = f"{kind} {self.name}", url
        self.timeout, self._retries, self._backoff = timeout, retries, backoff
        self._token = _token(section, token_env)
        self._opener = urllib.request.build_opener(_NoRedirects())

    def ask(self, body: Any = None, path: str = "", tell: Callable[[str], None] = lambda _: None) -> Any:
        """The answer to one request, as JSON, tried again where that may help.

        Raises:
            Unanswered: no answer after all tries.
            RunError: one that is an error or no JSON.
        """
        return self.retried(lambda: self.once(body, path), tell)

    def retried(self, call: Callable[[], Any], tell: Callable[[str], None] = lambda _: None) -> Any:
        """``call()``, again as often as the settings allow if it raises one of `UNREACHED`; ``tell`` is told of each wait.

        Raises:
            Unanswered: after the last.
        """
        tries = 0
        while True:
            try:
                return call()
            except UNREACHED as error:
                tries, why = tries + 1, str(error) or type(error).__name__
                left = self._retries + 1 - tries
                if not left:
                    times = plural(tries, "try", "tries")
                    raise Unanswered(
                        f"{self.label}: no answer after {times}; the last: {why}. Is the service up? See url, timeout and retries"
                    ) from error
            wait = min(MAX_WAIT, self._backoff * 2 ** (tries - 1))
            tell(f"{self.label}: {why}; asked again in {wait:g} s, {plural(left, 'try', 'tries')} left")
            time.sleep(wait)

    def once(self, body: Any = None, path: str = "", parsed: bool = True) -> Any:
        """The answer to one request, as JSON or, not ``parsed``, as it is: a ``POST`` with a body, else a ``GET``.

        Raises:
            OSError, HTTPException: another try may go better.
            Refused: HTTP 4xx.
            RunError: a redirect, too long, no JSON.
        """
        answer = self.start(body, path)
        return self.result(answer) if parsed else self._wait(answer)

    def start(self, body: Any = None, path: str = "") -> Future[bytes]:
        """Send one request; :meth:`result` waits for its answer. A late thread is left behind; it ends with its connection."""
        answer: Future[bytes] = Future()
        data = None if body is None else json.dumps(body, default=str).encode()

        def ask() -> None:
            try:
                answer.set_result(self._try(data, path))
            except BaseException as error:  # whatever it is, it belongs to the thread that waits
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        return answer

    def result(self, answer: Future[bytes]) -> Any:
        """The answer to a request that was started, as JSON; see :meth:`once`."""
        raw = self._wait(answer)
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise RunError(f"{self.label}: answered with no JSON: {self._shown(raw)}") from None

    def _wait(self, answer: Future[bytes]) -> bytes:
        """An answer within ``timeout``: the library's own timeout is for each read, and a service may send a byte a second."""
        try:
            raw = answer.result(self.timeout)
        except (TimeoutError, concurrent.futures.TimeoutError) as error:  # the same one from Python 3.11 on
            raise TimeoutError(f"the answer took longer than {self.timeout:g} s") from error
        # a service that repeats the token must not bring it into a message
        return raw.replace(self._token.encode(), b"***") if self._token else raw

    def _try(self, data: bytes | None, path: str) -> bytes:
        """One request. Raises OSError or HTTPException where another may go better."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        method = "GET" if data is None else "POST"
        request = urllib.request.Request(self._url.rstrip("/") + path if path else self._url, data, headers, method=method)
        end = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                return self._read(answer, end)
        except urllib.error.HTTPError as error:
            with error:
                answered = f"HTTP {error.code} {error.reason}: {self._shown(error.read(4 * SHOWN))}".rstrip(": ")
            if error.code == 429 or error.code >= 500:
                raise OSError(answered) from error
            if 300 <= error.code < 400:
                to = urlsplit(error.headers.get("Location", ""))
                place = f"{to.hostname or urlsplit(self.name).netloc}{to.path}"
                raise RunError(
                    f"{self.label}: redirects to {place}, which is not followed; if that is right, set url to it"
                ) from error
            raise Refused(f"{self.label}: answered {answered}", error.code) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise error.reason from None
            raise OSError(str(error.reason) or "no connection") from error

    def _read(self, answer: http.client.HTTPResponse, end: float) -> bytes:
        read = bytearray()
        while chunk := answer.read1(2**16):
            read += chunk
            if len(read) > MAX_BYTES:
                raise RunError(f"{self.label}: answered with more than {MAX_BYTES:,} bytes; is that the right address?")
            if time.monotonic() > end:
                raise TimeoutError
        if answer.length:  # bytes that the headers promised
            raise http.client.IncompleteRead(bytes(read), answer.length)
        return bytes(read)

    def _shown(self, raw: bytes) -> str:
        """The beginning of an answer, on one line and without the token."""
        text = " ".join(raw[: 4 * SHOWN].decode("utf-8", "replace").split())
        return (text.replace(self._token, "***") if self._token else text)[:SHOWN]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        """None: the redirect is an error like any other."""


def _token(section: str, variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(f"{section}.token_env: the environment variable {variable} is not set")
    if not token.isascii() or not token.isprintable():
        raise ConfigError(f"{section}.token_env: {variable} holds characters that cannot be in a header")
    return token
