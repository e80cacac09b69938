"""Who may ask: an attack list against the real app, and against a real server where bytes on the wire matter."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from konomi.labelling.people import add_person, all_people, find_person
from konomi.labelling.project import open_project
from konomi.runs.directory import RunDir
from konomi.web import api, network, security
from konomi.web import app as app_module
from konomi.web.errors import catalogue
from konomi.web.network import listen
from konomi.web.security import BODY_LIMIT, HEADERS, Hosts, RateLimiter
from konomi.web.serve import _server
from label_site import BASE, OURS, Server, Site, answer_to, make_project, refusal, serving, wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    project = make_project(tmp_path_factory.mktemp("server") / "P")
    with serving("label", str(project.path)) as running:
        yield running


def bare(site: Site, client: TestClient) -> TestClient:
    """The same session, with no header that says where a request comes from."""
    made = TestClient(site.app, base_url=BASE)
    made.cookies = client.cookies
    return made


ORIGINS: list[tuple[dict[str, str], bool]] = [
    ({"sec-fetch-site": "same-origin"}, True),
    ({"origin": BASE}, True),
    ({"sec-fetch-site": "same-origin", "origin": "http://evil.example"}, True),  # browsers alone set the first
    ({}, False),
    ({"sec-fetch-site": "cross-site"}, False),
    ({"sec-fetch-site": "same-site", "origin": BASE}, False),
    ({"sec-fetch-site": "none"}, False),
    ({"origin": "http://evil.example"}, False),
    ({"origin": "http://127.0.0.1:9999"}, False),
    ({"origin": "https://127.0.0.1:8000"}, False),
    ({"origin": "null"}, False),
    ({"referer": f"{BASE}/"}, False),
]
"""Headers of a request, and whether it may change something."""


def test_what_changes_something_comes_from_our_pages(site: Site) -> None:
    client = bare(site, site.owner())
    for number, (headers, allowed) in enumerate(ORIGINS):
        response = client.post("/api/people", json={"name": f"p{number}"}, headers=headers)
        assert response.status_code == 200 if allowed else refusal(response) == (403, "cross_site"), headers
    assert [person.name for person in all_people(site.site.store)] == ["owner", "p0", "p1", "p2"]
    for method in ("PUT", "PATCH", "OPTIONS", "DELETE", "POST", "TRACE", "BREW"):
        response = client.request(method, "/api/people", headers={"origin": "http://evil.example"})
        assert response.status_code == 403, method
        assert not [name for name in response.headers if name.startswith("access-control-")], method


def test_other_pages_may_not_even_ask_for_data(site: Site) -> None:
    client = bare(site, site.owner())
    assert client.get("/api/next", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.get("/api/next", headers={"sec-fetch-site": "none"}).status_code == 200


def test_host_names(site: Site) -> None:
    client = site.owner()
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "evil@127.0.0.1", "192.168.1.5",
                 "[::2]", "a b", "", "127.0.0.1:8000:8000", "127.0.0.1/", "0x7f.1"):  # fmt: skip
        for path in ("/", "/api/next", "/static/nothing.js", f"/start/{site.site.start}"):
            response = client.get(path, headers={"host": host})
            assert response.status_code == 421, (host, path)
            assert "set-cookie" not in response.headers
    for host in ("127.0.0.1:8000", "localhost:1", "LOCALHOST", "[::1]:8000"):
        assert site.owner().get("/api/me", headers={"host": host}).status_code == 200, host


def test_on_a_network_numbers_and_given_names_alone() -> None:
    hosts = Hosts(["lab.example"], any_address=True)
    assert all(host in hosts for host in ("192.168.1.5:80", "[fe80::1]", "Lab.Example", "localhost"))
    assert not any(host in hosts for host in ("evil.example", "192.168.1.5.evil.example", "1.2.3.4.5"))


def test_without_a_token_nothing(site: Site) -> None:
    site.owner()
    for client in (site.client(), site.client(cookies={site.site.cookie: "x" * 43}), site.client(cookies={site.site.cookie: ""})):
        for name in ("me", "next", "mine", "progress", "guidelines", "people", "shown/x", "runs"):
            assert client.get(f"/api/{name}").status_code == 401, name
        for path in ("/", "/guidelines", "/people", "/watch", "/start/x", "/i/x", "/i/%00", f"/i/{'x' * 5000}"):
            said = client.get(path)
            assert said.status_code == 401, path
            assert "html" in said.headers["content-type"]
        assert client.post("/api/answers", json={}).status_code == 401
        assert client.post("/api/people", json={"name": "x"}).status_code == 401
    assert site.client().get(f"/i/{site.site.start}").status_code == 401  # each secret opens its own door
    invite = add_person(site.site.store, "x")[1]
    assert site.client().get(f"/start/{invite}").status_code == 401


def test_a_guest_is_no_owner(site: Site) -> None:
    guest = site.person("Hana")
    for path in ("/people", "/decisions", "/watch", "/api/people", "/api/disputes", "/api/disputes/1", "/api/runs",
                 "/api/runs/0/metrics"):  # fmt: skip
        assert guest.get(path).status_code == 403, path
    assert guest.post("/api/people", json={"name": "x"}).status_code == 403
    assert guest.post("/api/disputes/1", json={"ranks": {}, "revision": 0}).status_code == 403
    assert guest.delete(f"/api/people/{find_person(site.site.store, 'Hana').id}").status_code == 403


def test_the_cookie_is_out_of_reach(site: Site) -> None:
    said = site.client().get(f"/start/{site.site.start}", follow_redirects=False)
    assert said.headers["location"] == "/"
    cookie = said.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert site.site.start not in cookie


def test_a_link_on_another_page_leads_in(site: Site) -> None:
    """A browser leaves a strict cookie out of what began on another's page: it comes again from here, with what it has."""
    invite = add_person(site.site.store, "Hana")[1]
    for path in (f"/i/{invite}?switch=yes", f"/start/{site.site.start}"):
        client = TestClient(site.app, base_url=BASE)
        said = client.get(path, headers={"sec-fetch-site": "cross-site"}, follow_redirects=False)
        assert said.status_code == 200
        assert 'content="0; url=?"' in said.text
        assert "set-cookie" not in said.headers
        assert client.get(path.split("?")[0], headers=OURS, follow_redirects=False).status_code == 303
        assert client.get("/api/me").status_code == 200


