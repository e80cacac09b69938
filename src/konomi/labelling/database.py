"""The store: one SQLite file of tasks, people and answers, for several threads and processes at once.

- A commit is on the disk before it returns. In WAL mode SQLite before 3.51.3 can, very rarely, damage the file; older versions
  use the rollback journal, with one more flush, so that a removed journal is not back after a power failure. Writers queue
  either way.
- Tables change only by migrations: a new file runs all of them, an old one those it lacks.
- Deleted data is overwritten (``secure_delete``).

This process must open the file only through SQLite: closing any other handle would drop all its locks.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from konomi.errors import DataError, RunError
from konomi.labelling import tables
from konomi.labelling.queue import Settings

APPLICATION = 0x6B6F6E6F
"""In the file's header: "kono"."""
BUSY_SECONDS = 30.0
"""How long to wait for another process that is writing."""
WAL_IS_SAFE = (3, 51, 3)


def journal_mode(version: Sequence[int]) -> str:
    """The journal mode to use with a version of SQLite.

    >>> [journal_mode(version) for version in ((3, 40, 1), (3, 51, 2), (3, 51, 3), (3, 52, 0), (4, 0, 0))]
    ['delete', 'delete', 'wal', 'wal', 'wal']
    """
    return "wal" if tuple(version) >= WAL_IS_SAFE else "delete"


class Store:
    """An open store and the settings of its project.

    The functions of this package take a store and open their own transactions; a transaction within another is part of it.
    They raise DataError when the file is damaged, and RunError when the disk fails or others keep the file locked.

    Attributes:
        settings: the project's; they are not in the file.
        wait: seconds that a transaction may wait for its turn, and again at its end; ``BUSY_SECONDS`` by default.
        cache: values that functions keep between calls.
    """

    def __init__(self, path: Path, settings: Settings, *, new: bool = False, wait: float | None = None) -> None:
        """Open the file, check it, and migrate its tables. With ``new`` create it, readable by its owner only.

        Raises:
            DataError: there is no such file (or, if ``new``, there is one); it is damaged, another program's, or of a
                newer konomi.
            RunError: it cannot be opened or written.
        """
        self.path, self.settings = path, settings
        self.wait = BUSY_SECONDS if wait is None else wait
        self.cache: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._mode = ""
        if new:
            self._make()
        elif not look_up(path, Path.is_file):
            raise DataError(f"{path}: no such file; konomi label PROJECT --candidates FILE makes a project")
        with explained(path, self.wait):
            self.connection = _connect(path, self.wait)
            try:
                self._prepare(new)
                if self.meta("compact"):
                    self.compact()
            except BaseException:
                self.connection.close()
                raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self.connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """A write transaction: committed to the disk when the block ends, rolled back when it raises."""
        return self._transaction("BEGIN IMMEDIATE")

    def read(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """A read transaction: one consistent snapshot."""
        return self._transaction("BEGIN")

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """As :meth:`read`, on a separate connection that blocks no other thread."""
        with explained(self.path, self.wait), contextlib.closing(_connect(self.path, self.wait)) as db:
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")

    def meta(self, key: str) -> str:
        """A value of the table meta, "" if it is missing."""
        with self.read() as db:
            return tables.meta(db, key)

    def set_meta(self, key: str, value: str) -> None:
        """Write a value of the table meta."""
        with self.write() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @property
    def frozen(self) -> bool:
        """Whether the collection is closed."""
        return bool(self.meta("frozen"))

    def freeze(self, frozen: bool = True) -> None:
        """Close or reopen the collection."""
        self.set_meta("frozen", "1" if frozen else "")

    def compact(self) -> None:
        """Rewrite the file to remove every trace of deleted rows: SQLite leaves copies when it moves rows.

        Raises:
            RunError: another process keeps the file locked. It is compacted when it is next opened.
        """
        with self._lock, explained(self.path, self.wait):
            self.connection.execute("VACUUM")
            busy = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]  # nothing to do without a WAL
            if busy:
                raise sqlite3.OperationalError("database is locked")
        self.set_meta("compact", "")

    def _make(self) -> None:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise DataError(f"{self.path}: already exists; give another name or remove it") from None
        except OSError as error:
            raise RunError(f"{self.path}: cannot be made: {error.strerror}") from error

    def _prepare(self, new: bool) -> None:
        db = self.connection
        db.execute("BEGIN")  # one lock for all reads: others may be writing
        application, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if not new and application != APPLICATION:
            raise DataError(f"{self.path}: not a store of labels; it is empty or another program's: give the right file")
        if not new and version < 1:
            raise sqlite3.DatabaseError(f"version {version}")
        if version > tables.VERSION:
            raise DataError(f"{self.path}: version {version}; this konomi reads up to version {tables.VERSION}: update konomi")
        result = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if result != "ok":
            raise sqlite3.DatabaseError(result.splitlines()[-1])
        db.execute("COMMIT")
        self._close_to_others()
        # where another program has it open with a WAL, leaving that mode is refused as "locked"
        db.execute(f"PRAGMA journal_mode = {journal_mode(sqlite3.sqlite_version_info)}")
        if new:
            db.execute(f"PRAGMA application_id = {APPLICATION}")
        if version < tables.VERSION:
            self._migrate()
        missing = sorted(tables.known_names() - tables.names(db))
        if missing:
            raise sqlite3.DatabaseError(f"there is no {missing[0]}")

    def _close_to_others(self) -> None:
        """Restrict the file, and those that SQLite keeps beside it, to their owner."""
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
            # read again under the lock: two processes may have opened an old file at once
            version = db.execute("PRAGMA user_version").fetchone()[0]
            tables.change(db, version)
            db.execute(f"PRAGMA user_version = {tables.VERSION}")

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        end = time.monotonic() + self.wait
        with explained(self.path, self.wait), self._turn():
            if self.connection.in_transaction:  # this thread's, as it holds the lock
                if self._mode == "BEGIN" != begin:
                    raise RuntimeError("a transaction that reads has no part that writes")
                yield self.connection
                return
            self._wait_for(end - time.monotonic())
            self.connection.execute(begin)
            self._mode = begin
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
        if not self._lock.acquire(timeout=self.wait):
            raise sqlite3.OperationalError("database is locked")
        try:
            yield
        finally:
            self._lock.release()

    def _wait_for(self, seconds: float) -> None:
        """Set how long SQLite waits for other processes."""
        self.connection.execute(f"PRAGMA busy_timeout = {max(0, math.ceil(1000 * seconds))}")


