"""Nothing lost, nothing doubled: real processes on one file, killed while they write."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from konomi.labelling.answers import collect
from konomi.labelling.database import Store
from konomi.labelling.people import add_person
from konomi.labelling.queue import Settings
from konomi.labelling.records import Exported
from people_at_work import store_of

HERE = Path(__file__).parent
CLIENTS, EACH = 20, 10
KILLS = {"delete": 10, "wal": 5}


class Owner:
    """The process that owns the store, started again after each kill."""

    def __init__(self, path: Path, journal: str) -> None:
        self.kills = KILLS[journal]
        self.command = [sys.executable, str(HERE / "label_server.py"), str(path), *(["wal"] if journal == "wal" else [])]
        self.port = 0
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL
        assert self.process.stdout is not None
        self.process.stdout.close()


class Client(threading.Thread):
    """A person whose page sends an answer until it is acknowledged, by the same id."""

    def __init__(self, owner: Owner, token: str) -> None:
        super().__init__(daemon=True)
        self.owner, self.token = owner, token
        self.acknowledged: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.interrupted = 0

    def ask(self, **asked: Any) -> dict[str, Any]:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.owner.port), timeout=300) as connection:
                    connection.sendall((json.dumps({"token": self.token, **asked}) + "\n").encode())
                    with connection.makefile("r", encoding="utf-8") as lines:
                        said: dict[str, Any] = json.loads(lines.readline())
                    return said
            except (OSError, json.JSONDecodeError):  # it was killed; whether the answer was saved is not known
                self.interrupted += 1
                time.sleep(0.01)

    def run(self) -> None:
        while len(self.acknowledged) < EACH:
            shown = self.ask()
            ranks = {text["key"]: 1 + n for n, text in enumerate(shown["texts"])}
            answer = {"id": str(uuid.uuid4()), "shown": shown["id"], "kind": "ranked", "ranks": ranks, "comment": shown["id"]}
            self.acknowledged.append((answer, self.ask(answer=answer)))


@pytest.fixture(params=["delete", "wal"])
def owner(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Owner, list[Client]]]:
    with store_of(tmp_path, 60, overlap=5) as store:
        tokens = [add_person(store, f"person {n}")[1] for n in range(CLIENTS)]
    owner = Owner(tmp_path / "labels.sqlite3", request.param)
    with sqlite3.connect(tmp_path / "labels.sqlite3") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == (request.param,)
    db.close()
    yield owner, [Client(owner, token) for token in tokens]
    if owner.process.poll() is None:
        owner.kill()


def test_200_answers_of_20_people_while_the_process_is_killed(owner: tuple[Owner, list[Client]], tmp_path: Path) -> None:
    process, clients = owner
    for client in clients:
        client.start()
    for kill in range(process.kills):  # when so many are saved that answers come until the last kill
        while sum(len(client.acknowledged) for client in clients) < (kill + 1) * CLIENTS * EACH * 0.9 / process.kills:
            time.sleep(0.001)
            assert all(client.is_alive() or len(client.acknowledged) == EACH for client in clients)
        process.kill()
        process.start()
    for client in clients:
        client.join(300)
        assert not client.is_alive()
    process.kill()
    with Store(tmp_path / "labels.sqlite3", Settings()) as store:
        held = by_comment(collect(store))
        with store.read() as db:
            saved = Counter(id for (id,) in db.execute("SELECT id FROM answers"))
            covered = dict(db.execute("SELECT id, covered FROM tasks"))
    acknowledged = [answer for client in clients for answer, _ in client.acknowledged]
    assert len(acknowledged) == CLIENTS * EACH
    assert sum(client.interrupted for client in clients) >= process.kills
    assert saved == Counter(answer["id"] for answer in acknowledged)  # every one, once
    for answer in acknowledged:  # and as it was sent
        judgement = held[answer["shown"]]
        by_order = [judgement.ranks[place] for place in judgement.order]
        assert by_order == list(answer["ranks"].values())
    counts = Counter(each.task for each in held.values() if not each.repeat)
    assert covered == {task: counts[task] for task in covered}
    assert max(counts.values()) <= 5


def by_comment(exported: Exported) -> dict[str, Any]:
    found = {each.comment: each for each in exported.judgements}
    assert len(found) == len(exported.judgements)
    return found


WRITER = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from people_at_work import answer_to
from konomi.labelling.answers import save
from konomi.labelling.assignments import next_task
from konomi.labelling.database import Store
from konomi.labelling.people import person_of
from konomi.labelling.queue import Settings
with Store(Path(sys.argv[2]), Settings(repeats=0)) as store:
    person = person_of(store, sys.argv[3])
    os.write(1, b"ready\\n")
    sys.stdin.readline()
    while (shown := next_task(store, person, time.time())) is not None:
        answer = answer_to(shown, comment=shown.id)
        save(store, person, answer, time.time())
        os.write(1, answer.id.encode() + b"\\n")
"""


def test_several_processes_write_at_once_and_one_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite3"
    with store_of(tmp_path, 40, overlap=2, repeats=0) as store:
        tokens = [add_person(store, f"person {n}")[1] for n in range(4)]
    command = [sys.executable, "-c", WRITER, str(HERE.parent), str(path)]
    reading, writing = os.pipe()  # one for all: who gets the lock how often is not for this test to say
    writers = [subprocess.Popen([*command, token], stdin=subprocess.PIPE, stdout=writing, text=True) for token in tokens]
    os.close(writing)
    with open(reading, encoding="utf-8") as lines:
        assert [lines.readline() for _ in writers] == ["ready\n"] * 4
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        acknowledged = {lines.readline().strip() for _ in range(20)}
        writers[0].kill()
        acknowledged |= {line.strip() for line in lines}
    for writer in writers:
        writer.communicate(timeout=300)
    assert [writer.returncode for writer in writers] == [-signal.SIGKILL, 0, 0, 0]
    with Store(path, Settings()) as store:
        judgements = collect(store).judgements
        with store.read() as db:
            saved = [id for (id,) in db.execute("SELECT id FROM answers")]
    assert acknowledged <= set(saved)
    assert len(saved) == len(set(saved)) == len(judgements)
    assert len(set(saved) - acknowledged) <= 1  # the one whose id was not printed before the kill
    # the killed one kept one task open, so that all but that have their two people
    counts = Counter(each.task for each in judgements)
    assert max(counts.values()) == 2
    assert sum(counts.values()) >= 40 * 2 - 1
    assert len({(each.task, each.rater) for each in judgements}) == len(judgements)


def test_what_a_killed_process_had_not_committed_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite3"
    store_of(tmp_path, 5).close()
    code = f"""
import os, signal
from pathlib import Path
from konomi.labelling.queue import Settings
from konomi.labelling.queue import Settings
from konomi.labelling.database import Store
with Store(Path({str(path)!r}), Settings()).write() as db:
    db.execute("PRAGMA cache_size = 1")  # so that pages are written before the end
    db.execute("UPDATE tasks SET prompt = printf('%.9000c', 'x')")
    db.execute("SELECT * FROM answers")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    if sqlite3.sqlite_version_info < (3, 51, 3):
        assert os.path.getsize(f"{path}-journal") > 0  # what rolls it back
    with Store(path, Settings()) as store:
        assert [item.prompt for item in collect(store).items.values()] == [f"prompt {n}" for n in range(5)]