def test_a_link_takes_nobodys_place_unasked(site: Site) -> None:
    hana, jiro = (add_person(site.site.store, name)[1] for name in ("<b>Hana", "Jiro"))
    client = site.client()
    assert client.get(f"/i/{hana}", follow_redirects=False).status_code == 303
    assert client.get(f"/i/{hana}", follow_redirects=False).status_code == 303  # their own
    for lang, words in (("en", "Go on as Jiro"), ("ja", "Jiro さんとして続ける")):
        asked = client.get(f"/i/{jiro}", headers={"accept-language": lang})
        assert asked.status_code == 200
        assert words in asked.text and "&lt;b&gt;Hana" in asked.text and "<b>" not in asked.text
    assert client.get("/api/me").json()["name"] == "<b>Hana"
    assert client.get(f"/i/{jiro}?switch=yes", follow_redirects=False).status_code == 303
    assert client.get("/api/me").json()["name"] == "Jiro"
    owner = site.owner()
    assert owner.get(f"/i/{jiro}", follow_redirects=False).status_code == 200
    assert owner.get("/api/me").json()["admin"] is True


def test_sessions_do_not_pile_up(site: Site) -> None:
    client = site.client()
    invite = add_person(site.site.store, "Hana")[1]

    def tokens() -> int:
        with site.site.store.read() as db:
            return int(db.execute("SELECT count(*) FROM tokens").fetchone()[0])

    client.get(f"/start/{site.site.start}")
    first = client.cookies[site.site.cookie]
    before = tokens()
    client.get(f"/start/{site.site.start}")
    assert tokens() == before
    assert site.client(cookies={site.site.cookie: first}).get("/api/me").status_code == 401
    guest = site.client()
    guest.get(f"/i/{invite}"), guest.get(f"/i/{invite}")
    assert tokens() == before + 1
    session = guest.cookies[site.site.cookie]
    assert site.client().get(f"/i/{session}").status_code == 401  # a stolen cookie opens no further door


