"""Rewards over HTTP, against a real server in a thread."""

from __future__ import annotations

import datetime
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from konomi import service as module
from konomi.config import HttpReward as Config
from konomi.errors import ConfigError, ModelError, RunError
from konomi.rewards import build_judges, build_reward
from konomi.rewards.base import evaluate
from konomi.rewards.http import HttpReward

Answer = Callable[[dict[str, Any], BaseHTTPRequestHandler], Any]
SECRET = "s3cret-token"


class Service:
    """A server that answers each request by the next of ``answers``, the last of them for ever."""

    def __init__(self, *answers: Answer | Any) -> None:
        self.answers, self.requests, self.headers = list(answers), [], []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append(body)
                service.headers.append(dict(self.headers))
                answer = service.answers.pop(0) if len(service.answers) > 1 else service.answers[0]
                said = answer(body, self) if callable(answer) else answer
                if said is not None:
                    send(self, 200, said if isinstance(said, bytes) else json.dumps(said).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/score"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    requests: list[dict[str, Any]]
    headers: list[dict[str, str]]

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    for name, value in {"Content-Length": str(len(body)), **given}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def fails(status: int, body: bytes = b"", **headers: str) -> Answer:
    return lambda _, handler: send(handler, status, body, **headers)


def lengths(body: dict[str, Any], _: Any) -> dict[str, Any]:
    return {"scores": [len(text) for text in body["texts"]]}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Service]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    services: list[Service] = []

    def start(*answers: Answer | Any) -> Service:
        services.append(Service(*answers))
        return services[-1]

    yield start
    for service in services:
        service.stop()


def reward(service: Service, **settings: Any) -> HttpReward:
    return HttpReward(Config(kind="http", url=service.url, **{"backoff": 0.0, "timeout": 10.0, **settings}))


def call(made: HttpReward, count: int = 3, **columns: list[Any]) -> list[Any]:
    prompts, responses = ["今日は"] * count, [f"晴れ{'。' * i}" for i in range(count)]
    texts = [p + r for p, r in zip(prompts, responses, strict=True)]
    return made(texts, prompts=prompts, responses=responses, columns=columns)


def refused(made: HttpReward, count: int = 3) -> str:
    with pytest.raises(RunError) as caught:
        call(made, count)
    assert str(caught.value).startswith(f"reward {made.name}: ")
    return str(caught.value)


# -- what is asked and answered ----------------------------------------------------------------------------------------


def test_what_is_posted(serve: Any) -> None:
    service = serve(lengths)
    assert call(reward(service), 2, topic=["x", None], weight=[1.5, float("nan")]) == [5.0, 6.0]
    assert service.requests == [
        {
            "version": 1,
            "texts": ["今日は晴れ", "今日は晴れ。"],
            "prompts": ["今日は", "今日は"],
            "responses": ["晴れ", "晴れ。"],
            "columns": {"topic": ["x", None], "weight": [1.5, None]},
        }
    ]
    assert service.headers[0]["Content-Type"] == "application/json"
    assert "Authorization" not in service.headers[0]


def test_texts_go_in_batches(serve: Any) -> None:
    service = serve(lengths)
    assert call(reward(service, batch_size=3), 7, topic=list("abcdefg")) == [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]
    assert [request["columns"]["topic"] for request in service.requests] == [list("abc"), list("def"), ["g"]]
    assert call(reward(service), 0) == []


def test_bare_lists_pairs_lone_surrogates_and_dates(serve: Any) -> None:
    service = serve([1, 2.5], {"scores": [[[2, 0.5], [0, 1]], 3.0]}, [1.0])
    assert call(reward(service), 2) == [1.0, 2.5]
    assert call(reward(service), 2) == [[(2, 0.5), (0, 1.0)], 3.0]
    day = datetime.date(2026, 1, 2)
    assert reward(service)(["\ud800"], prompts=["\ud800"], responses=[""], columns={"day": [day]}) == [1.0]
    assert service.requests[2]["texts"] == ["\ud800"] and service.requests[2]["columns"] == {"day": ["2026-01-02"]}


