"""How fast does the ranking page's server answer with 10,000 tasks and 100,000 answers in its store?

One person at a time asks for a task and answers it, over HTTP on loopback, on one connection, as a browser does. An answer
is on the disk before it is acknowledged: the time of a flush of this machine's disk is in it, and printed beside it.

    python benchmarks/label_page.py [--tasks 10000] [--answers 100000] [--rounds 300] [--keep DIR] [--write]

With --write the table goes into docs/results.md, between the marks.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from demo_seeds import hardware, put

from konomi.data.records import Candidate
from konomi.labelling.answers import collect
from konomi.labelling.people import add_person, all_people, new_token
from konomi.labelling.project import Project, create_project, open_project
from konomi.labelling.queue import Settings
from konomi.labelling.records import NewTask
from konomi.labelling.tables import VERSION
from konomi.web.app import make_app

PEOPLE, K = 20, 4
NAMES = {"next": "the next task and the progress", "answers": "an answer saved", "both": "both, as a person waits for them"}


def filled(path: Path, tasks: int, answers: int) -> Project:
    """A project in which every task has been answered by some of 20 people."""
    rng = random.Random(0)
    words = ["今日", "は", "とても", "良い", "天気", "で", "山", "まで", "歩く", "と", "海", "が", "見え", "ました"]

    def text(length: int) -> str:
        return "".join(rng.choice(words) for _ in range(length))

    each = answers // tasks
    settings = Settings(overlap=min(100, each + 2))
    new = (
        NewTask(f"{number} {text(20)}", tuple(Candidate(f"{text(60)}{place}", {"model": f"m{place}"}) for place in range(K)))
        for number in range(tasks)
    )
    project, _ = create_project(path, new, settings=settings)
    with project.store() as store:
        people = [add_person(store, f"person {number}")[0].id for number in range(PEOPLE)]
        counts = dict.fromkeys(people, 0)
        shown, said = [], []
        for task in range(1, tasks + 1):
            for place in range(each):
                person = people[(task + place * 7) % PEOPLE]
                counts[person] += 1
                ranks = [rng.randint(1, K) for _ in range(K)]
                at = 1e9 + len(shown)
                id = f"{task}-{place}"
                shown.append((id, task, person, 0, "0123", at, at, counts[person], at, "ranked", 1))
                row = (str(uuid.UUID(int=rng.getrandbits(128))), id, 1, at, "ranked", json.dumps(ranks), "[[],[],[],[]]")
                said.append((*row, None, "", None, 20.0, b""))
        with store.write() as db:
            db.executemany(f"INSERT OR IGNORE INTO shown VALUES ({'?, ' * 10}?)", shown)
            db.executemany(
                f"INSERT INTO answers SELECT {'?, ' * 11}? WHERE EXISTS (SELECT 1 FROM shown WHERE id = ?2)",
                said,
            )
            db.execute("UPDATE tasks SET covered = (SELECT count(*) FROM shown WHERE task = tasks.id)")
    return project


def flush_ms(directory: Path) -> float:
    """How long a small write takes to reach the disk: the median of 50, ms."""
    times = []
    with open(directory / "flush", "wb") as file:
        for _ in range(50):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def measure(address: str, cookie: str, rounds: int) -> dict[str, list[float]]:
    """Times of ``/api/next``, ``/api/answers`` and both together, ms."""
    wire = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    headers = {"cookie": cookie, "content-type": "application/json", "sec-fetch-site": "same-origin"}

    def ask(method: str, path: str, body: Any = None) -> tuple[float, Any]:
        content = None if body is None else json.dumps(body)
        began = time.perf_counter()
        wire.request(method, path, content, headers)
        answer = wire.getresponse()
        text = answer.read()
        spent = 1000 * (time.perf_counter() - began)
        assert answer.status == 200, text
        return spent, json.loads(text)

    found: dict[str, list[float]] = {"next": [], "answers": [], "both": []}
    for _ in range(rounds):
        before, said = ask("GET", "/api/next")
        ranks = {each["key"]: place for place, each in enumerate(said["task"]["texts"], start=1)}
        answer = {"id": str(uuid.uuid4()), "shown": said["task"]["id"], "kind": "ranked", "ranks": ranks, "seconds": 20.0}
        after, _ = ask("POST", "/api/answers", answer)
        for name, spent in (("next", before), ("answers", after), ("both", before + after)):
            found[name].append(spent)
        time.sleep(0.05)  # nobody is faster; and the rate is limited
    return found


def main() -> None:
    """Fill a store, start the server, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tasks", 10_000), ("answers", 100_000), ("rounds", 300)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", type=Path, help="use the project in this directory again, or make it there")
    parser.add_argument("--write", action="store_true", help="put the table into docs/results.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = given.keep or Path(temporary) / "project"
        began = time.perf_counter()
        project = open_project(path) if path.exists() else filled(path, given.tasks, given.answers)
        print(
            f"store, version {VERSION}: {project.labels.stat().st_size / 1e6:.0f} MB, made in {time.perf_counter() - began:.0f} s"
        )
        with project.store() as store:
            tokens = [
                new_token(store, person.id, session=True)
                for person in [*all_people(store)[:3], add_person(store, str(uuid.uuid4()))[0]]
            ]
            exported = collect(store)
            print(f"{len(exported.items):,} tasks, {len(exported.judgements):,} answers")
        app = make_app(project)
        app.state.site.store.close()
        began = time.perf_counter()
        server = subprocess.Popen([sys.executable, "-m", "konomi", "label", str(path)], stdout=subprocess.PIPE, encoding="utf-8")
        try:
            assert server.stdout is not None
            address = server.stdout.readline().removeprefix("open ").split("/start/")[0]
            begin, flush = time.perf_counter() - began, flush_ms(path.parent)
            found: dict[str, list[float]] = {}
            for token in tokens:
                times = measure(address, f"{app.state.site.cookie}={token}", given.rounds // len(tokens))
                for name, values in times.items():
                    found.setdefault(name, []).extend(values)
        finally:
            server.terminate()
            server.wait()
        size = project.labels.stat().st_size / 1e6
        lines = [
            f"Hardware: {hardware()}. {len(exported.items):,} tasks, {len(exported.judgements):,} answers, {size:.0f} MB; a "
            f"flush of the disk takes {flush:.1f} ms; the server was ready after {begin:.1f} s.",
            "",
            "| request | median, ms | 95 % under, ms | slowest, ms | requests |",
            "|---|---|---|---|---|",
        ]
        for name, values in found.items():
            middle, most = statistics.median(values), statistics.quantiles(values, n=20)[-1]
            lines.append(f"| {NAMES[name]} | {middle:.1f} | {most:.1f} | {max(values):.1f} | {len(values)} |")
        print("\n".join(lines))
        if given.write:
            put("page", "\n".join(lines))


if __name__ == "__main__":
    main()
