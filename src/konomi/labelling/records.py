"""The types of tasks, people and answers.

Visible and hidden data have different types: a :class:`Shown` has no field for a model's name, a candidate's number or another
person's answer; :class:`Item` and :class:`Judgement` have them, and only an export creates these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from konomi.config.section import Section
from konomi.data.messages import Conversation
from konomi.data.records import Candidate, Task
from konomi.errors import DataError

KINDS = ("rank", "compare", "same", "chat")
"""Kinds of tasks: responses of any models; before and after of one run; two responses of the same model (A/A); two answers to
what one person wrote, for that person alone."""
ANSWERS = ("ranked", "all_bad", "skipped")
FLAGS = ("unsafe", "broken", "reveals")
MESSAGES = "(messages)"
"""Among a stored task's columns: the conversation that its prompt stands for."""
KEYS = "abcdefghi"
"""Names of the texts of one showing, in the order shown."""
COMMENT_LIMIT, REASON_LIMIT, NAME_LIMIT, EDITS_LIMIT, MESSAGE_LIMIT = 2000, 200, 80, 10_000, 4000
"""Characters; of all edits of an answer together; of a message to a model."""
SECONDS_LIMIT = 86_400.0


class Refused(DataError):
    """A person's input is rejected; nothing was changed.

    Attributes:
        code: the reason in one word, which pages translate: ``frozen``, ``conflict``, ``conflict_revision``,
            ``unknown_task``, ``unknown_person``, ``bad_id``, ``bad_kind``, ``bad_ranks``, ``bad_reason``, ``bad_flags``,
            ``bad_confidence``, ``bad_strength``, ``bad_edits``, ``bad_seconds``, ``too_long``, ``bad_name``, ``name_taken``,
            ``bad_message``, ``chat_open``, ``chat_busy``, ``chat_long``, ``chat_same``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def without_surrogates(text: str) -> str:
    """``text`` with lone surrogates, which UTF-8 cannot encode, replaced by U+FFFD.

    >>> without_surrogates("a\\ud83d\\ude00b\\ud800") == "a\\U0001f600b\\ufffd"
    True
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


Text = Annotated[str, BeforeValidator(lambda value: without_surrogates(value) if isinstance(value, str) else value)]
"""Text that UTF-8 can encode: what is typed may end in half an emoji."""


class Body(BaseModel):
    """JSON that a page sends."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Answer(Body):
    """A person's answer to a :class:`Shown`, as it is sent. :func:`konomi.labelling.answers.save` checks the values."""

    id: Text  # a UUID that the client made: the same id again is the same answer
    shown: Text  # the showing; a second answer to it is a revision
    kind: Text  # one of ANSWERS
    ranks: dict[Text, int] = {}  # 1 the best, equal is a tie; of all keys when ranked, all or none when all_bad, else none
    reason: Text | None = None  # why it was skipped (required then), or why all are bad; up to 200 characters
    flags: dict[Text, list[Text]] = {}  # key -> some of FLAGS
    comment: Text = ""  # up to 2,000 characters
    confidence: int | None = None  # 1 unsure, 2, 3 sure
    strength: int | None = None  # of two ranked texts that are not tied: 1 slightly better, 2, 3 much better
    edits: dict[Text, Text] = {}  # key -> a better text made of it; together up to 10,000 characters, none when skipped
    seconds: float = 0.0  # spent on it


class LabelOptions(Section):
    """Optional parts of an answer, besides ranks, flags, confidence and a comment."""

    model_config = ConfigDict(strict=True)

    strength: bool = False  # of two texts, how much better the better one is
    edit: bool = False  # a better text made of one


class ChatOptions(Section):
    """The model of a project in which raters write messages and choose one of two answers."""

    model_config = ConfigDict(strict=True)

    model: str  # a hub name, a directory, a run, a .gguf file, or an embedded model
    chat_template: str | None = None  # a file with a chat template, in the place of the model's own
    system: str | None = None  # a system message
    tokens: Annotated[int, Field(ge=1, le=1024)] = 200  # of an answer at most
    temperature: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True)
