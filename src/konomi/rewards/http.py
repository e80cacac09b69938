"""A service over HTTP as a reward.

It gets a batch of texts at a time by ``POST``, in JSON::

    {"version": 1, "texts": [...], "prompts": [...], "responses": [...], "columns": {"name": [...]}}

and answers ``{"scores": [...]}``, or the list alone: a number a text, or for a text a list of pairs ``[end, score]``.
Redirects are not followed: texts and token go to the given address and nowhere else.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

from konomi import config as configuration
from konomi.errors import ConfigError, ModelError, RunError
from konomi.rewards.base import Columns, Texts, TextScore, ask, check_scores
from konomi.text import plural

VERSION = 1  # of what is posted
MAX_BYTES = 2**24  # of an answer
MAX_WAIT = 30.0  # seconds between two tries
SHOWN = 200  # characters of an answer in a message


class HttpReward:
    """Posts the texts to ``url`` and takes the scores from the answer.

    Retries, with waits that double, when the service cannot be reached, takes longer than ``timeout``, or answers 429 or 5xx.
    """

    def __init__(self, config: configuration.HttpReward) -> None:
        self._config = config
        parts = urlsplit(config.url)
        self.name = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self._token = _token(config.token_env)
        self._opener = urllib.request.build_opener(_NoRedirects())

    def probe(self, columns: Iterable[str]) -> None:
        """Ask for the score of one text, before a model is loaded; ``columns`` as in :func:`konomi.rewards.build_reward`.

        Raises:
            ModelError: it does not answer, or not with a score.
        """
        row: Mapping[str, Any] = columns if isinstance(columns, Mapping) else dict.fromkeys(columns)
        try:
            ask(self, ["ab"], prompts=["a"], responses=["b"], columns={name: [value] for name, value in row.items()})
        except RunError as error:
            raise ModelError(f"reward.url: {error}") from error

    def __call__(self, texts: Texts, *, prompts: Texts, responses: Texts, columns: Columns) -> list[TextScore]:
        """Return the service's score of each text.

        Raises:
            RunError: it does not answer, or not with one finite number (or pairs) a text.
        """
        result: list[Any] = []
        for start in range(0, len(texts), self._config.batch_size):
            part = slice(start, start + self._config.batch_size)
            body: dict[str, Any] = {
                "version": VERSION,
                "texts": list(texts[part]),
                "prompts": list(prompts[part]),
                "responses": list(responses[part]),
                "columns": {name: [_jsonable(value) for value in column[part]] for name, column in columns.items()},
            }
            answer = self._post(json.dumps(body, default=str).encode())
            scores = answer.get("scores") if isinstance(answer, dict) else answer
            if not isinstance(scores, list) or len(scores) != len(body["texts"]):
                what = plural(len(scores), "score") if isinstance(scores, list) else f"no list of scores: {str(answer)[:SHOWN]}"
                raise RunError(f"reward {self.name}: answered with {what}, for {len(body['texts'])} texts")
            result += scores
        return check_scores(result, responses, self.name, texts)

    def _post(self, data: bytes) -> Any:
        """The answer to one request, as JSON."""
        tries = self._config.retries + 1
        for number in range(tries):
            if number:
                time.sleep(min(MAX_WAIT, self._config.backoff * 2 ** (number - 1)))
            try:
                raw = self._within(data)
                break
            except (OSError, http.client.HTTPException) as error:
                last = error
        else:
            times, why = plural(tries, "try", "tries"), str(last) or type(last).__name__
            raise RunError(
                f"reward {self.name}: no answer after {times}; the last: {why}. Is the service up? See url, timeout and retries"
            ) from last
        if self._token:  # a service that repeats it must not bring it into a message
            raw = raw.replace(self._token.encode(), b"***")
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise RunError(f"reward {self.name}: answered with no JSON: {self._shown(raw)}") from None

    def _within(self, data: bytes) -> bytes:
        """One request within ``timeout``: the library's own timeout is for each read, and a service may send a byte a second. A
        late thread is left behind; it ends with its connection."""
        answer: Future[bytes] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._try(data))
            except BaseException as error:  # whatever it is, it belongs to the thread that waits
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            return answer.result(self._config.timeout)
        except (TimeoutError, concurrent.futures.TimeoutError) as error:  # the same one from Python 3.11 on
            raise TimeoutError(f"the answer took longer than {self._config.timeout:g} s") from error

    def _try(self, data: bytes) -> bytes:
        """One request. Raises OSError or HTTPException where another may go better."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._config.url, data, headers, method="POST")
        end = time.monotonic() + self._config.timeout
        try:
            with self._opener.open(request, timeout=self._config.timeout) as answer:
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
                    f"reward {self.name}: redirects to {place}, which is not followed; if that is right, set url to it"
                ) from error
            raise RunError(f"reward {self.name}: answered {answered}") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise error.reason from None
            raise OSError(str(error.reason) or "no connection") from error

    def _read(self, answer: http.client.HTTPResponse, end: float) -> bytes:
        read = bytearray()
        while chunk := answer.read1(2**16):
            read += chunk
            if len(read) > MAX_BYTES:
                raise RunError(f"reward {self.name}: answered with more than {MAX_BYTES:,} bytes; is that the right address?")
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


def _token(variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(f"reward.token_env: the environment variable {variable} is not set")
    if not token.isascii() or not token.isprintable():
        raise ConfigError(f"reward.token_env: {variable} holds characters that cannot be in a header")
    return token


def _jsonable(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
