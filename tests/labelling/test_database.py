"""The file: its journal, its versions, what is wrong with it, and that nothing stays in it of what was forgotten."""

from __future__ import annotations

import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from konomi.errors import DataError, RunError
from konomi.labelling import database, tables
from konomi.labelling.answers import answer_of, collect, own_answers, save
from konomi.labelling.assignments import find_shown, progress_of
from konomi.labelling.database import Store, journal_mode
from konomi.labelling.import_tasks import create_store
from konomi.labelling.people import add_person, all_people, find_person, forget, person_of, remember
from konomi.labelling.queue import Settings
from konomi.labelling.records import Person
from konomi.labelling.tables import VERSION
from people_at_work import NOW, answer_to, store_of, take, tasks, work

VERSION_1 = Path(__file__).with_name("version1.sql").read_text(encoding="utf-8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a store with 40 tasks and answers to half of them."""
    with store_of(tmp_path, 40) as store:
        work(store, add_person(store, "Aki")[0], 20)
    return tmp_path / "labels.sqlite3"


def open_(path: Path) -> Store:
    return Store(path, Settings())


def wrong(path: Path, message: str) -> None:
    """Opening fails with this message, and leaves the file as it was."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(DataError, match=message):
        open_(path)
    assert (path.read_bytes() if path.is_file() else None) == before


def of_version_1(tmp_path: Path) -> Path:
    db = sqlite3.connect(tmp_path / "old.sqlite3")
    db.executescript(VERSION_1)
    db.close()
    return tmp_path / "old.sqlite3"


def pragma(path: Path, name: str) -> object:
    db = sqlite3.connect(path)
    value = db.execute(f"PRAGMA {name}").fetchone()[0]
    db.close()
    return value


# journal


def test_the_mode_follows_the_version_that_opens_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, expected in (((3, 51, 3), "wal"), ((3, 40, 1), "delete"), ((3, 51, 3), "wal")):
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        with open_(path) as store:
            with store.read() as db:
                assert db.execute("PRAGMA journal_mode").fetchone()[0] == expected
                assert db.execute("PRAGMA synchronous").fetchone()[0] == 3
                assert db.execute("PRAGMA foreign_keys").fetchone()[0] == 1
            assert len(collect(store).judgements) == 20
        assert pragma(path, "journal_mode") == expected


def modes(directory: Path) -> dict[str, int]:
    """The permissions of the store's file and of what SQLite keeps beside it, by the ends of their names."""
    return {each.name.removeprefix("labels.sqlite3"): stat.S_IMODE(each.stat().st_mode) for each in directory.iterdir()}


def test_the_file_is_its_owners_alone(path: Path, tmp_path: Path) -> None:
    assert modes(tmp_path) == {"": 0o600}
    path.chmod(0o644)
    with open_(path) as store, store.write() as db:
        db.execute("INSERT INTO meta VALUES ('x', 'y')")
        beside = modes(tmp_path)
    assert set(beside.values()) == {0o600} and len(beside) == 2


def test_what_sqlite_keeps_beside_the_file_is_its_owners_alone_too(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    other = sqlite3.connect(path, isolation_level=None)
    path.chmod(0o644)
    other.execute("PRAGMA journal_mode = wal")
    other.execute("INSERT INTO meta VALUES ('x', 'y')")
    assert modes(tmp_path) == {"": 0o644, "-wal": 0o644, "-shm": 0o644}
    with open_(path):
        assert set(modes(tmp_path).values()) == {0o600}
    other.close()


def test_a_file_of_somebody_else_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    path.chmod(0o644)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "chmod", forbidden)
        with pytest.raises(
            RunError, match=r"labels\.sqlite3: cannot be closed to others .*: Operation not permitted; is it yours\?"
        ):
            open_(path)
        patched.setattr(Path, "is_file", forbidden)
        with pytest.raises(RunError, match=r"labels\.sqlite3: cannot be looked up: Operation not permitted"):
            open_(path)


def test_a_wal_that_this_sqlite_can_damage_is_not_joined(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    with open_(path) as store:
        with store.read() as db:
            assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
        with pytest.raises(RunError, match=r"another program has kept it locked for .*; end that program and try again"):
            open_(path)
    open_(path).close()
    assert pragma(path, "journal_mode") == "delete"


# versions


def test_a_file_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    path = of_version_1(tmp_path)
    with open_(path) as store:
        aki = person_of(store, "a-token-of-version-1")
        assert aki == Person("p-0123456789", "Aki", admin=True, guidelines_seen=None, shortcuts=True)
        (mine,) = own_answers(store, aki)
        shown = find_shown(store, aki, mine.shown)
        assert shown is not None
        assert [(text.key, text.text) for text in shown.texts] == [("a", "text 2.1"), ("b", "text 2.0")]
        answer = answer_of(store, aki, mine.shown)
        assert answer is not None
        assert (answer.ranks, answer.flags, answer.comment) == ({"a": 2, "b": 1}, {"b": ["broken"]}, "kept")
        assert save(store, aki, answer, NOW).again  # the same request again, after an update of konomi
        with pytest.raises(DataError, match="was saved with other content"):
            save(store, aki, answer.model_copy(update={"comment": "other"}), NOW)
        assert not remember(store, aki, guidelines_seen="1", shortcuts=False).shortcuts
        assert {shown.prompt for shown in work(store, aki)} == {"prompt 0", "prompt 1"}
    assert pragma(path, "user_version") == VERSION
    new = tmp_path / "new.sqlite3"
    create_store(new, tasks(3, 2), Settings())[0].close()
    assert _tables(path) == _tables(new)
    open_(path).close()


def _tables(path: Path) -> set[tuple[str, str]]:
    db = sqlite3.connect(path)
    found = {(name, " ".join(sql.split())) for name, sql in db.execute("SELECT name, sql FROM sqlite_master WHERE sql NOTNULL")}
    db.close()
    return found


def test_a_migration_happens_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = of_version_1(tmp_path)
    monkeypatch.setattr(tables, "MIGRATIONS", (*tables.MIGRATIONS, ("CREATE TABLE half (x)", "CREATE TABLE tasks (x)")))
    monkeypatch.setattr(tables, "VERSION", VERSION + 1)
    with pytest.raises(RunError, match="table tasks already exists"):
        open_(path)
    assert pragma(path, "user_version") == 1
    assert "half" not in dict(_tables(path))
    monkeypatch.undo()
    open_(path).close()
    assert pragma(path, "user_version") == VERSION


def test_processes_may_migrate_at_once(tmp_path: Path) -> None:
    path = of_version_1(tmp_path)
    code = f"""
import sys
from pathlib import Path
from konomi.labelling.answers import collect
from konomi.labelling.database import Store
from konomi.labelling.queue import Settings
print("ready", flush=True)
sys.stdin.readline()
with Store(Path({str(path)!r}), Settings()) as store:
    print(len(collect(store).judgements))
"""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    openers = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(4)]
    assert [opener.stdout.readline() for opener in openers] == ["ready\n"] * 4  # type: ignore[union-attr]
    for opener in openers:
        opener.stdin.write("go\n")  # type: ignore[union-attr]
        opener.stdin.flush()  # type: ignore[union-attr]
    assert [opener.communicate(timeout=60)[0] for opener in openers] == ["1\n"] * 4


def test_who_waited_for_another_to_migrate_finds_it_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = of_version_1(tmp_path)
    migrate = Store._migrate

    def after_another(self: Store) -> None:
        monkeypatch.setattr(Store, "_migrate", migrate)
        open_(path).close()
        migrate(self)

    monkeypatch.setattr(Store, "_migrate", after_another)
    open_(path).close()
    assert pragma(path, "user_version") == VERSION


# what is wrong with a file


def test_files_that_are_no_store(tmp_path: Path, path: Path) -> None:
    wrong(tmp_path / "none.sqlite3", "none.sqlite3: no such file; konomi label PROJECT --candidates FILE makes a project$")
    wrong(tmp_path, "no such file")
    foreign = tmp_path / "foreign.sqlite3"
    foreign.write_bytes(b"")
    wrong(foreign, "foreign.sqlite3: not a store of labels; it is empty or another program's: give the right file$")
    db = sqlite3.connect(foreign)
    db.execute("CREATE TABLE tasks (id)")
    db.close()
    wrong(foreign, "not a store of labels")
    foreign.write_bytes(b"prompt,response\n" * 1000)
    wrong(foreign, r"foreign.sqlite3: damaged, or not a database \(file is not a database\)\. Restore a backup; ")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (99, f"version 99; this konomi reads up to version {VERSION}: update konomi$"),
        (0, r"damaged, or not a database \(version 0\)\. Restore a backup"),
        (-1, r"damaged, or not a database \(version -1\)\. Restore a backup"),
    ],
)
def test_a_version_that_this_konomi_does_not_know(path: Path, version: int, message: str) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    wrong(path, f"labels.sqlite3: {message}")


