"""Import tasks: merge equal texts, guess languages, and flag texts that name a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import sqlite3
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from konomi.data.records import Candidate, Prompt
from konomi.data.rows import checked_text
from konomi.errors import DataError
from konomi.files import plain
from konomi.labelling.database import Store
from konomi.labelling.queue import Settings, place_of
from konomi.labelling.records import KINDS, Imported, NewTask
from konomi.labelling.tables import meta_list, seal_task
from konomi.labelling.validation import as_seen
from konomi.text import plural

MODELS = (
    *("ChatGPT", "GPT", "OpenAI", "Anthropic", "Google Bard", "DeepMind", "Mixtral", "Qwen", "Tongyi", "通义千问", "DeepSeek"),
    *("SmolLM", "Phi-3", "Phi-4", "ELYZA", "rinna", "Swallow-LM", "PLaMo", "calm2", "calm3", "CyberAgentLM", "StableLM"),
    *("Command R", "Falcon LLM", "Alpaca-LoRA"),
)
"""Model families whose names have no other meaning."""
_WORDS = "|".join(("Claude", "Llama", "Gemini", "Gemma", "Grok", "Falcon", "Mistral", "Swallow", "Copilot", "Vicuna"))
"""Families whose names are also words or first names: the context decides."""
_VERSION = re.compile(rf"(?<![A-Za-z0-9])({_WORDS})( ?v?\d|-[A-Za-z0-9])|\bby ({_WORDS})(?![A-Za-z]|(?-i: [A-Z]))", re.I)
_ALONE = re.compile(rf"(?<![A-Za-z0-9])({_WORDS})(?![A-Za-z])", re.I)
_OF_MODELS = re.compile(
    r"\bmodels?\b|\bassistant\b|(?<![A-Za-z])AI(?![A-Za-z])|\bI am\b|\bI['’]m\b|\bmy name is\b"
    r"|モデル|アシスタント|(私|わたし|僕|ぼく|俺)は|として",
    re.I,
)
_SENTENCE = re.compile(r"[.!?](?=\s)|[。！？\n]")
_CONFESSIONS = re.compile(
    r"\b(as|I am|I['’]m) an? (large )?((AI|artificial intelligence|language) )+(model|assistant)\b"
    r"|(言語モデル|(AI|人工知能)(の|・)?アシスタント)(として|です|である)|(?<![A-Za-z])AIとして",
    re.I,
)
_GENERIC = {"base", "after", "before", "tuned", "model", "models", "initial", "final", "test", "policy", "chat", "instruct"}
"""Directory names that name no model."""
_INVISIBLE = re.compile("[\u034f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Variation selectors and the grapheme joiner."""
_TAG = re.compile("[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
_JAPANESE = re.compile("[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]")


@dataclass(frozen=True)
class Prepared:
    """Tasks that were checked for an import."""

    rows: list[Row]
    notes: tuple[str, ...]  # what was left out, and why: one sentence each
    names: tuple[str, ...]  # of models that were looked for, to be looked for again in later tasks
    unchanged: tuple[str, ...]  # digests of the before/after texts that are the same text: there is nothing to compare


@dataclass(frozen=True)
class Row:
    """A task as it is stored; ``candidates`` are rows of text, language, whether it names a model, source."""

    digest: str
    prompt: str
    lang: str
    kind: str
    columns: str
    candidates: tuple[tuple[str, str, bool, str], ...]


def create_store(
    path: Path, tasks: Iterable[NewTask] | None, settings: Settings, models: Iterable[str] = ()
) -> tuple[Store, Imported]:
    """Make a store of tasks. A text that names a model, one of ``models`` or of the sources of the texts, is flagged.

    ``tasks``: None: there are none yet, as raters write them.

    Raises:
        DataError: the file exists; there are no tasks, or one cannot be used. No file is then made.
        RunError: it cannot be written.
    """
    nothing = Prepared([], (), model_names(models), ())
    prepared = nothing if tasks is None else prepare(list(tasks), settings.k_max, models)
    store = Store(path, settings, new=True)
    try:
        return store, _insert(store, prepared)
    except BaseException:
        store.close()
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def add_tasks(store: Store, tasks: Iterable[NewTask]) -> Imported:
    """Add tasks; known ones stay as they are.

    Raises:
        DataError: there are no tasks, or one cannot be used; the collection is closed, and a task is new. None is then added.
    """
    with store.read() as db:
        known = meta_list(db, "models")
    return _insert(store, prepare(list(tasks), store.settings.k_max, known))


def _insert(store: Store, prepared: Prepared) -> Imported:
    with store.write() as db:
        added = sum(insert_task(db, task, place_of(task.digest, store.settings)) is not None for task in prepared.rows)
        if added and store.frozen:  # all of it is undone
            new, project = plural(added, "new task"), store.path.parent
            raise DataError(
                f"{project}: the collection is closed, so nobody could answer {new}; reopen it on the page "
                f'"People" (konomi label {shlex.quote(str(project))}), then add them'
            )
        for key, more in (("models", prepared.names), ("unchanged", prepared.unchanged)):
            store.set_meta(key, json.dumps(list(dict.fromkeys([*meta_list(db, key), *more]))))
    return Imported(added, len(prepared.rows) - added, prepared.notes)


def insert_task(db: sqlite3.Connection, task: Row, place: float) -> int | None:
    """Insert a task at a place on the queue's circle; its id, or None: it is there already."""
    row = db.execute(
        "INSERT INTO tasks (digest, place, kind, lang, prompt, columns) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (task.digest, place, task.kind, task.lang, task.prompt, task.columns),
    )
    if not row.rowcount:
        return None
    id = int(row.lastrowid or 0)
    candidates = [(id, number, *each) for number, each in enumerate(task.candidates)]
    db.executemany("INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?)", candidates)
    seal_task(db, id)
    return id


def language_of(text: str) -> str:
    """``ja`` for a text with kana or Chinese characters in it, else ``en``.

    >>> language_of("今日の天気は"), language_of("The weather today")
    ('ja', 'en')
    """
    return "ja" if _JAPANESE.search(text) else "en"


def names_a_model(text: str, names: Iterable[str] = ()) -> bool:
    """Whether a text reveals that a model wrote it: by a name, or "as an AI language model".

    A family whose name is also a word (Claude, Llama, Gemini) counts with a version, or in a sentence that speaks of models,
    AI, or "I am"; ``names`` count besides those of well-known families.

    >>> names_a_model("私は ＧＰＴ-4 です。"), names_a_model("I am Claude."), names_a_model("Claude Monet was a painter.")
    (True, True, False)
    """
    # full-width letters and invisible characters hide a name from a program but not from a reader
    normal = unicodedata.normalize("NFKC", text)
    visible = "".join(each for each in normal if unicodedata.category(each) != "Cf" and not _INVISIBLE.match(each))
    if _CONFESSIONS.search(visible) or _VERSION.search(visible):
        return True
    if any(_ALONE.search(each) and _OF_MODELS.search(each) for each in _SENTENCE.split(visible)):
        return True
    known = "|".join(re.escape(unicodedata.normalize("NFKC", name)) for name in (*MODELS, *names))
    # a version may follow (GPT4, gemma3), a letter may not; Japanese stands beside a name without a space
    return re.search(rf"(?<![A-Za-z0-9])({known})(?![A-Za-z])", visible, re.I) is not None


def model_names(models: Iterable[object]) -> tuple[str, ...]:
    """The forms in which a text could name models: ``google/gemma-3`` also as ``gemma-3``."""
    names: dict[str, None] = {}
    for model in dict.fromkeys(str(each) for each in models if each):
        for name in (model, re.split(r"[/\\:]", model.rstrip("/\\"))[-1]):
            if len(name) >= 4 and name.lower() not in _GENERIC:
                names[name] = None
    return tuple(names)


def prepare(tasks: Sequence[NewTask], k_max: int, models: Iterable[object] = ()) -> Prepared:
    """Check tasks for an import.

    Of equal texts of a task only the first is kept. A task with fewer than two different texts is left out.

    Args:
        k_max: candidates that a task may have.
        models: names of models besides those in the sources of the candidates.

    Raises:
        DataError: there is no task, or one is not what :class:`NewTask` says.
    """
    if not tasks:
        raise DataError("no tasks: there is nothing to label; konomi sample makes a file of candidates")
    names = model_names([*models, *(each.source.get("model") for task in tasks for each in task.candidates)])
    notes: list[str] = []
    rows = [_row(f"task {number}", task, k_max, names, notes) for number, task in enumerate(tasks, start=1)]
    kept = [each for each in rows if each is not None]
    if not kept:
        raise DataError(f"no task is left: all {len(tasks)} have fewer than two different texts; draw others")
    unchanged = {
        _digest(Prompt(task.prompt).key, task.candidates[0].text)
        for task, each in zip(tasks, rows, strict=True)
        if each is None and task.kind == "compare"
    }
    return Prepared(kept, tuple(notes), names, tuple(sorted(unchanged)))


def _row(where: str, task: NewTask, k_max: int, names: Sequence[str], notes: list[str]) -> Row | None:
    checked_text(where, "the prompt", task.prompt)
    if task.kind not in KINDS:
        raise DataError(f"{where}: kind {task.kind!r}; one of {', '.join(KINDS)} is needed")
    if task.lang is not None and not _TAG.fullmatch(task.lang):
        raise DataError(f"{where}: lang {task.lang!r}; a tag such as ja or en-GB is needed")
    if len(task.candidates) < 2:
        raise DataError(f"{where}: {len(task.candidates)} candidate; at least two are needed to compare: draw more, or remove it")
    places: dict[str, int] = {}
    kept: list[Candidate] = []
    for number, each in enumerate(task.candidates, start=1):
        text = checked_text(where, f"candidate {number}", each.text, blank=True)
        first = places.setdefault(as_seen(text), number)
        if first == number:
            kept.append(each)
        else:
            notes.append(f"{where}: candidate {number} is the same text as candidate {first}; it was left out")
    if len(kept) > k_max:
        raise DataError(f"{where}: {len(kept)} candidates; up to {k_max} can be ranked at once: split it into several tasks")
    if len(kept) < 2:
        notes.append(f"{where}: all candidates are the same text; the task was left out")
        return None
    lang = task.lang or language_of(task.prompt)
    candidates = []
    for each in kept:
        own = task.lang or (language_of(each.text) if any(map(str.isalpha, each.text)) else lang)
        candidates.append((each.text, own, names_a_model(each.text, names), _json(where, "source", each.source)))
    digest = _digest(task.kind, Prompt(task.prompt).key, *sorted(each.text for each in kept))
    return Row(digest, task.prompt, lang, task.kind, _json(where, "columns", task.columns), tuple(candidates))


def _digest(*parts: str) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _json(where: str, what: str, value: object) -> str:
    try:
        return json.dumps(plain(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {what} cannot be kept as JSON: {error}") from error
