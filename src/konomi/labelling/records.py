"""What goes into the store and what comes out of it.

What a person may see and what must stay behind are different types: a :class:`Shown` has no place for a model's name, a
candidate's number or another person's answer; :class:`Item` and :class:`Judgement` have them, and only an export makes these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from konomi.data.records import Candidate, Task
from konomi.errors import DataError

KINDS = ("rank", "compare", "same")
"""Of tasks: answers of any models; before and after of one run; two texts of the same model (A/A)."""
ANSWERS = ("ranked", "all_bad", "skipped")
FLAGS = ("unsafe", "broken", "reveals")
KEYS = "abcdefghi"
"""Names of the texts of one showing, in the order shown."""
COMMENT_LIMIT, REASON_LIMIT, NAME_LIMIT = 2000, 200, 80
"""Characters."""
SECONDS_LIMIT = 86_400.0
NOTHING_YET = "nobody has answered anything yet: there is nothing to export"


class Refused(DataError):
    """Something that a person sent is not taken. Nothing was changed.

    Attributes:
        code: what is wrong, in one word, for pages that say it in the reader's language: ``frozen``, ``conflict``,
            ``conflict_revision``, ``unknown_task``, ``unknown_person``, ``bad_id``, ``bad_kind``, ``bad_ranks``,
            ``bad_reason``, ``bad_flags``, ``bad_confidence``, ``bad_seconds``, ``too_long``, ``bad_name``, ``name_taken``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class NewTask:
    """A task as it is handed to the store.

    Attributes:
        prompt: the text that the candidates go on from; not blank.
        candidates: 2 to 9, with where they came from.
        lang: of the prompt and all texts, ``ja`` or another BCP 47 tag; None: guessed of each text.
        kind: one of ``KINDS``.
        columns: the prompt's other columns; they come out with the export.
    """

    prompt: str
    candidates: tuple[Candidate, ...]
    lang: str | None = None
    kind: str = "rank"
    columns: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task, lang: str | None = None) -> NewTask:
        """A task as ``konomi sample`` made it."""
        return cls(task.prompt, task.candidates, lang, columns=task.columns)


@dataclass(frozen=True)
class Imported:
    """What became of tasks that were handed in.

    Attributes:
        added: how many are new.
        known: how many were in the store already.
        notes: what was left out, and why: one sentence each.
    """

    added: int
    known: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Person:
    """Somebody who may answer.

    Attributes:
        id: a random pseudonym; exports hold this and nothing else of a person.
        name: what the project's owner calls them.
        admin: may invite and see all.
        active: has a token that is not revoked.
        guidelines_seen: the version of the guidelines that they have read, or None.
        shortcuts: whether single keys do something.
    """

    id: str
    name: str
    admin: bool = False
    active: bool = True
    guidelines_seen: str | None = None
    shortcuts: bool = True


@dataclass(frozen=True)
class ShownText:
    """One candidate as a person sees it.

    Attributes:
        key: its name within this showing, by the order shown.
        text: as it was drawn.
        lang: of the text.
        flags: flags that are set beforehand: ``reveals`` where it names a model.
    """

    key: str
    text: str
    lang: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """A task as it is shown to one person.

    Attributes:
        id: random; it says nothing of the task, nor whether it was shown before.
        prompt: the text that the candidates go on from.
        lang: of the prompt.
        texts: in the order shown.
        revision: of the person's latest answer to it; 0 while there is none.
    """

    id: str
    prompt: str
    lang: str
    texts: tuple[ShownText, ...]
    revision: int = 0


@dataclass(frozen=True)
class Answer:
    """What a person says of a :class:`Shown`.

    Attributes:
        id: a UUID that the client made: the same id again is the same answer.
        shown: which showing. A second answer to it is a revision.
        kind: one of ``ANSWERS``.
        ranks: key -> rank, 1 the best, equal is a tie; all keys when ``ranked``, all or none when ``all_bad``, else none.
        reason: why it was skipped (needed then), or why all are bad; up to 200 characters.
        flags: key -> some of ``FLAGS``.
        comment: up to 2,000 characters.
        confidence: 1 unsure, 2, 3 sure, or None.
        seconds: time spent on it.
    """

    id: str
    shown: str
    kind: str
    ranks: dict[str, int] = field(default_factory=dict)
    reason: str | None = None
    flags: dict[str, list[str]] = field(default_factory=dict)
    comment: str = ""
    confidence: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Saved:
    """That an answer is on the disk.

    Attributes:
        id, shown: as in the answer.
        revision: 1 for the first answer to a showing.
        again: it had been saved before.
    """

    id: str
    shown: str
    revision: int
    again: bool = False


@dataclass(frozen=True)
class Mine:
    """An own answer, to find it again: the showing, its prompt, when it was first answered, its latest kind and revision."""

    shown: str
    prompt: str
    at: float
    kind: str
    revision: int


@dataclass(frozen=True)
class Progress:
    """How far it is.

    Attributes:
        mine: own answers, skipped ones and repeats too.
        skipped: how many of these are skipped, and do not count toward the target. (Which are repeats nobody is told.)
        left: tasks that are still there for this person: they have not answered them, and others not often enough.
        team: answers of all people that count toward the target: neither skipped nor repeats.
        target: answers that are wanted: tasks times people a task.
        per_hour: own answers an hour by the time that the last 30 took, or None before the third.
        minutes_left: for ``left`` alone at that speed, or None.
        frozen: no answers are taken any more.
    """

    mine: int
    skipped: int
    left: int
    team: int
    target: int
    per_hour: float | None
    minutes_left: float | None
    frozen: bool


@dataclass(frozen=True)
class Item:
    """A task with all that is known of it. Never for the eyes of those who judge.

    Attributes:
        candidates: with their sources, in the order in which they were imported.
        langs, names_model: one a candidate.
    """

    prompt: str
    lang: str
    kind: str
    candidates: tuple[Candidate, ...]
    langs: tuple[str, ...]
    names_model: tuple[bool, ...]
    columns: dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """The latest answer of one person to one showing.

    Attributes:
        task: the id of its :class:`Item`.
        rater: the person's pseudonym.
        kind: one of ``ANSWERS``.
        ranks: one a candidate, in the order of the item's candidates: 1 the best, ``1 2 2 4`` with a tie; or None.
        order: numbers of the candidates, from 0, in the order shown.
        repeat: the person had answered the task before.
        flags: one tuple a candidate.
        reason, comment, confidence, seconds: as in :class:`Answer`.
        at: when this revision was saved, seconds since 1970.
        revision: 1 for the first.
    """

    task: int
    rater: str
    kind: str
    ranks: tuple[int, ...] | None
    order: tuple[int, ...]
    repeat: bool
    flags: tuple[tuple[str, ...], ...]
    reason: str | None
    comment: str
    confidence: int | None
    seconds: float
    at: float
    revision: int


@dataclass(frozen=True)
class Exported:
    """All that was collected, at one moment.

    Attributes:
        items: by their id.
        judgements: by task, person, then first before repeat.
        unchanged: before/after texts that are the same text: nobody is shown them.
    """

    items: dict[int, Item]
    judgements: tuple[Judgement, ...]
    unchanged: int = 0