def test_behind_a_proxy(tmp_path: Path) -> None:
    public = "https://rank.example"
    site = Site(
        make_project(tmp_path / "P"),
        hosts=Hosts(["rank.example"]),
        public=public,
        addresses=RateLimiter(1, 1, clock=lambda: 0.0),
        people=RateLimiter(1, 6, clock=lambda: 0.0),
    )
    here = {"host": "rank.example"}
    client = TestClient(site.app, base_url=BASE, client=("127.0.0.1", 5))
    said = client.get(f"/start/{site.site.start}", headers=here, follow_redirects=False)
    assert "; Secure" in said.headers["set-cookie"]
    session = said.headers["set-cookie"].split(";")[0]
    headers = {**here, "cookie": session}
    invited = client.post("/api/people", json={"name": "Hana"}, headers={**headers, "origin": public})
    assert invited.json()["invite"].startswith(f"{public}/i/")
    for origin in ("http://rank.example:80", "https://rank.example.evil", "https://evil.example"):
        assert client.post("/api/people", json={"name": "x"}, headers={**headers, "origin": origin}).status_code == 403
    for origin in (BASE, public, None):  # our own page, opened by the address that the proxy asks
        for there in ({"host": "127.0.0.1:8000"}, {"host": "127.0.0.1:8000", "sec-fetch-site": "same-origin"}):
            named = {} if origin is None else {"origin": origin}
            said = client.post("/api/freeze", json={}, headers={"cookie": session, **there, **named})
            assert said.status_code == (400 if origin == public else 403), (origin, there)
    # the proxy's address stands for everybody's: only what one person asks is counted
    assert [client.get("/api/me", headers=headers).status_code for _ in range(4)] == [200] * 3 + [429]
    stranger = TestClient(site.app, base_url=BASE, client=("192.0.2.7", 5))
    assert [stranger.get("/", headers=here).status_code for _ in range(2)] == [401, 429]
    site.close()


def test_every_response_has_the_headers(site: Site) -> None:
    client = site.owner()
    answers = [client.get(path) for path in ("/", "/api/next", "/api/none", "/none", "/static/none.js", "/watch")]
    answers += [client.get("/", headers={"host": "x"}), client.post("/api/answers", content="x"), site.client().get("/")]
    for said in answers:
        for name, value in HEADERS.items():
            assert said.headers[name] == value
        assert said.headers["cache-control"] == ("no-cache" if "/static/" in str(said.url) else "no-store")
        assert "server" not in said.headers
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy and policy.startswith("default-src 'none'")


ODD = (
    *("9" * 5000, "-1", "1e9", "%d9%a3", "nan", "%00", "%0a", "%ff", "%ed%a0%80", "%f0%9f%98%80", "%zz", "..%2f..", "x" * 7000),
    *("'; DROP TABLE people; --", "{}", "%1b[31m"),
)


