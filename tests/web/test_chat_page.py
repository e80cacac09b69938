"""Conversations with a model on the page: the JSON, one answer at a time, errors; and in Chromium with a real model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from konomi.config import ModelConfig
from konomi.data.records import Candidate, Prompt
from konomi.errors import ConfigError
from konomi.labelling.project import Project, create_project
from konomi.labelling.queue import Settings
from konomi.labelling.records import ChatOptions
from label_site import Site, answer_to, make_project, refusal, wait_for

MODEL = "models/tsubaki-chat"


class Slow:
    """A policy that answers when it is let."""

    def __init__(self) -> None:
        self.let = threading.Semaphore(0)
        self.asked: list[tuple[str, list[int]]] = []
        self.same, self.error = 0, None

    def drawn(self, prompt: Prompt, streams: Sequence[int]) -> list[Candidate]:
        assert self.let.acquire(timeout=60)
        self.asked.append((prompt.text, list(streams)))
        if self.error:
            raise self.error
        self.same -= 1
        return [Candidate("same" if self.same >= 0 else f"answer {stream}", {"model": MODEL}) for stream in streams]


def talks(path: Path, model: str = MODEL) -> Project:
    options = ChatOptions(model=model, tokens=12)
    return create_project(path, None, settings=Settings(overlap=1.0, repeats=0.0), chat=options, models=[model])[0]


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def site(tmp_path: Path, slow: Slow) -> Iterator[Site]:
    with Site(talks(tmp_path / "P"), policy=slow) as made:
        yield made


def until(client: Any, state: str) -> Any:
    def there() -> Any:
        said = client.get("/api/chat").json()
        return said if said["state"] == state else None

    return wait_for(there)


def test_one_after_the_other(site: Site, slow: Slow) -> None:
    hana, jiro = site.person("Hana"), site.person("Jiro")
    assert hana.get("/api/chat").json()["turn"] is None
    for client, text in ((hana, "Hey"), (jiro, "Hello")):
        assert client.post("/api/chat", json={"text": text}).json() == {"asked": True}
    assert until(hana, "writing")["ahead"] == 0
    assert jiro.get("/api/chat").json()["state"] == "waiting" and jiro.get("/api/chat").json()["ahead"] == 1
    assert refusal(hana.post("/api/chat", json={"text": "More"})) == (409, "chat_busy")
    assert jiro.get("/api/progress").status_code == 200  # nothing waits for the model
    slow.let.release()
    turn = until(hana, "idle")["turn"]
    assert (turn["talk"], turn["id"]) == ([{"role": "user", "text": "Hey"}], turn["task"]["id"])
    assert refusal(hana.post("/api/chat", json={"text": "More", "after": turn["id"]})) == (409, "chat_open")
    assert MODEL not in hana.get("/api/chat").text
    answer = answer_to(turn["task"])
    assert hana.post("/api/answers", json=answer).json()["saved"] is True
    turn = hana.get("/api/chat").json()["turn"]
    assert turn["task"] is None and [each["role"] for each in turn["talk"]] == ["user", "assistant"]
    slow.same = 1
    slow.let.release(5)
    assert until(jiro, "idle")["turn"]["talk"] == [{"role": "user", "text": "Hello"}]
    tries = [streams for text, streams in slow.asked if text == "Hello"]
    assert len(tries) == 2 and len({stream for each in tries for stream in each}) == 4  # drawn anew, as both were the same
    assert refusal(jiro.post("/api/chat", json={"text": "x", "after": turn["id"]})) in ((404, "unknown_task"), (409, "chat_open"))


def test_what_goes_wrong_is_said_in_both_languages(site: Site, slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    client = site.person("Hana")
    slow.let.release(100)
    for error, same, code in (
        (None, 99, "chat_same"), (ConfigError("too many tokens"), 0, "chat_long"), (ValueError("\x1b[2J"), 0, "chat_failed"),
    ):  # fmt: skip
        slow.error, slow.same = error, same
        assert client.post("/api/chat", json={"text": "Hey"}).status_code == 200
        said = until(client, "failed")
        assert (said["error"]["code"], set(said["error"]["messages"]), said["turn"]) == (code, {"ja", "en"}, None)
        assert client.get("/api/chat").json()["state"] == "idle"  # it is said once
    assert "Traceback" in caplog.text and "\x1b" not in caplog.text  # the owner's terminal
    for body, expected in (
        ({"text": " "}, (422, "bad_message")), ({"text": "x" * 4001}, (422, "bad_message")), ({}, (400, "bad_request")),
        ({"text": "x", "after": "y"}, (404, "unknown_task")), ({"text": 7}, (400, "bad_request")),
    ):  # fmt: skip
        assert refusal(client.post("/api/chat", json=body)) == expected
    # another person has signed in to the browser: the message is not theirs
    assert refusal(client.post("/api/chat", json={"text": "Hey", "person": "p-0"})) == (401, "no_access")
    site.site.store.freeze()
    assert refusal(client.post("/api/chat", json={"text": "Hey"})) == (409, "frozen")
    assert site.client().get("/api/chat").status_code == site.client().post("/api/chat", json={"text": "Hey"}).status_code == 401


def test_a_server_that_ends_waits_for_no_model(tmp_path: Path, slow: Slow) -> None:
    with Site(talks(tmp_path / "P"), policy=slow) as site:
        client = site.person("Hana")
        client.post("/api/chat", json={"text": "Hey"})
        until(client, "writing")
    slow.let.release()  # what it writes now is not kept
    with pytest.raises(ConfigError, match="raters of this project talk with a model"):
        Site(site.project)
    with Site(make_project(tmp_path / "Q")) as other:
        assert refusal(other.owner().get("/api/chat")) == (404, "not_found")


def test_a_talk_in_the_browser(tmp_path: Path, visit: Callable[..., Any]) -> None:
    from playwright.sync_api import expect

    from browsing import PHONE, Server, clean
    from chat_layouts import save_chat
    from konomi.jobs.revisit import Writer
    from konomi.runs.observer import Observer

    model = str(save_chat(tmp_path / "chat", "qwen3"))
    policy = Writer(ModelConfig(name=model), 12, 1.0, 0, Observer())
    with Server(talks(tmp_path / "project", model), policy=policy) as server:
        page = visit(server.start, viewport=PHONE)
        page.wait_for_url("**/guidelines")
        page.locator("#seen").click()
        message, choice = page.locator("#message"), page.locator("#choice")
        expect(page.locator("#send")).to_be_disabled()
        message.fill("<b onclick='window.pwned = 1'>こんにちは</b>")
        clean(page)
        page.keyboard.press("Control+Enter")
        expect(choice).to_be_visible()
        expect(page.locator("#answers .card")).to_have_count(2)
        expect(page.locator(".turn.user .text")).to_have_text("<b onclick='window.pwned = 1'>こんにちは</b>")
        clean(page)
        page.reload()  # what waits for a choice is still there
        chosen = page.locator("#answers .card").nth(1).locator(".text")
        expect(chosen).to_be_visible()
        text = chosen.inner_text()
        page.context.set_offline(True)
        page.keyboard.press("2")
        expect(page.locator("#state")).to_have_attribute("data-state", "offline")
        page.context.set_offline(False)
        expect(page.locator(".turn.assistant .text")).to_have_text(text)
        expect(message).to_be_focused()
        page.locator('.languages [value="en"]').click()
        message.fill("and then?")
        page.set_viewport_size({"width": 1280, "height": 900})
        page.locator("#send").click()
        expect(choice).to_be_visible()
        expect(page.locator("#answers .card").first).to_be_focused()
        expect(page.locator("#choice-title")).to_have_text("Which answer is better?")
        expect(page.locator(".turn")).to_have_count(3)
        clean(page)
        page.locator("#shortcuts").uncheck()
        page.keyboard.press("0")
        expect(choice).to_be_visible()
        page.locator("#shortcuts").check()
        page.keyboard.press("0")
        expect(page.locator(".turn")).to_have_count(4)
        page.locator("#fresh").click()
        expect(page.locator(".turn")).to_have_count(0)
        # the server has the message, but its response is lost; another window is shown the answers and keeps what was written
        other = page.context.new_page()
        other.goto(server.address)
        other.locator("#message").fill("unsent")
        page.route("**/api/chat", lambda route: (route.fetch(), route.abort()), times=1)
        message.fill("again")
        page.locator("#send").click()
        expect(choice).to_be_visible()
        expect(message).to_have_value("")
        other.locator("#send").click()
        other.locator('[data-act="all_bad"]').click()
        expect(other.locator("#mine")).to_have_text("Chosen so far: 3")
        expect(other.locator("#message")).to_have_value("unsent")
        said = server.judgements()
        assert [judgement.kind for _, judgement in said] == ["ranked", "ranked", "all_bad"]
        first, second, third = (item.messages for item, _ in said)
        assert first[0]["content"].startswith("<b onclick") and len(second) == 3 and len(third) == 1
        assert said[1][1].ranks == (1, 1)
        assert page.evaluate("window.pwned") is None