class NewTask:
    """A task to be imported."""

    prompt: str  # not blank
    candidates: tuple[Candidate, ...]  # 2 to 9 responses, with their sources
    lang: str | None = None  # of the prompt and all responses, ja or another BCP 47 tag; None: guessed for each text
    kind: str = "rank"  # one of KINDS
    columns: dict[str, Any] = field(default_factory=dict)  # the prompt's other columns; they come out with the export

    @classmethod
    def of(cls, task: Task) -> NewTask:
        """A task of a file of candidates."""
        stored = {MESSAGES if isinstance(value, Conversation) else name: value for name, value in task.columns.items()}
        return cls(task.prompt, task.candidates, columns=stored)


@dataclass(frozen=True)
class Imported:
    """How many tasks were added and how many were known before; ``notes`` say what was left out, and why."""

    added: int
    known: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Person:
    """A rater, or the owner."""

    id: str  # a random pseudonym, the only trace of a person in exports
    name: str  # used by the project's owner
    admin: bool = False  # may invite people and see everything
    active: bool = True  # has a token that is not revoked
    guidelines_seen: str | None = None  # the version that they have read
    shortcuts: bool = True  # single keys do something


@dataclass(frozen=True)
class ShownText:
    """A response as a person sees it: ``key`` is its name within the showing, ``flags`` are those set in advance."""

    key: str
    text: str
    lang: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """A task as it is shown to one person."""

    id: str  # random; it reveals neither the task nor whether it was shown before
    prompt: str
    lang: str  # of the prompt
    texts: tuple[ShownText, ...]  # in the order shown
    revision: int = 0  # of the person's latest answer to it; 0 while there is none


@dataclass(frozen=True)
class Saved:
    """An answer that is on the disk; ``revision`` is 1 for the first answer to a showing; ``again``: it was saved before."""

    id: str
    shown: str
    revision: int
    again: bool = False


@dataclass(frozen=True)
class OwnAnswer:
    """A person's own answer: the showing, its prompt, when it was first answered, its latest kind and revision."""

    shown: str
    prompt: str
    at: float
    kind: str
    revision: int


@dataclass(frozen=True)
class Progress:
    """How far a person and the team are."""

    mine: int  # own answers, skipped ones and repeats included
    skipped: int  # of these, which do not count toward the target (nobody is told which are repeats)
    left: int  # tasks that this person may still get
    team: int  # answers of all people that count toward the target: neither skipped nor repeats
    target: int  # tasks times people a task
    per_hour: float | None  # own answers an hour at the speed of the last 30, or None before the third
    minutes_left: float | None  # for ``left`` at that speed
    frozen: bool  # answers are no longer taken


@dataclass(frozen=True)
class Item:
    """A task with all its data, never shown to raters."""

    prompt: str
    lang: str
    kind: str
    candidates: tuple[Candidate, ...]  # with their sources, in the order of the import
    langs: tuple[str, ...]  # one for each candidate
    names_model: tuple[bool, ...]
    columns: dict[str, Any]

    @property
    def messages(self) -> Conversation | None:
        """The conversation that the prompt stands for."""
        return Conversation(self.columns[MESSAGES]) if MESSAGES in self.columns else None


@dataclass(frozen=True)
class Judgement:
    """The latest answer of one person to one showing; values are those of :class:`Answer`."""

    task: int  # the id of its Item
    rater: str  # a pseudonym
    kind: str
    ranks: tuple[int, ...] | None  # one for each candidate, in the item's order: 1 the best, 1 2 2 4 with a tie
    order: tuple[int, ...]  # numbers of the candidates, from 0, in the order shown
    repeat: bool  # the person had answered the task before
    flags: tuple[tuple[str, ...], ...]  # one tuple for each candidate
    reason: str | None
    comment: str
    confidence: int | None
    seconds: float
    at: float  # when this revision was saved, seconds since 1970
    revision: int  # 1 for the first
    strength: int | None = None
    edits: tuple[str | None, ...] = ()  # one for each candidate, or none at all


@dataclass(frozen=True)
class Decision:
    """The owner's final ranking of a disputed task. No figure of the raters includes it."""

    task: int  # the id of its Item
    person: str  # the owner's pseudonym
    ranks: tuple[int, ...]  # as in Judgement
    comment: str
    at: float
    revision: int


@dataclass(frozen=True)
class Exported:
    """All tasks and latest answers at one moment."""

    items: dict[int, Item]  # by id
    judgements: tuple[Judgement, ...]  # by task, person, then first before repeat
    unchanged: int = 0  # before/after texts that are the same text and are shown to nobody
    decisions: tuple[Decision, ...] = ()  # by task; none that was taken back