def test_nothing_odd_in_a_request_is_an_error_of_ours(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "runs", "one", {}, seed=0)
    site = Site(make_project(tmp_path / "P"), runs=[run.path])
    known = [*site.app.routes, *api.router.routes]
    routes = sorted({each.path for each in known if isinstance(each, Route)} | {"/static/{name}"})
    assert len(routes) > 20
    asked: list[tuple[str, str, dict[str, str]]] = []
    for route in routes:
        filled = [re.sub(r"\{[^}]*\}", lambda _, each=each: each, route) for each in ODD]
        asked += [(method, path, {}) for path in dict.fromkeys(filled) for method in ("GET", "DELETE")]
    for path in ("/api/mine", "/api/runs/0/metrics", "/api/runs/0/samples", "/"):
        queries = ("lang",) if path == "/" else ("before",) if path == "/api/mine" else ("after", "from", "generation")
        asked += [("GET", f"{path}?{name}={each}", {}) for name in queries for each in ODD]
    for name in ("cookie", "accept-language", "sec-fetch-site", "origin", "content-length", "range", "if-none-match"):
        asked += [("POST" if name == "content-length" else "GET", "/static/label.css", {name: each}) for each in ODD]
    with TestClient(site.app, base_url=BASE, headers=OURS) as client:
        for door in ("", f"/start/{site.site.start}"):
            if door:
                client.get(door, follow_redirects=False)
            for method, address, headers in asked:
                said = client.request(method, address, headers=headers, follow_redirects=False)
                assert said.status_code < 500, (door, method, address[:60], headers, said.text[:200])


def test_there_is_nothing_else(site: Site) -> None:
    client = site.owner()
    for path in ("/docs", "/redoc", "/openapi.json", "/api", "/api/", "/static/", "/next", "/api/next/"):
        assert client.get(path, follow_redirects=False).status_code in (404, 405), path


def test_bodies_are_json_of_limited_length(site: Site) -> None:
    client = site.owner()

    def send(body: bytes, kind: str = "application/json") -> Any:
        return client.post("/api/people", content=body, headers={"content-type": kind})

    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/jsonp"):
        assert refusal(send(b'{"name": "x"}', kind)) == (415, "not_json"), kind
    for body in (b"", b"{", b"[]", b"null", b"\xff", b'{"name": 1}', b'{"name": "a", "admin": true}', b'{"name": null}',
                 b"[" * 60_000, b'{"name": ' + b"1" * 9999 + b"}"):  # fmt: skip
        assert refusal(send(body)) == (400, "bad_request"), body[:20]
    assert refusal(send(json.dumps({"name": "x" * BODY_LIMIT}).encode())) == (413, "too_large")
    assert send(json.dumps({"name": "x"}).ljust(BODY_LIMIT).encode()).status_code == 200