@pytest.mark.parametrize("damage", ["cut", "zeros", "noise", "one page"])
def test_a_damaged_file_is_refused_with_the_way_to_mend_it(path: Path, damage: str) -> None:
    data = path.read_bytes()
    page, half = 4096, len(data) // 2 // 4096 * 4096
    data = {
        "cut": data[:half],
        "zeros": data[:page] + bytes(len(data) - page),
        "noise": data[:page] + bytes((n * 97 + 13) % 251 for n in range(len(data) - page)),
        "one page": data[:half] + b"\xff" * page + data[half + page :],
    }[damage]
    path.write_bytes(data)
    wrong(
        path,
        r"damaged, or not a database \(.+\)\. Restore .*: sqlite3 labels\.sqlite3 \.recover \| sqlite3 new\.sqlite3$",
    )


def test_damage_that_is_met_later_has_the_same_message(path: Path) -> None:
    store = open_(path)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    with pytest.raises(DataError, match=r"damaged, or not a database \(database disk image is malformed\)"):
        collect(store)
    store.close()


def test_a_file_that_is_there_is_not_overwritten(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"labels\.sqlite3: already exists; give another name or remove"):
        store_of(tmp_path)
    assert path.read_bytes() == before
    with pytest.raises(RunError, match=r"labels\.sqlite3: cannot be made: No such file or directory"):
        store_of(tmp_path / "nowhere")


