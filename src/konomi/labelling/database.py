"""The SQLite file under the store: its tables, how it is opened, and what its errors mean.

- A commit is on the disk before it returns. In WAL mode SQLite before 3.51.3 can, very rarely, damage the file; there the
  rollback journal is used, with one more flush, so that no power failure brings a journal back. Writers queue either way.
- Tables change by migrations alone: a new file goes through all of them, an old one through those it lacks.
- What is deleted is overwritten (``secure_delete``).

This process must never open the file but through SQLite: closing any handle of it would drop the locks of them all.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from konomi.errors import DataError, RunError
from konomi.labelling.checksums import seal_all

APPLICATION = 0x6B6F6E6F
"""In the file's header ("kono"): that it is ours."""
BUSY_SECONDS = 30.0
"""How long to wait for another process that is writing."""
WAL_IS_SAFE = (3, 51, 3)

MIGRATIONS: tuple[tuple[str | Callable[[sqlite3.Connection], None], ...], ...] = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        # covered: people whose answer counts; place: on the queue's circle
        """CREATE TABLE tasks (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, place REAL NOT NULL,
            covered INTEGER NOT NULL DEFAULT 0, kind TEXT NOT NULL, lang TEXT NOT NULL, prompt TEXT NOT NULL,
            columns TEXT NOT NULL)""",
        "CREATE INDEX tasks_in_turn ON tasks (covered, place)",
        """CREATE TABLE candidates (task INTEGER NOT NULL REFERENCES tasks, number INTEGER NOT NULL, text TEXT NOT NULL,
            lang TEXT NOT NULL, names_model INTEGER NOT NULL, source TEXT NOT NULL, PRIMARY KEY (task, number)) WITHOUT ROWID""",
        "CREATE TABLE people (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, admin INTEGER NOT NULL, created REAL NOT NULL)",
        """CREATE TABLE tokens (hash BLOB PRIMARY KEY, person TEXT NOT NULL REFERENCES people ON DELETE CASCADE,
            created REAL NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX tokens_of ON tokens (person)",
        # places: numbers of the candidates in the order shown. number: the person's first answers counted from 1, repeats
        # apart; NULL before the answer. until: end of the lease, 0 when it was given up. kind, revision: of the latest answer
        """CREATE TABLE shown (id TEXT PRIMARY KEY, task INTEGER NOT NULL REFERENCES tasks,
            person TEXT NOT NULL REFERENCES people ON DELETE CASCADE, repeat INTEGER NOT NULL, places TEXT NOT NULL,
            at REAL NOT NULL, until REAL NOT NULL, number INTEGER, answered REAL, kind TEXT, revision INTEGER NOT NULL DEFAULT 0)
            WITHOUT ROWID""",
        "CREATE UNIQUE INDEX shown_once ON shown (person, task, repeat)",
        "CREATE INDEX shown_numbers ON shown (person, repeat, number)",
        "CREATE INDEX shown_newest ON shown (person, answered)",
        "CREATE INDEX shown_leases ON shown (task, until) WHERE number IS NULL",
        """CREATE TABLE answers (id TEXT PRIMARY KEY, shown TEXT NOT NULL REFERENCES shown ON DELETE CASCADE,
            revision INTEGER NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, ranks TEXT, flags TEXT NOT NULL, reason TEXT,
            comment TEXT NOT NULL, confidence INTEGER, seconds REAL NOT NULL, digest BLOB NOT NULL)""",
        "CREATE UNIQUE INDEX answers_of ON answers (shown, revision)",
    ),
    (
        "ALTER TABLE people ADD COLUMN guidelines_seen TEXT",
        "ALTER TABLE people ADD COLUMN shortcuts INTEGER NOT NULL DEFAULT 1",
    ),
    ("ALTER TABLE tasks ADD COLUMN checksum BLOB NOT NULL DEFAULT x''", seal_all),
)
VERSION = len(MIGRATIONS)


def journal_mode(version: Sequence[int]) -> str:
    """The journal mode to use with a version of SQLite.

    >>> journal_mode((3, 40, 1)), journal_mode((3, 51, 3))
    ('delete', 'wal')
    """
    return "wal" if tuple(version) >= WAL_IS_SAFE else "delete"


class Database:
    """One connection that the threads of a process share in turn. Other processes may have the file open too."""

    def __init__(self, path: Path, *, new: bool = False, wait: float | None = None) -> None:
        """Open the file, check it whole, and bring its tables up to date.

        Args:
            path: of the file.
            new: make the file, which must not exist, for its owner alone.
            wait: seconds that a transaction may wait for its turn, and again at its end; None: ``BUSY_SECONDS``.

        Raises:
            DataError: there is no such file (or, if ``new``, there is one); it is damaged, another program's, or of a
                newer konomi.
            RunError: it cannot be opened or written.
        """
        self.path = path
        self.wait = BUSY_SECONDS if wait is None else wait
        self.lock = threading.RLock()
        if new:
            self._make()
        elif not self._is_there():
            raise DataError(f"{path}: no such file; konomi label PROJECT --candidates FILE makes a project")
        with explained(path, self.wait):
            self.connection = _connect(path, self.wait)
            try:
                self._prepare(new)
            except BaseException:
                self.connection.close()
                raise

    def close(self) -> None:
        """Close the file. What was committed is there."""
        with self.lock:
            self.connection.close()

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that may write: all of it is on the disk when the block ends, or nothing of it when it raises."""
        with self._transaction("BEGIN IMMEDIATE") as db:
            yield db

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one moment."""
        with self._transaction("BEGIN") as db:
            yield db

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """As :meth:`read`, on a connection of its own: other threads need not wait."""
        with explained(self.path, self.wait), contextlib.closing(_connect(self.path, self.wait)) as db:
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")

    def compact(self) -> None:
        """Write the file anew, so that no trace is left in it of what was deleted: SQLite moves rows and leaves copies.

        Raises:
            RunError: others have the file open all the time.
        """
        with self.lock, explained(self.path, self.wait):
            self.connection.execute("VACUUM")
            busy = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]  # nothing to do without a WAL
            if busy:
                raise sqlite3.OperationalError("database is locked")

    def _is_there(self) -> bool:
        try:
            return self.path.is_file()
        except OSError as error:
            raise RunError(f"{self.path}: cannot be looked up: {error.strerror}") from error

    def _make(self) -> None:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise DataError(f"{self.path}: is there already and is not overwritten; give another name or remove it") from None
        except OSError as error:
            raise RunError(f"{self.path}: cannot be made: {error.strerror}") from error

    def _prepare(self, new: bool) -> None:
        db = self.connection
        db.execute("BEGIN")  # one lock for all that is read: others may be writing all the time
        application, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if not new and application != APPLICATION:
            raise DataError(f"{self.path}: not a store of labels; it is empty or another program's: give the right file")
        if not new and version < 1:
            raise sqlite3.DatabaseError(f"version {version}")
        if version > VERSION:
            raise DataError(f"{self.path}: version {version}; this konomi reads up to version {VERSION}: update konomi")
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found.splitlines()[-1])
        db.execute("COMMIT")
        self._close_to_others()
        # where another program has it open with a WAL, leaving that mode is refused as "locked"
        db.execute(f"PRAGMA journal_mode = {journal_mode(sqlite3.sqlite_version_info)}")
        if new:
            db.execute(f"PRAGMA application_id = {APPLICATION}")
        if version < VERSION:
            self._migrate()
        missing = sorted(_known_names() - _names(db))
        if missing:
            raise sqlite3.DatabaseError(f"there is no {missing[0]}")

    def _close_to_others(self) -> None:
        """The file, and those that SQLite keeps beside it, for their owner alone."""
        if os.name != "posix":
            return
        for path in (Path(f"{self.path}{end}") for end in ("", "-wal", "-shm", "-journal")):
            try:
                if stat.S_IMODE(path.stat().st_mode) & 0o077:
                    path.chmod(0o600)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise RunError(f"{path}: cannot be closed to others on this machine: {error.strerror}; is it yours?") from error

    def _migrate(self) -> None:
        with self.write() as db:
            # asked again under the lock: two processes may have opened an old file at once
            version = db.execute("PRAGMA user_version").fetchone()[0]
            _change_tables(db, version)
            db.execute(f"PRAGMA user_version = {VERSION}")

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        end = time.monotonic() + self.wait
        with explained(self.path, self.wait), self._turn():
            self._wait_for(end - time.monotonic())
            self.connection.execute(begin)
            try:
                yield self.connection
                self._wait_for(self.wait)  # anew: the block may have taken long
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if not self.lock.acquire(timeout=self.wait):
            raise sqlite3.OperationalError("database is locked")
        try:
            yield
        finally:
            self.lock.release()

    def _wait_for(self, seconds: float) -> None:
        """Let SQLite wait for other processes so long."""
        self.connection.execute(f"PRAGMA busy_timeout = {max(0, math.ceil(1000 * seconds))}")


def _connect(path: Path, wait: float) -> sqlite3.Connection:
    # mode=rw: a file that is gone must not be made anew, empty
    name = f"file:{quote(str(path.absolute()))}?mode=rw"
    db = sqlite3.connect(name, uri=True, timeout=wait, isolation_level=None, check_same_thread=False)
    for setting in ("foreign_keys = ON", "secure_delete = ON", "trusted_schema = OFF", "synchronous = EXTRA"):
        db.execute(f"PRAGMA {setting}")
    return db


def _change_tables(db: sqlite3.Connection, version: int) -> None:
    for statement in (each for step in MIGRATIONS[version:] for each in step):
        db.execute(statement) if isinstance(statement, str) else statement(db)


def _names(db: sqlite3.Connection) -> set[str]:
    """Of the tables and indexes."""
    return {f"{kind} {name}" for kind, name in db.execute("SELECT type, name FROM sqlite_master")}


@functools.cache
def _known_names() -> frozenset[str]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        _change_tables(db, 0)
        return frozenset(_names(db))


@contextlib.contextmanager
def explained(path: Path, wait: float = BUSY_SECONDS) -> Iterator[None]:
    """Turn errors of SQLite about the file or the disk into ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise RunError(
                f"{path}: another program has kept it locked for {wait:g} s; end that program and try again"
            ) from error
        if "no such" in str(error):  # a table or a column
            raise _damaged(path, error) from error
        raise RunError(f"{path}: {error}; is there space, and may it be written?") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InternalError)):
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: sqlite3.DatabaseError) -> DataError:
    return DataError(
        f"{path}: damaged, or not a database ({error}). Put a copy from before in its place; what can still be read goes "
        f"into a new file by: sqlite3 {path.name} .recover | sqlite3 new.sqlite3"
    )