def look_up(path: Path, question: Callable[[Path], bool]) -> bool:
    """The answer to ``question`` about a path. Raises RunError: the path cannot be looked up."""
    try:
        return question(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be looked up: {error.strerror}") from error


@contextlib.contextmanager
def draft_of(path: Path, parent: Path) -> Iterator[Path]:
    """A directory in ``parent`` for its owner alone, which is removed at the end unless the block has renamed it.

    Raises RunError: something cannot be written.
    """
    draft = parent / f".{path.absolute().name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        draft.mkdir(mode=0o700, parents=True)
        yield draft
    except OSError as error:
        raise RunError(f"{path}: cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _connect(path: Path, wait: float) -> sqlite3.Connection:
    # mode=rw: a file that is gone must not be made anew, empty
    name = f"file:{quote(str(path.absolute()))}?mode=rw"
    db = sqlite3.connect(name, uri=True, timeout=wait, isolation_level=None, check_same_thread=False)
    for setting in ("foreign_keys = ON", "secure_delete = ON", "trusted_schema = OFF", "synchronous = EXTRA"):
        db.execute(f"PRAGMA {setting}")
    return db


@contextlib.contextmanager
def explained(path: Path, wait: float = BUSY_SECONDS) -> Iterator[None]:
    """Convert SQLite errors about the file or the disk to DataError and RunError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise RunError(
                f"{path}: another program has kept it locked for {wait:g} s; end that program and try again"
            ) from error
        if "no such" in str(error):  # a table or a column
            raise _damaged(path, error) from error
        raise RunError(f"{path}: {error}; is there space on the disk, and may the file be written?") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InternalError)):
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: sqlite3.DatabaseError) -> DataError:
    return DataError(
        f"{path}: damaged, or not a database ({error}). Restore a backup; to copy what can "
        f"still be read into a new file: sqlite3 {path.name} .recover | sqlite3 new.sqlite3"
    )