def test_another_program_that_keeps_it_locked_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with open_(path) as store:
        aki = find_person(store, "Aki")
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        message = r"labels\.sqlite3: another program has kept it locked for 0\.05 s; end that program and try again$"
        with pytest.raises(RunError, match=message):
            remember(store, aki, shortcuts=False)
        other.execute("ROLLBACK")
        assert not remember(store, aki, shortcuts=False).shortcuts
        # a block that takes longer than the wait: the commit waits anew for somebody who reads
        with store.write() as db:
            other.execute("BEGIN")
            other.execute("SELECT * FROM people").fetchone()
            time.sleep(0.1)
            store.wait = 60.0
            db.execute("UPDATE people SET shortcuts = 0")
            leaves = threading.Timer(0.2, other.execute, ("COMMIT",))
            leaves.start()
        leaves.join()
        store.wait = 0.05
        # somebody who reads for long: the commit fails, nothing of it is there, and the store goes on
        other.execute("BEGIN")
        other.execute("SELECT * FROM people").fetchone()
        if journal_mode(sqlite3.sqlite_version_info) == "delete":
            with pytest.raises(RunError, match=message):
                remember(store, aki, shortcuts=True)
        other.execute("ROLLBACK")
        assert not find_person(store, "Aki").shortcuts
        other.close()


def test_a_full_disk_is_told(path: Path) -> None:
    with open_(path) as store:
        aki = find_person(store, "Aki")
        shown = take(store, aki)
        with store.read() as db:
            pages = db.execute("PRAGMA page_count").fetchone()[0]
        store.connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(
            RunError,
            match=r"labels\.sqlite3: database or disk is full; is there space on the disk, and may .*\?",
        ):
            for n in range(50):
                save(store, aki, answer_to(shown, comment=f"{n}" * 1000), NOW)
        store.connection.execute("PRAGMA max_page_count = 1000000")
        revision = own_answers(store, aki)[0].revision
        assert save(store, aki, answer_to(shown), NOW).revision == revision + 1 == len(_revisions(store, shown.id))


def _revisions(store: Store, shown: str) -> list[int]:
    with store.read() as db:
        return [number for (number,) in db.execute("SELECT revision FROM answers WHERE shown = ? ORDER BY 1", (shown,))]


# forget


@pytest.mark.parametrize("version", [(3, 40, 1), (3, 51, 3)], ids=["delete", "wal"])
def test_forget_leaves_no_trace(tmp_path: Path, version: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    store = store_of(tmp_path, 200, k=2)
    store.connection.execute("PRAGMA synchronous = OFF")
    aki, token = add_person(store, "Aki-who-leaves")
    ben = add_person(store, "Ben")[0]
    traces = [aki.id.encode(), b"Aki-who-leaves"]
    drawn = random.Random(0)
    for n in range(200):  # many rows of many sizes, so that pages are split and SQLite moves rows about
        for person in (aki, ben):
            words = f"words of {person.name} {n} "
            shown = take(store, person)
            answer = answer_to(shown, comment=words * drawn.randint(1, 60), reason=f"reason of {person.name} {n}")
            save(store, person, answer, NOW)
            traces += [shown.id.encode(), answer.id.encode()] if person == aki else []
            again = find_shown(store, person, drawn.choice(own_answers(store, person)).shown)
            assert again is not None
            save(store, person, answer_to(again, comment=words * drawn.randint(1, 60)), NOW)
    answered = progress_of(store, aki, NOW).mine
    of_ben = [each for each in collect(store).judgements if each.rater == ben.id]
    assert answered == 200
    assert all(trace in _bytes(tmp_path) for trace in traces[:2])
    assert forget(store, aki.id) == answered
    left = _bytes(tmp_path)
    for trace in [*traces, b"words of Aki", b"reason of Aki"]:
        assert trace not in left
    assert b"words of Ben" in left
    assert person_of(store, token) is None
    assert [*collect(store).judgements] == of_ben
    assert progress_of(store, ben, NOW).team == sum(not each.repeat for each in of_ben)
    eve = add_person(store, "Eve")[0]
    assert len(work(store, eve, 100)) == 100  # the places are free again
    store.close()


def _bytes(directory: Path) -> bytes:
    return b"".join(each.read_bytes() for each in directory.iterdir())


def test_forgetting_is_finished_when_the_store_is_opened_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))  # with a WAL readers let others delete, but not shorten it
    store = store_of(tmp_path, 40)
    aki = add_person(store, "Aki")[0]
    path = tmp_path / "labels.sqlite3"
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM tasks").fetchone()
    for shown in work(store, aki, 20):
        save(store, aki, answer_to(shown, comment="words of Aki " * 100), NOW)
    with pytest.raises(RunError, match="another program has kept it locked"):
        forget(store, "Aki")
    assert all_people(store) == []
    assert b"words of Aki" in _bytes(tmp_path)
    reader.close()
    open_(path).close()
    assert b"words of Aki" not in _bytes(tmp_path)
    store.close()