def test_too_many_requests(tmp_path: Path) -> None:
    now = [0.0]
    site = Site(make_project(tmp_path / "P"), people=RateLimiter(1, 3, clock=lambda: now[0]))
    one, other = site.person("one"), site.person("other")
    assert [one.get("/api/me").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    said = one.get("/api/me", headers={"accept-language": "ja"})
    assert said.headers["retry-after"] == "1"
    assert said.json()["error"]["message"] == catalogue("errors")["ja"]["error_too_many"]
    assert other.get("/api/me").status_code == 200
    now[0] += 2
    assert [one.get("/api/me").status_code for _ in range(3)] == [200, 200, 429]
    site.close()


def test_one_address_cannot_flood(tmp_path: Path) -> None:
    site = Site(make_project(tmp_path / "P"), addresses=RateLimiter(1, 4, clock=lambda: 0.0))
    assert [site.client().get(f"/i/{number}").status_code for number in range(6)] == [401] * 4 + [429] * 2
    site.close()


def test_buckets_do_not_pile_up() -> None:
    now = [0.0]
    buckets = RateLimiter(1, 1, clock=lambda: now[0])
    for number in range(20_000):
        now[0] += 0.01
        buckets.take(str(number))
    assert len(buckets._left) < 5000


def test_servers_in_one_browser_do_not_end_each_others_sessions(tmp_path: Path) -> None:
    """A browser sends the cookies of 127.0.0.1 to all its ports."""
    runs = [RunDir.create(tmp_path / "runs", name, {}, seed=0).path for name in ("one", "two")]
    first = make_project(tmp_path / "P")
    shutil.copytree(first.path, tmp_path / "Q")
    sites = [Site(None, runs=[run], address=f"{BASE}{n}") for n, run in enumerate([*runs, runs[0]])]
    sites += [Site(project) for project in (first, open_project(tmp_path / "Q"))]
    jar: dict[str, str] = {}
    for site in sites:
        said = site.client(cookies=jar).get(f"/start/{site.site.start}", follow_redirects=False)
        name, _, token = said.headers["set-cookie"].partition("=")
        jar[name] = token.partition(";")[0]
    for site in sites:
        path = "/api/me" if site.project else "/api/runs"
        assert site.client(cookies=jar).get(path).status_code == 200
        site.close()


def test_a_session_outlives_another_name_of_its_cookie(site: Site, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "P")
    again = Site(open_project(tmp_path / "link"))
    assert again.site.cookie == site.site.cookie  # the same project by another path
    again.close()
    assert site.project is not None
    before = f"konomi_{hashlib.sha256(repr(site.project.created).encode()).hexdigest()[:12]}"  # in the first versions
    token = site.owner().cookies[site.site.cookie]
    assert site.client(cookies={before: token}).get("/api/me").status_code == 200
    assert site.client(cookies={before: token, site.site.cookie: "x" * 43}).get("/api/me").status_code == 401


# -- bytes on the wire -----------------------------------------------------------------------------------------------------


def raw(server: Server, request: bytes) -> bytes:
    port = int(server.address.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough
            wire.sendall(request)
        wire.settimeout(60)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := wire.recv(65536):
                found += part
        return found


def head(server: Server, *more: str, method: str = "POST", path: str = "/api/answers") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {server.address[7:]}", f"Origin: {server.address}", "Connection: close", *more]
    return "\r\n".join([*lines, "", ""]).encode()


JSON = "Content-Type: application/json"


def test_a_huge_body_is_not_read(server: Server) -> None:
    said = raw(server, head(server, JSON, "Content-Length: 1000000000000"))
    assert said.startswith(b"HTTP/1.1 413")
    assert raw(server, head(server, JSON, f"Content-Length: {'9' * 400}")).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))


def test_a_chunked_body_is_read_up_to_the_limit(server: Server) -> None:
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    said = raw(server, head(server, JSON, "Transfer-Encoding: chunked") + chunk * 17)  # and no end: it need not wait for it
    assert said.startswith(b"HTTP/1.1 413")
    assert b'"too_large"' in said
    inside = raw(server, head(server, JSON, "Transfer-Encoding: chunked") + chunk * 15 + b"0\r\n\r\n")
    assert inside.startswith(b"HTTP/1.1 401")  # its length is fine; nobody sent it


def test_chunks_with_another_content_type(server: Server) -> None:
    said = raw(server, head(server, "Content-Type: text/plain", "Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 415")


def test_requests_that_proxies_and_servers_read_differently(server: Server) -> None:
    both = head(server, JSON, "Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n"
    assert raw(server, both).count(b"HTTP/1.1 2") == 0
    two = head(server, JSON, "Host: evil.example", "Content-Length: 0")
    assert raw(server, two).split()[1] in (b"400", b"421")


def test_no_way_out_of_the_static_files(server: Server) -> None:
    for path in ("/static/../app.py", "/static/../../web/app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py",
                 "/static/..%5capp.py", "/static//etc/passwd", "/static/%2fetc/passwd", "/static/%00", "/static/....//app.py",
                 "/../../../../etc/passwd"):  # fmt: skip
        response = raw(server, head(server, method="GET", path=path))
        assert response.split()[1] in (b"404", b"400", b"405"), path
        assert b"import" not in response and b"root:" not in response, path


def test_the_server_lives_after_all_this(server: Server) -> None:
    assert raw(server, head(server, method="GET", path=server.start.removeprefix(server.address))).startswith(b"HTTP/1.1 303")


NO_BODY = (
    b"POST /api/people HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\n"
    b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n"
)
SILENT = {
    "nothing": b"",
    "a letter": b"G",
    "half a header": b"GET / HTTP/1.1\r\nX: ",
    "no body": NO_BODY,
}


@pytest.mark.parametrize("sent", SILENT.values(), ids=SILENT)
def test_silent_connections_lock_nobody_out(server: Server, sent: bytes) -> None:
    place = ("127.0.0.1", int(server.address.rsplit(":", 1)[1]))
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(place, timeout=60)) for _ in range(550)]
        for each in silent:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has made room for a later one
                each.sendall(sent)
        for _ in range(3):
            assert raw(server, head(server, method="GET", path="/static/label.css")).startswith(b"HTTP/1.1 200")