def test_a_token_comes_from_the_environment(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in no message, though the service repeat it."""
    monkeypatch.setenv("MY_TOKEN", f" {SECRET}\n")
    service = serve(lengths)
    call(reward(service, token_env="MY_TOKEN"))
    assert service.headers[0]["Authorization"] == f"Bearer {SECRET}"
    repeats = {"error": f"bad Bearer {SECRET}"}, [1, 2, SECRET], f"no JSON: {SECRET}".encode(), fails(400, SECRET.encode())
    for answer in repeats:
        message = refused(reward(serve(answer), token_env="MY_TOKEN"))
        assert SECRET not in message and "***" in message


def test_a_token_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    for value, problem in (
        (None, "the environment variable MY_TOKEN is not set"), ("  ", "the environment variable MY_TOKEN is not set"),
        ("a\nb", "MY_TOKEN holds characters that cannot be"), ("é", "MY_TOKEN holds characters that cannot be in a header"),
    ):  # fmt: skip
        if value is not None:
            monkeypatch.setenv("MY_TOKEN", value)
        with pytest.raises(ConfigError, match=f"^reward.token_env: {problem}"):
            HttpReward(Config(kind="http", url="http://localhost:1/", token_env="MY_TOKEN"))


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_service_that_is_busy_or_hangs_up_is_asked_again(serve: Any) -> None:
    def hangs_up(_: Any, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True

    def breaks_off(_: Any, handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, b"[1, 2", Content_Length="100")
        handler.close_connection = True

    service = serve(fails(429), fails(500), fails(503), hangs_up, breaks_off, lengths)
    assert call(reward(service, retries=5)) == [5.0, 6.0, 7.0]
    assert len(service.requests) == 6 and service.requests[0] == service.requests[5]
    assert "the last: IncompleteRead(5 bytes read, 95 more expected)" in refused(reward(serve(breaks_off), retries=0))


def test_a_service_that_stays_broken_is_told_with_its_last_words(serve: Any) -> None:
    service = serve(fails(500, b"first"), fails(503, b"out of\nmemory"))
    message = refused(reward(service, retries=3))
    assert "no answer after 4 tries; the last: HTTP 503 Service Unavailable: out of memory. Is the service up?" in message
    assert len(service.requests) == 4
    down = Config(kind="http", url="http://127.0.0.1:9/", backoff=0.0, retries=0)  # no one listens there
    assert "no answer after 1 try; the last: [Errno" in refused(HttpReward(down))


def test_a_service_that_is_slow(serve: Any) -> None:
    done = threading.Event()

    def never(_: Any, handler: BaseHTTPRequestHandler) -> None:
        done.wait(20)

    def drips(_: Any, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(200):
            if done.wait(0.02):
                return
            handler.wfile.write(b" ")

    def drips_headers(_: Any, handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
        while not done.wait(0.02):
            handler.wfile.write(b"x")
        handler.close_connection = True

    for slow in (never, drips, drips_headers):
        message = refused(reward(serve(slow), retries=0, timeout=0.25))
        assert "no answer after 1 try; the last: the answer took longer than 0.25 s. Is the service up?" in message
    service = serve(never, lengths)
    assert call(reward(service, timeout=1.0, retries=1)) == [5.0, 6.0, 7.0]
    done.set()


def test_what_else_goes_wrong_while_it_is_asked_is_raised_as_it_is(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> bytes:
        raise MemoryError("no room for the answer")

    made = reward(serve(lengths), retries=0, timeout=5)
    monkeypatch.setattr(http.client.HTTPResponse, "read1", breaks)
    with pytest.raises(MemoryError, match="no room for the answer"):
        call(made)


def test_waits_double_up_to_a_limit(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    refused(reward(serve(fails(500)), retries=7, backoff=1.5))
    assert waits == [1.5, 3.0, 6.0, 12.0, 24.0, 30.0, 30.0]


def test_other_errors_and_redirects_stop_at_once(serve: Any) -> None:
    for status in (400, 401, 404, 422):
        service = serve(fails(status, "だめ".encode() + b"x" * 500))
        message = refused(reward(service))
        assert f": answered HTTP {status} " in message and message.endswith("だめ" + "x" * 198)
        assert len(service.requests) == 1
    other = serve(lengths)
    for status in (301, 302, 303, 307, 308):
        service = serve(fails(status, Location=other.url.replace("http://", "http://user:pw@")))
        message = refused(reward(service))
        assert "redirects to 127.0.0.1/score, which is not followed; if that is right, set url to it" in message
    assert other.requests == []


def test_answers_that_are_no_scores(serve: Any) -> None:
    for answer, part in (
        (b"<html>hello\n you</html>", "answered with no JSON: <html>hello you</html>"),
        (b"", "answered with no JSON: "),
        (b"[" * 200_000, "answered with no JSON: ["),
        ([1, 2], "answered with 2 scores, for 3 texts"),
        ({"score": [1, 2, 3]}, "answered with no list of scores: {'score': [1, 2, 3]}, for 3 texts"),
        (7, "answered with no list of scores: 7"),
        ([1, 2, None], "returned None for text 2 ('今日は晴れ。。'); a finite number is needed"),
        (b"[1, 1e999, 3]", "returned inf for text 1"),
        ([1, [[9, 1.0]], 3], "returned [[9, 1.0]] for text 1"),
    ):
        service = serve(answer)
        assert part in refused(reward(service))
        assert len(service.requests) == 1
    service = serve([1, 2], [3, None])  # the place is that in the whole batch
    assert "returned None for text 3" in refused(reward(service, batch_size=2), 4)


def test_an_answer_without_end_is_not_read(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    assert "answered with more than 10,000 bytes" in refused(reward(serve(b"[" + b"0," * 100_000)))
    assert call(reward(serve(b"[1, 2, 3" + b" " * 9_000 + b"]"))) == [1.0, 2.0, 3.0]


# -- before a run ------------------------------------------------------------------------------------------------------


def test_a_service_is_asked_once_before_a_run(serve: Any) -> None:
    service = serve(lengths)
    config = Config(kind="http", url=service.url, backoff=0.0)
    made = build_reward(config, columns={"topic": "weather"})
    build_reward(config, columns=["topic"])
    build_reward(config)
    assert [request["columns"] for request in service.requests] == [{"topic": ["weather"]}, {"topic": [None]}, {}]
    assert {len(request["texts"]) for request in service.requests} == {1}
    said = evaluate(made, ["a", "b"], ["c", ""], {}, save_to=None)
    assert said.totals == [2.0, 1.0]


def test_a_service_that_does_not_answer_is_told_before_a_run(serve: Any) -> None:
    service = serve(fails(500, b"no model"))
    config = Config(kind="http", url=service.url, backoff=0.0, retries=1)
    with pytest.raises(ModelError, match=r"^reward\.url: reward http://127.*after 2 tries; the last: HTTP 500.*no model"):
        build_reward(config)
    with pytest.raises(ModelError, match=r"^judges\.strict\.url: reward http://127"):
        build_judges({"strict": config})
