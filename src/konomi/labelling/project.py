"""A labelling project: a directory of settings, guidelines and the store, for its owner alone.

::

    PROJECT/
    ├── project.json      title, languages, settings of the queue and of answers; may be edited while no server runs
    ├── guidelines.md     shown to raters first; may be edited at any time
    └── labels.sqlite3    tasks, people, answers
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from konomi.config.section import Section, build
from konomi.data.formats import read_tasks
from konomi.errors import ConfigError, DataError
from konomi.files import read_utf8, utf8, write_atomic
from konomi.labelling.database import Store, draft_of, look_up
from konomi.labelling.import_tasks import add_tasks, create_store, language_of
from konomi.labelling.queue import Settings
from konomi.labelling.records import ChatOptions, Imported, LabelOptions, NewTask, Text
from konomi.reading import parse_json

VERSION = 1
LANGUAGES = ("ja", "en")
"""Of the page that raters see."""
GUIDELINES, CHAT_GUIDELINES = (
    Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("guidelines.md", "guidelines_chat.md")
)
"""The guidelines of a new project, and of one in which raters talk with a model; its owner edits them."""


class Project(Section):
    """A project and its settings."""

    path: Path = Field(exclude=True)  # the directory
    title: Text  # shown on the page
    created: float  # seconds since 1970
    lang: str  # in which the page starts, one of languages
    languages: Annotated[tuple[str, ...], Field(min_length=1)]  # that a person can choose from
    settings: Settings
    label: LabelOptions = LabelOptions()
    chat: ChatOptions | None = None  # raters talk with a model instead of ranking tasks

    @model_validator(mode="after")
    def _check_languages(self) -> Project:
        if not set(self.languages) <= set(LANGUAGES) or self.lang not in self.languages:
            known = f"some of {', '.join(LANGUAGES)} are needed, and lang one of these"
            raise ValueError(f"languages {list(self.languages)} and lang {self.lang!r}; {known}")
        return self

    @property
    def labels(self) -> Path:
        """The store's file."""
        return self.path / "labels.sqlite3"

    def store(self, wait: float | None = None) -> Store:
        """Open the store, see :class:`Store`."""
        return Store(self.labels, self.settings, wait=wait)

    def guidelines(self) -> str:
        """The text of guidelines.md as it is now, its lines ended by "\\n".

        Raises:
            DataError: it is missing, or not UTF-8.
        """
        path = self.path / "guidelines.md"
        try:
            return read_utf8(path).replace("\r\n", "\n").replace("\r", "\n")
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; write one: it may be empty") from error


def tasks_of(candidates: Path) -> list[NewTask]:
    """The tasks in a file of candidates. Raises DataError: it cannot be read, or a row is wrong."""
    return [NewTask.of(task) for task in read_tasks(candidates)]


def create_project(
    path: Path,
    tasks: Iterable[NewTask] | None,
    *,
    title: str | None = None,
    lang: str | None = None,
    settings: Settings | None = None,
    options: LabelOptions | None = None,
    chat: ChatOptions | None = None,
    models: Iterable[str] = (),
) -> tuple[Project, Imported]:
    """Make a project; a failure leaves nothing behind.

    Args:
        path: a directory that does not exist yet, or is empty.
        tasks: None: with ``chat``.
        title: None: the directory's name.
        lang: in which the page starts; None: that of most prompts.
        models: as in :func:`create_store`.

    Raises:
        DataError: ``path`` exists; there are no tasks, or one cannot be used.
        RunError: it cannot be written.
    """
    settings, tasks = settings or Settings(), None if tasks is None else list(tasks)
    _check_free(path)
    if lang is None:
        lang = _most(task.lang or language_of(task.prompt) for task in tasks or ())
    place = path.absolute()
    project = Project(
        path=place, title=title or place.name, created=time.time(), lang=lang, languages=LANGUAGES, settings=settings,
        label=options or LabelOptions(), chat=chat,
    )  # fmt: skip
    with draft_of(path, place if place.is_dir() else place.parent) as draft:
        store, imported = create_store(draft / project.labels.name, tasks, settings, models)
        store.close()
        content = {"version": VERSION, **project.model_dump()}
        for name, text in (
            ("guidelines.md", GUIDELINES if chat is None else CHAT_GUIDELINES),
            ("project.json", json.dumps(content, ensure_ascii=False, indent=2) + "\n"),
        ):
            write_atomic(draft / name, utf8(text))
            (draft / name).chmod(0o600)
        _move(draft, place)
    return project, imported


def _move(directory: Path, place: Path) -> None:
    if not place.is_dir():
        directory.rename(place)
        return
    place.chmod(0o700)  # filled and not replaced: it may be somebody's current directory
    for file in sorted(directory.iterdir(), key=lambda each: each.name == "project.json"):
        file.rename(place / file.name)


def provide(
    path: Path, tasks: Sequence[NewTask], settings: Settings | None = None, options: LabelOptions | None = None
) -> tuple[Project, Imported]:
    """The project at ``path`` with the tasks added; a new one is made with ``settings`` and ``options``.

    Raises as :func:`create_project`, :func:`open_project` and :func:`add_tasks` do; DataError: its raters talk with a model.
    """
    if not is_project(path):
        return create_project(path, tasks, settings=settings, options=options)
    project = open_project(path)
    if project.chat is not None:
        raise DataError(f"{path}: its raters talk with a model; candidates need a project of their own: give another name")
    with project.store() as store:
        return project, add_tasks(store, tasks)


def is_project(path: Path) -> bool:
    """Whether there is a project. Raises RunError: that cannot be looked up."""
    return look_up(path, lambda directory: (directory / "project.json").exists())


def _check_free(path: Path) -> None:
    if is_project(path):
        raise DataError(f"{path}: is a project already; give another name, or open it: konomi label {path}")
    taken = look_up(path, lambda each: each.is_symlink() or (each.exists() and (not each.is_dir() or any(each.iterdir()))))
    if taken:
        raise DataError(f"{path}: already exists and is no project; give another name or remove it")


def open_project(path: Path) -> Project:
    """Read project.json.

    Raises:
        DataError: there is no project; a key is missing, unknown, or not what it should be; it is of a newer konomi.
    """
    file = path / "project.json"
    try:
        data = parse_json(read_utf8(file))
    except FileNotFoundError:
        raise DataError(f"{path}: no {file.name} there; konomi label PROJECT --candidates FILE makes a project") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from error
    version = data.pop("version", None) if isinstance(data, dict) else None
    if not isinstance(version, int) or version < 1:
        raise DataError(f"{file}: not the settings of a project: there is no version")
    if version > VERSION:
        raise DataError(f"{file}: version {version}; this konomi reads up to version {VERSION}: update konomi")
    if "path" in data:
        raise DataError(f"{file}: path: unknown key; remove it")
    try:
        project = build(Project, {**data, "path": str(path)}, where=str(file))
    except ConfigError as error:
        raise DataError(str(error)) from None
    if missing := [name for name in Settings.model_fields if name not in data.get("settings", {})]:
        raise DataError(f"{file}: no 'settings.{missing[0]}'; add it")
    return project


def _most(languages: Iterable[str]) -> str:
    """The most frequent language among those of the page."""
    known = Counter(each for each in languages if each in LANGUAGES).most_common(1)
    return known[0][0] if known else LANGUAGES[0]
