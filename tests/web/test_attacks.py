"""Another site in the same real browser, in which the owner is signed in: what it tries against the server comes to nothing."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from konomi.labelling.answers import collect
from konomi.labelling.people import all_people

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make install-dev")

from playwright.sync_api import BrowserContext, Page, sync_playwright

from browsing import CHROMIUM, Server, project_of

if CHROMIUM is None:
    pytest.skip("there is no chromium: apt-get install chromium (make install-dev does so as root)", allow_module_level=True)

REBOUND = "evil.test"
"""A name that the browser finds at this machine: DNS that was changed after the page was loaded."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(
        project_of(tmp_path_factory.mktemp("attack") / "project", [["良い文", "悪い文"], ["長い文", "短い文"]])
    ) as server:
        yield server


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of another site: another port of this machine is another origin, and the same site."""
    where = tmp_path_factory.mktemp("evil")
    (where / "index.html").write_text("<!doctype html><title>evil</title><body>evil", encoding="utf-8")
    handler = functools.partial(Quiet, directory=str(where))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_address[1]}"
        site.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def signed_in(server: Server) -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        rules = f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules])
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.start)
        page.wait_for_url("**/guidelines")
        page.locator("#seen").click()
        page.locator(".card").first.wait_for()
        yield context
        browser.close()


@pytest.fixture(params=["the same site", "another site", "a name that leads here"])
def attacker(request: pytest.FixtureRequest, signed_in: BrowserContext, server: Server, evil: str) -> Iterator[Page]:
    page = signed_in.new_page()
    port = evil.rsplit(":", 1)[1]
    places = {
        "the same site": evil,
        "another site": f"http://localhost:{port}",
        "a name that leads here": f"http://{REBOUND}:{port}",
    }
    page.goto(places[request.param])
    yield page
    page.close()


def state(server: Server) -> Any:
    """All that an attack might change."""
    assert server.project is not None
    with server.project.store() as store:
        return len(collect(store).judgements), store.frozen, [(each.name, each.active) for each in all_people(store)]


SENT = """async ([address, method, body, type, mode]) => {
    try {
        const headers = type ? {'content-type': type} : {};
        const reply = await fetch(address, {method, body, headers, mode, credentials: 'include'});
        return [reply.type, reply.type === 'opaque' ? '' : await reply.text()];
    } catch (error) { return ['error', '']; }
}"""


@pytest.mark.parametrize("mode", ["cors", "no-cors"])
def test_requests_of_another_page_change_nothing_and_say_nothing(server: Server, attacker: Page, mode: str) -> None:
    before = state(server)
    asked = [
        ("POST", "/api/freeze", {"frozen": True}), ("POST", "/api/people", {"name": "mallory"}),
        ("POST", "/api/me", {"shortcuts": False}),
        ("GET", "/api/people", None), ("GET", "/api/next", None), ("GET", "/api/mine", None),
    ]  # fmt: skip
    if mode == "cors":
        asked += [("DELETE", "/api/people/p-1", None), ("PUT", "/api/freeze", {"frozen": True})]
    for method, path, body in asked:
        for kind in ("application/json", "text/plain", ""):
            sent = None if body is None else json.dumps(body)
            found, text = attacker.evaluate(SENT, [server.address + path, method, sent, kind, mode])
            assert found in ("error", "opaque") and text == "", (method, path, kind, text)
    assert state(server) == before


def test_forms_and_beacons_change_nothing(server: Server, attacker: Page) -> None:
    before = state(server)
    assert attacker.evaluate(
        "address => navigator.sendBeacon(address + '/api/freeze', new Blob(['{\"frozen\": true}'], {type: 'text/plain'}))",
        server.address,
    )
    with attacker.expect_navigation() as arrived:
        attacker.evaluate(
            """address => {
                const form = document.createElement('form');
                Object.assign(form, {method: 'post', action: address + '/api/freeze', enctype: 'text/plain'});
                const field = document.createElement('input');
                Object.assign(field, {name: '{"frozen": true, "x": "', value: '"}'});
                form.append(field);
                document.body.append(form);
                form.submit();
            }""",
            server.address,
        )
    assert arrived.value is not None and arrived.value.status in (401, 403)
    assert state(server) == before


def test_nothing_is_read_through_frames_scripts_and_pictures(server: Server, attacker: Page) -> None:
    found = attacker.evaluate(
        """address => Promise.all(['iframe', 'script', 'img', 'link'].map(kind => new Promise(done => {
            const element = document.createElement(kind);
            if (kind === 'link') Object.assign(element, {rel: 'stylesheet', href: address + '/static/label.css'});
            else element.src = address + (kind === 'img' ? '/static/icon.svg' : kind === 'script' ? '/static/rank.js' : '/');
            element.onload = () => done(kind === 'iframe' ? String(element.contentDocument) : 'loaded');
            element.onerror = () => done('refused');
            document.body.append(element);
            setTimeout(() => done('nothing'), 20000);
        })))""",
        server.address,
    )
    assert found[0] in ("null", "refused", "nothing")  # another origin's: what is in it is out of reach
    assert found[1:] == ["refused"] * 3
    frame = next((each for each in attacker.frames if each.url != attacker.url), None)
    assert frame is None or frame.locator(".card").count() == 0  # and it shows nothing that could be clicked


def test_a_name_that_leads_to_this_machine_opens_nothing(server: Server, signed_in: BrowserContext) -> None:
    page = signed_in.new_page()
    port = server.address.rsplit(":", 1)[1]
    for path in ("/", "/api/next", "/static/rank.js", "/start/start-secret"):
        reply = page.goto(f"http://{REBOUND}:{port}{path}")
        assert reply is not None and reply.status == 421, path
    page.close()
