"""konomi label as a process: killed in the middle of everything, ended by Ctrl-C, started again; and what it will not do."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import shlex
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

from command_line import child
from konomi.cli import app
from konomi.errors import ConfigError
from konomi.labelling.answers import collect
from konomi.labelling.people import add_person, all_people, find_person, new_token, revoke
from konomi.labelling.project import open_project
from konomi.web.figures import Figures
from konomi.web.network import address_of, check_host, listen
from konomi.web.serve import serve
from label_site import OURS, Server, candidates_file, environment, free_port, make_project, serving, wait_for

CLIENTS, EACH, KILLS = 20, 10, 4


class Person(threading.Thread):
    """One who answers, and sends an answer again and again until it is acknowledged, as the page does."""

    def __init__(self, port: int, cookie: str, token: str, acknowledged: dict[str, Any], rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.headers = {**OURS, "cookie": f"{cookie}={token}", "content-type": "application/json"}
        self.acknowledged = acknowledged
        self.rng = rng
        self.tries = 0

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        while True:
            self.tries += 1
            wire = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                wire.request(method, path, None if body is None else json.dumps(body), self.headers)
                answer = wire.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)  # the server is gone, or was killed in the middle of a word
                continue
            finally:
                wire.close()
            assert answer.status == 200, text
            return json.loads(text)

    def run(self) -> None:
        for _ in range(EACH):
            task = self.ask("GET", "/api/next")["task"]
            ranks = {each["key"]: self.rng.randint(1, 3) for each in task["texts"]}
            id = str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
            said = self.ask("POST", "/api/answers", {"id": id, "shown": task["id"], "kind": "ranked", "ranks": ranks})
            assert said == {"saved": True, "id": id, "revision": 1}
            text_of = {each["key"]: each["text"] for each in task["texts"]}
            self.acknowledged[id] = (task["prompt"], {text_of[key]: rank for key, rank in ranks.items()})


def test_200_answers_and_a_server_killed_four_times(tmp_path: Path) -> None:
    project = make_project(tmp_path / "P", count=CLIENTS * (EACH + 1), overlap=1, repeats=0)
    with project.store() as store:
        tokens = [new_token(store, add_person(store, f"person {number}")[0].id, session=True) for number in range(CLIENTS)]
    port = free_port()
    cookie = cookie_of(project.path)
    acknowledged: dict[str, Any] = {}
    people = [Person(port, cookie, token, acknowledged, random.Random(number)) for number, token in enumerate(tokens)]
    server = Server("label", str(project.path), "--port", str(port))
    for person in people:
        person.start()
    rng = random.Random(0)
    seen = []
    try:
        for kill in range(KILLS):
            while len(acknowledged) < 3 + kill * CLIENTS * EACH // (KILLS + 1):
                assert any(person.is_alive() for person in people)
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.02))
            server.kill()
            seen.append(len(acknowledged))
            server = Server("label", str(project.path), "--port", str(port))
        for person in people:
            person.join(60)
    finally:
        server.kill()
    assert seen[-1] < CLIENTS * EACH  # the last kill was in the middle too
    assert len(acknowledged) == CLIENTS * EACH
    with sqlite3.connect(project.labels) as db:
        ids = [id for (id,) in db.execute("SELECT id FROM answers")]
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    assert sorted(ids) == sorted(acknowledged)
    with project.store() as store:
        exported = collect(store)
    found = sorted((exported.items[each.task].prompt, each.ranks) for each in exported.judgements)
    wanted = []
    answered = [prompt for prompt, _ in acknowledged.values()]
    assert len(set(answered)) == len(answered)  # no task went to two people
    for item in exported.items.values():
        if item.prompt not in answered:  # open in front of somebody
            continue
        said = next(ranks for prompt, ranks in acknowledged.values() if prompt == item.prompt)
        given = [said[candidate.text] for candidate in item.candidates]
        wanted.append((item.prompt, tuple(1 + sum(other < rank for other in given) for rank in given)))
    assert found == sorted(wanted)


def cookie_of(path: Path) -> str:
    from konomi.web.app import make_app

    made = make_app(open_project(path))
    name: str = made.state.site.cookie
    made.state.site.store.close()
    return name


def test_the_first_time_and_the_next(tmp_path: Path) -> None:
    project, file = tmp_path / "P", candidates_file(tmp_path / "c.jsonl")
    with serving("label", str(project), "--candidates", str(file), "--people", "Hana", "--people", "Jiro") as server:
        assert server.process.stdout is not None
        hana, jiro = (server.process.stdout.readline().strip().split(": ") for _ in range(2))
        assert (hana[0], jiro[0]) == ("Hana", "Jiro")
        assert hana[1].startswith(f"{server.address}/i/")
        code, error = server.interrupt()
    assert code == 0
    assert "8 tasks added" in error
    assert "stopped; all answers are in" in error
    assert stat.S_IMODE(project.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in project.iterdir()} == {0o600}
    with serving("label", str(project), "--candidates", str(candidates_file(tmp_path / "more.jsonl", 10))) as again:
        assert again.address == server.address  # a page that is still open finds it
        assert again.start != server.start
        assert status(again, hana[1]) == 303  # invite links go on working
        assert status(again, f"{again.address}{server.start.removeprefix(server.address)}") == 401  # start addresses do not
        with serving("label", str(project)) as beside:  # the port is taken now
            assert beside.address != again.address
            assert beside.process.stdout is not None
            warning = beside.process.stdout.readline()
            assert warning.startswith(f"warning: {project} is served already, at {again.address}; ")
        assert again.address in (project / "port").read_text("utf-8")  # the first one's is kept
        code, error = again.interrupt()
    assert "2 tasks added, 8 were there already" in error


def status(server: Server, address: str) -> int:
    wire = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=60)
    wire.request("GET", address.removeprefix(server.address))
    found = wire.getresponse().status
    wire.close()
    return found


def test_behind_a_proxy_links_are_the_proxys(tmp_path: Path) -> None:
    project = make_project(tmp_path / "P")
    with serving("label", str(project.path), "--people", "Hana", "--public-url", "https://rank.example:8443/") as server:
        assert server.address == "https://rank.example:8443"
        assert server.process.stdout is not None
        assert server.process.stdout.readline().startswith("Hana: https://rank.example:8443/i/")
        wire = http.client.HTTPConnection("127.0.0.1", int((project.path / "port").read_text().split()[0]), timeout=60)
        for host, status in (("rank.example:8443", 303), ("other.example", 421)):
            wire.request("GET", server.start.removeprefix(server.address), headers={"host": host})
            answer = wire.getresponse()
            answer.read()
            assert answer.status == status
        wire.close()


def test_a_public_address_that_is_none(tmp_path: Path) -> None:
    project = make_project(tmp_path / "P")
    for url in ("http://rank.example", "rank.example", "https://rank.example/x", "https://a@b", "https://", "https://x:y",
                "https://x?y", "https://..", "https://h:99999", "https://h:0", "https://[:]"):  # fmt: skip
        said = CliRunner().invoke(app, ["label", str(project.path), "--public-url", url])
        assert said.exit_code == 2
        assert f"--public-url {url}: https://HOST or https://HOST:PORT is wanted" in " ".join(said.output.split())


def test_export_while_the_server_runs(tmp_path: Path) -> None:
    project = make_project(tmp_path / "P", count=EACH + 2)
    with serving("label", str(project.path)) as server:
        with project.store() as store:
            token = new_token(store, add_person(store, "Hana")[0].id, session=True)
        acknowledged: dict[str, Any] = {}
        person = Person(int(server.address.rsplit(":", 1)[1]), cookie_of(project.path), token, acknowledged, random.Random(0))
        task = person.ask("GET", "/api/next")["task"]
        ranks = {"a": 1, "b": 2, "c": 2}
        person.ask("POST", "/api/answers", {"id": str(uuid.uuid4()), "shown": task["id"], "kind": "ranked", "ranks": ranks})
        rest = Person(person.port, cookie_of(project.path), token, acknowledged, random.Random(1))
        rest.start()  # goes on answering while it is exported
        found = []
        while not found or rest.is_alive():
            out = tmp_path / f"out{len(found)}"
            said = CliRunner().invoke(app, ["export", str(project.path), "--out", str(out)])
            assert said.exit_code == 0, said.output
            found.append(len((out / "answers.jsonl").read_text("utf-8").splitlines()))
        assert found == sorted(found) and 1 <= found[0] <= 1 + len(acknowledged)
        said = CliRunner().invoke(app, ["export", str(project.path), "--out", str(tmp_path / "out"), "--freeze"])
        assert said.exit_code == 0, said.output
        answers = (tmp_path / "out" / "answers.jsonl").read_text("utf-8").splitlines()
        assert len(answers) == 1 + len(acknowledged) == 1 + EACH
        assert person.ask("GET", "/api/progress")["frozen"] is True


# -- what is refused before anything is served ---------------------------------------------------------------------------


def test_a_network_has_to_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert check_host("127.0.0.1", False) is False
    assert check_host("::1", False) is False
    assert check_host("0.0.0.0", True) is True
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0: other machines could reach the page.*add --allow-network"):
        check_host("0.0.0.0", False)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match=r"--host no\.such\.host\.invalid: no such host"):
        check_host("no.such.host.invalid", False)


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert address_of(first, "127.0.0.1") == f"http://127.0.0.1:{port}"
        assert address_of(first, "::1") == f"http://[::1]:{port}"
        assert address_of(first, "0.0.0.0") != f"http://0.0.0.0:{port}"
        with pytest.raises(ConfigError, match=f"127.0.0.1, port {port}: Address already in use; leave --port out"):
            listen("127.0.0.1", port)
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))


def test_names_are_checked_first_and_found_again(tmp_path: Path) -> None:
    file = candidates_file(tmp_path / "c.jsonl")
    said = CliRunner().invoke(app, ["label", str(tmp_path / "P"), "--candidates", str(file), "--people", "a\u202eb"])
    assert said.exit_code == 2 and "a name of visible characters is needed" in said.output
    assert not (tmp_path / "P").exists()
    project = make_project(tmp_path / "P")
    for _ in range(2):  # the second time she is there already
        with serving("label", str(project.path), "--people", " 山田\u3000花子 ", "--people", "山田 花子") as server:
            assert server.process.stdout is not None
            assert server.process.stdout.readline().startswith("山田 花子: http://127.0.0.1:")
            server.interrupt()
    with project.store() as store:
        assert [each.name for each in all_people(store)] == ["山田 花子"]
        revoke(store, find_person(store, "山田 花子").id)
    with serving("label", str(project.path), "--people", "山田 花子") as server:
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == "山田 花子 had no access any more; whoever has this link comes in again:\n"
        server.interrupt()


def test_a_server_in_the_background_ends_by_sigterm(tmp_path: Path) -> None:
    project = make_project(tmp_path / "P")
    command = f'trap "" INT; exec {shlex.quote(sys.executable)} -m konomi label {shlex.quote(str(project.path))}'
    with child(["sh", "-c", command], stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        start = process.stdout.readline().removeprefix("open ").strip()
        place = start.removeprefix("http://").split("/")[0]

        def answers() -> bool:
            with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection(place, timeout=60)) as wire:
                wire.request("GET", "/static/icon.svg")
                return wire.getresponse().status == 200
            return False

        wait_for(answers)
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGTERM, 0)


def test_a_signal_while_the_server_is_set_up_waits_until_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once it would break off what a library does, in whatever state that is."""
    configure, done = uvicorn.Config.configure_logging, []

    def interrupted(config: uvicorn.Config) -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.raise_signal(number)
        configure(config)
        done.append(config)

    monkeypatch.setattr(uvicorn.Config, "configure_logging", interrupted)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    said: list[str] = []
    assert serve(make_project(tmp_path / "P"), say=said.append, until=lambda _: False) is False
    assert len(done) == len(said) == 1 and said[0].startswith("open http://127.0.0.1:")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_figures_are_found_after_those_who_rank(tmp_path: Path) -> None:
    project = make_project(tmp_path / "P")
    code = f"""
import os, sys
from konomi.web.figures import main
before = os.nice(0)
sys.argv = ["figures", {str(project.path)!r}, "1"]  # few: beside busy tests a nice process waits
main()
print(min(before + 1, 19) == os.nice(0))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=environment())
    found, nice = said.stdout.splitlines()
    assert json.loads(found)["people"] is None and nice == "True"


@pytest.mark.usefixtures("figures_at_once")
def test_what_is_in_the_working_directory_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "P")
    for name in ("random", "secrets", "json", "hashlib", "numpy", "konomi", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("from pathlib import Path\nPath('ran').touch()\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    figures = Figures(project.path)
    figures.get(0)
    assert wait_for(lambda: figures.latest).comparisons == 0
    figures.close()
    assert not (tmp_path / "ran").exists()


def test_the_pages_need_no_torch(tmp_path: Path) -> None:
    project = make_project(tmp_path / "P")
    code = f"""
import sys
class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "accelerate", "datasets", "mlflow", "pandas"):
            raise ImportError(name)
sys.meta_path.insert(0, Refusal())
from pathlib import Path
from starlette.testclient import TestClient
import konomi.web.serve, uvicorn
from konomi.labelling.project import open_project
from konomi.web.app import make_app
from konomi.web.figures import find
app = make_app(open_project(Path({str(project.path)!r})))
client = TestClient(app, base_url="http://127.0.0.1")
for path in ("/start/" + app.state.site.start, "/", "/guidelines", "/people", "/api/next", "/api/guidelines"):
    assert client.get(path).status_code == 200, path
app.state.site.store.close()
assert find(Path({str(project.path)!r})).comparisons == 0
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=environment())
    assert said.returncode == 0, said.stderr
