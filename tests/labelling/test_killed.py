"""Nothing lost, nothing doubled: real processes on one file, killed while they write."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from command_line import child
from konomi.labelling.answers import collect
from konomi.labelling.database import Store
from konomi.labelling.people import add_person
from konomi.labelling.queue import Settings
from people_at_work import store_of

WRITERS, KILLS, TASKS = 3, 1, 30
WRITER = f"""
import sqlite3, sys, time, uuid
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
path, journal, token = sys.argv[1:]
if journal == "wal":
    sqlite3.sqlite_version_info = (3, 51, 3)
from pathlib import Path
from people_at_work import answer_to
from konomi.labelling.answers import save
from konomi.labelling.assignments import next_task
from konomi.labelling.database import Store
from konomi.labelling.people import person_of
from konomi.labelling.queue import Settings
with Store(Path(path), Settings(repeats=0)) as store:
    person = person_of(store, token)
    while (shown := next_task(store, person, time.time())) is not None:
        id = uuid.uuid5(uuid.NAMESPACE_OID, shown.id)  # who is started again sends what was not acknowledged under the same id
        answer = answer_to(shown, id=str(id), comment=shown.id)
        print(save(store, person, answer, time.time()).id, flush=True)
"""


def work_of(path: Path, journal: str, token: str) -> list[str]:
    """The ids of the answers that a person's process says are saved; it is killed and started again."""
    acknowledged: list[str] = []
    for kill in range(1, KILLS + 2):
        with child([sys.executable, "-c", WRITER, str(path), journal, token], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for line in writer.stdout:
                acknowledged.append(line.strip())
                if kill <= KILLS and len(acknowledged) >= 4 * kill:
                    writer.kill()
            assert writer.wait() == (-signal.SIGKILL if kill <= KILLS else 0)
    return acknowledged


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_several_processes_write_at_once_and_are_killed(tmp_path: Path, journal: str) -> None:
    path = tmp_path / "labels.sqlite3"
    with store_of(tmp_path, TASKS, overlap=2, repeats=0) as store:
        tokens = [add_person(store, f"person {n}")[1] for n in range(WRITERS)]
    with ThreadPoolExecutor(WRITERS) as threads:
        acknowledged = {id for ids in threads.map(lambda token: work_of(path, journal, token), tokens) for id in ids}
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA journal_mode").fetchone() == (journal,)
    db.close()
    with Store(path, Settings()) as store:
        judgements = collect(store).judgements
        with store.read() as db:
            saved = Counter(id for (id,) in db.execute("SELECT id FROM answers"))
            assert db.execute("SELECT count(*) FROM answers WHERE comment != shown").fetchone() == (0,)
            covered = dict(db.execute("SELECT id, covered FROM tasks"))
    assert len(saved) == len(judgements) == 2 * TASKS  # all tasks by two people, whoever was killed
    assert set(saved.values()) == {1} and acknowledged <= set(saved)
    assert len(set(saved) - acknowledged) <= WRITERS * KILLS  # those whose ids were not printed before a kill
    assert len({(each.task, each.rater) for each in judgements}) == 2 * TASKS
    assert set(covered.values()) == {2}
    assert {each.ranks for each in judgements} == {(1, 2, 3)}  # as they were sent, whatever order was shown


def test_what_a_killed_process_had_not_committed_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite3"
    store_of(tmp_path, 5).close()
    code = f"""
import os, signal
from pathlib import Path
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