def test_headers_have_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "HEADER_SECONDS", 0.3)
    with served(Site(make_project(tmp_path / "P"))) as place:
        for begun in (b"", b"GET / HTTP/1.1\r\n", b"GET /static/icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\nGET"):
            with socket.create_connection(place, timeout=60) as wire:
                wire.sendall(begun)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for _ in range(400):  # a byte at a time, for ever: every one of them in time
                        wire.sendall(b"x")
                        time.sleep(0.05)
                    raise AssertionError("the connection was kept")


@contextlib.contextmanager
def served(site: Site) -> Iterator[tuple[str, int]]:
    """The real server in a thread, and where it is."""
    with listen("127.0.0.1", 0) as listening:
        server = _server(site.app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join(60)
        assert not thread.is_alive()


def test_a_store_that_is_locked_stops_neither_files_nor_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (app_module, security):
        monkeypatch.setattr(module, "BUSY_SECONDS", 600.0)
    project = make_project(tmp_path / "P")
    site = Site(project)
    owner = site.owner()
    headers = {"host": "localhost", "cookie": f"{site.site.cookie}={owner.cookies[site.site.cookie]}"}
    found: list[tuple[int, str | None]] = []

    def ask(place: tuple[str, int], path: str) -> tuple[int, str | None]:
        wire = http.client.HTTPConnection(*place, timeout=60)
        wire.request("GET", path, headers=headers)
        answer = wire.getresponse()
        answer.read()
        wire.close()
        return answer.status, answer.headers["retry-after"]

    with served(site) as place, contextlib.closing(sqlite3.connect(project.labels, isolation_level=None)) as other:
        assert ask(place, "/api/me")[0] == 200
        other.execute("BEGIN EXCLUSIVE")
        for wait, answer in ((600.0, (200, None)), (1.0, (503, "5"))):
            monkeypatch.setattr(security, "BUSY_SECONDS", wait)
            site.site.store.wait = wait
            waiting = [threading.Thread(target=lambda: found.append(ask(place, "/api/next"))) for _ in range(60)]
            for each in waiting:
                each.start()
            if answer[0] == 200:
                assert ask(place, "/static/label.css")[0] == 200  # while the others wait for the lock
                other.execute("ROLLBACK")
            for each in waiting:
                each.join(60)
            assert found == [answer] * 60
            found.clear()
            if answer[0] == 200:
                other.execute("BEGIN EXCLUSIVE")
        other.execute("ROLLBACK")
        assert ask(place, "/api/next")[0] == 200
        other.execute("BEGIN EXCLUSIVE")
        last = threading.Thread(target=ask, args=(place, "/api/next"), daemon=True)
        last.start()
    last.join(60)  # the server has ended while the store was locked


def test_a_websocket_is_closed(server: Server) -> None:
    more = ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
    said = raw(server, head(server, *more, method="GET", path="/api/next"))
    assert b"101" not in said.split(b"\r\n")[0]


def test_an_answer_needs_its_person(site: Site) -> None:
    one, other = site.person("one"), site.person("other")
    task = one.get("/api/next").json()["task"]
    said = other.post("/api/answers", json=answer_to(task))
    assert refusal(said) == (404, "unknown_task")
    assert other.get(f"/api/shown/{task['id']}").status_code == 404
