"""A labelling project: a directory of settings, guidelines and the store, for its owner alone.

::

    PROJECT/
    ├── project.json      title, languages, settings of the queue; may be edited while no server runs
    ├── guidelines.md     what the people read first; may be edited at any time
    └── labels.sqlite3    tasks, people, answers
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from konomi.data.formats import read_tasks
from konomi.data.rows import near
from konomi.errors import DataError, RunError
from konomi.files import read_utf8, utf8, write_atomic
from konomi.labelling.checks import whole
from konomi.labelling.guidelines import GUIDELINES
from konomi.labelling.import_tasks import language_of
from konomi.labelling.queue import Settings
from konomi.labelling.records import Imported, NewTask
from konomi.labelling.store import Store
from konomi.reading import parse_json

VERSION = 1
LANGUAGES = ("ja", "en")
"""That the page speaks."""


@dataclass(frozen=True)
class Project:
    """What is in project.json.

    Attributes:
        path: the project's directory.
        title: shown on the page.
        created: seconds since 1970.
        lang: the language in which the page starts, one of ``languages``.
        languages: those that a person can choose from.
        settings: how the work is handed out.
    """

    path: Path
    title: str
    created: float
    lang: str
    languages: tuple[str, ...]
    settings: Settings

    @property
    def labels(self) -> Path:
        """The store's file."""
        return self.path / "labels.sqlite3"

    def store(self, wait: float | None = None) -> Store:
        """Open the store; ``wait`` and errors are those of :meth:`Store.open`."""
        return Store.open(self.labels, self.settings, wait)

    def guidelines(self) -> str:
        """The text of guidelines.md as it is now, its lines ended by "\\n" whichever editor wrote them.

        Raises:
            DataError: it is not there, or not UTF-8.
        """
        path = self.path / "guidelines.md"
        try:
            return read_utf8(path).replace("\r\n", "\n").replace("\r", "\n")
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; write one: it may be empty") from error


def tasks_of(candidates: Path) -> list[NewTask]:
    """The tasks in a file that ``konomi sample`` made. Raises DataError: it cannot be read, or a row is wrong."""
    return [NewTask.of(task) for task in read_tasks(candidates)]


def create_project(
    path: Path,
    tasks: Iterable[NewTask],
    *,
    title: str | None = None,
    lang: str | None = None,
    settings: Settings | None = None,
    models: Iterable[str] = (),
) -> tuple[Project, Imported]:
    """Make a project, whole or not at all, and say what became of the tasks.

    Args:
        path: a directory that does not exist yet, or is empty.
        tasks: at least one.
        title: None: the directory's name.
        lang: that the page starts in; None: that of most prompts.
        settings: None: the usual ones.
        models: as in :meth:`Store.create`.

    Raises:
        DataError: there is something at ``path``; there are no tasks, or one cannot be used.
        RunError: it cannot be written.
    """
    settings, tasks = settings or Settings(), list(tasks)
    _check_free(path)
    if lang is None:
        lang = _most(task.lang or language_of(task.prompt) for task in tasks)
    place = path.absolute()
    project = Project(place, whole(title or place.name), time.time(), lang, LANGUAGES, settings)
    half_done = (place if place.is_dir() else place.parent) / f".{place.name}.{os.getpid()}.tmp"
    try:
        half_done.mkdir(mode=0o700, parents=True)
        store, imported = Store.create(half_done / project.labels.name, tasks, settings, models)
        store.close()
        _put(half_done / "guidelines.md", utf8(GUIDELINES))
        _put(half_done / "project.json", _json(project))
        _move(half_done, place)
    except OSError as error:
        raise RunError(f"{path}: cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(half_done, ignore_errors=True)
    return project, imported


def _move(made: Path, place: Path) -> None:
    if not place.is_dir():
        made.rename(place)
        return
    place.chmod(0o700)  # filled and not replaced: somebody may stand in it
    for file in sorted(made.iterdir(), key=lambda each: each.name == "project.json"):
        file.rename(place / file.name)


def provide(path: Path, tasks: Sequence[NewTask], settings: Settings | None = None) -> tuple[Project, Imported]:
    """The project at ``path`` with the tasks in it: made with ``settings`` if it is not there, else as it is.

    Raises as :func:`create_project`, :func:`open_project` and :meth:`Store.add_tasks` do.
    """
    if not is_project(path):
        return create_project(path, tasks, settings=settings)
    project = open_project(path)
    with project.store() as store:
        return project, store.add_tasks(tasks)


def is_project(path: Path) -> bool:
    """Whether there is a project. Raises RunError: that cannot be looked up."""
    try:
        return (path / "project.json").exists()
    except OSError as error:
        raise RunError(f"{path}: cannot be looked up: {error.strerror}") from error


def _check_free(path: Path) -> None:
    if is_project(path):
        raise DataError(f"{path}: is a project already; give another name, or open it: konomi label {path}")
    try:
        taken = path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir())))
    except OSError as error:
        raise RunError(f"{path}: cannot be looked up: {error.strerror}") from error
    if taken:
        raise DataError(f"{path}: is there already and is no project; give another name or remove it")


def open_project(path: Path) -> Project:
    """Read project.json.

    Raises:
        DataError: there is no project; a key is missing, unknown, or not what it should be; it is of a newer konomi.
    """
    file = path / "project.json"
    try:
        said = parse_json(read_utf8(file))
    except FileNotFoundError:
        raise DataError(f"{path}: no {file.name} there; konomi label PROJECT --candidates FILE makes a project") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from error
    version = said.get("version") if isinstance(said, dict) else None
    if not isinstance(version, int) or version < 1:
        raise DataError(f"{file}: not the settings of a project: there is no version")
    if version > VERSION:
        raise DataError(f"{file}: version {version}; this konomi reads up to version {VERSION}: update konomi")
    _known(file, said, ("version", "title", "created", "lang", "languages", "settings"), "")
    title, created, lang, languages = (said[name] for name in ("title", "created", "lang", "languages"))
    if not isinstance(title, str) or not isinstance(created, (int, float)) or not isinstance(languages, list):
        raise DataError(f"{file}: title has to be a text, created a number, languages a list")
    if not languages or not set(map(str, languages)) <= set(LANGUAGES) or lang not in languages:
        known = ", ".join(LANGUAGES)
        raise DataError(f"{file}: languages {languages} and lang {lang!r}; some of {known} are needed, and lang one of these")
    settings = said["settings"]
    if not isinstance(settings, dict):
        raise DataError(f"{file}: settings has to be an object")
    _known(file, settings, tuple(field.name for field in fields(Settings)), "settings.")
    try:
        return Project(path, whole(title), created, lang, tuple(languages), Settings(**settings))
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def _known(file: Path, said: dict[str, Any], names: Sequence[str], where: str) -> None:
    for name in said:
        if name not in names:
            raise DataError(f"{file}: unknown key {where + name!r}{near(name, names)}; known: {', '.join(names)}")
    for name in names:
        if name not in said:
            raise DataError(f"{file}: no {where + name!r}; add it")


def _json(project: Project) -> bytes:
    said = {"version": VERSION, **asdict(project)}
    del said["path"]
    return utf8(json.dumps(said, ensure_ascii=False, indent=2) + "\n")


def _put(path: Path, data: bytes) -> None:
    write_atomic(path, data)
    path.chmod(0o600)


def _most(languages: Iterable[str]) -> str:
    """The commonest language that the page speaks."""
    known = Counter(each for each in languages if each in LANGUAGES).most_common(1)
    return known[0][0] if known else LANGUAGES[0]
