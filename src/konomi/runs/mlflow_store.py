"""Open an MLflow store: its address, its errors, and MLflow's own messages silenced."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

_LOGGERS = ("mlflow", "alembic", "urllib3", "sqlalchemy")


def sqlite_uri(path: Path) -> str:
    """The SQLAlchemy URL, as MLflow takes it, of the SQLite file ``path``."""
    text = path.as_posix()
    if set("%?#").isdisjoint(text):  # MLflow creates the directory as the URL spells it: escape only if necessary
        return f"sqlite:///{text}"
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=text).render_as_string()


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """Wrap the opening of a store: fail at once if a database is unreachable; lock a SQLite file while its tables are created.

    MLflow itself would try ten times, for 100 seconds, and runs that start together would corrupt the tables.
    """
    from filelock import FileLock
    from sqlalchemy.engine import make_url

    if urlsplit(uri).scheme.partition("+")[0] not in ("sqlite", "postgresql", "mysql", "mssql"):
        yield
        return
    url = make_url(uri)
    if url.drivername != "sqlite" or not url.database:
        if url.host and url.port:
            socket.create_connection((url.host, url.port), timeout=3).close()
        yield
        return
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(url.database, timeout=3)) as database:
        database.execute("PRAGMA schema_version")
    with FileLock(f"{url.database}.lock", timeout=60):
        yield


def failures() -> tuple[type[BaseException], ...]:
    """The exceptions of an unusable store or its driver. The first call imports mlflow (3 s)."""
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError
    from urllib3.exceptions import HTTPError

    network = (MlflowException, RequestException, HTTPError, OSError)
    database = (SQLAlchemyError, CommandError, sqlite3.Error)
    return (*network, *database, ImportError, ValueError)  # the database's driver is not installed; no address at all


@contextmanager
def quiet(environment: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set and silence MLflow, then restore both."""
    added = {name: value for name, value in environment.items() if name not in os.environ}
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    os.environ.update(added)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's dependencies deprecate one another
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        for name, level in levels.items():
            if logging.getLogger(name).level == logging.CRITICAL:  # else the import of mlflow has set one of its own
                logging.getLogger(name).setLevel(level)
