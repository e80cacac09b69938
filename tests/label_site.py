"""A labelling project and its server, for tests: real stores, the real app, a real process."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from konomi.data.formats import write_records
from konomi.data.records import Candidate, Task
from konomi.labelling.people import add_person, new_token
from konomi.labelling.project import Project, create_project
from konomi.labelling.queue import Settings
from konomi.labelling.records import NewTask
from konomi.web.app import make_app
from konomi.web.security import RateLimiter

MODEL = "models/tsubaki-9b"
"""What no response may hold."""
OURS = {"sec-fetch-site": "same-origin"}
BASE = "http://127.0.0.1:8000"


def tasks(count: int, k: int = 3) -> list[Task]:
    return [
        Task(
            f"今日の天気は、その{number}。",
            tuple(Candidate(f"晴れです。{number} {place}", {"model": f"{MODEL}-{place}", "seed": place}) for place in range(k)),
            {"topic": "secret-column"},
        )
        for number in range(count)
    ]


def candidates_file(path: Path, count: int = 8, k: int = 3) -> Path:
    write_records(path, tasks(count, k))
    return path


def make_project(path: Path, count: int = 8, **settings: Any) -> Project:
    return create_project(path, [NewTask.of(task) for task in tasks(count)], settings=Settings(**settings))[0]


class Site:
    """The app of a project, and clients of it."""

    def __init__(self, project: Project | None, **more: Any) -> None:
        self.project = project
        self.app = make_app(project, **{"addresses": RateLimiter(1e6, 1e6), "people": RateLimiter(1e6, 1e6), **more})
        self.site = self.app.state.site
        figures_later(self.app)

    def client(self, **more: Any) -> TestClient:
        return TestClient(self.app, base_url=BASE, headers=OURS, **more)

    def person(self, name: str, **more: Any) -> TestClient:
        client = self.client(**more)
        client.cookies.set(
            self.site.cookie,
            new_token(self.site.store, add_person(self.site.store, name)[0].id, session=True),
            domain="127.0.0.1",
        )
        return client

    def owner(self) -> TestClient:
        client = self.client()
        assert client.get(f"/start/{self.site.start}", follow_redirects=False).status_code == 303
        return client

    def close(self) -> None:
        self.site.close()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def figures_later(app: Any) -> None:
    """Figures take a process of seconds after the first answer: a test that is about them sets ``_at`` to 0."""
    if app.state.site.figures is not None:
        app.state.site.figures._at = math.inf


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def answer_to(task: dict[str, Any], **more: Any) -> dict[str, Any]:
    ranks = {each["key"]: place for place, each in enumerate(task["texts"], start=1)}
    return {"id": str(uuid.uuid4()), "shown": task["id"], "kind": "ranked", "ranks": ranks, "seconds": 3.5, **more}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """``konomi label`` in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "konomi", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment()
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.stderr.read())
        self.start = line.removeprefix("open ").strip()
        self.address = self.start.split("/start/")[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def interrupt(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        error = self.process.communicate(timeout=60)[1]
        return self.process.returncode, error


def environment() -> dict[str, str]:
    source = str(Path(__file__).resolve().parents[1] / "src")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[Server]:
    server = Server(*arguments)
    try:
        yield server
    finally:
        server.kill()


def wait_for(what: Any, seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found
