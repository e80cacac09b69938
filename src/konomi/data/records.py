"""Prompts, candidates, rankings, pairs and scores; comparisons grouped by prompt. Standard library only."""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from konomi.data.messages import Conversation, identity


def text_key(text: str) -> str:
    """A hash of 32 hex digits, independent of Unicode composition and of white space around the text.

    >>> text_key("caf\\u00e9") == text_key(" cafe\\u0301 ")
    True
    """
    return hashlib.blake2b(unicodedata.normalize("NFC", text).strip().encode(), digest_size=16).hexdigest()


class _WithColumns:
    columns: dict[str, Any]

    @property
    def messages(self) -> Conversation | None:
        """The conversation that the text stands for; None: it is a text to be continued."""
        messages = self.columns.get("messages")
        return messages if isinstance(messages, Conversation) else None


@dataclass(frozen=True)
class Prompt(_WithColumns):
    """A text that responses are drawn for.

    Attributes:
        text: as it was read, with its white space; of a conversation the readable form.
        columns: the row's other columns, the same names in all prompts of a source; reward functions get them. A conversation is
            among them as ``messages``.
        copy: how many earlier prompts of the source have the same text, with other columns.
    """

    text: str
    columns: dict[str, Any] = field(default_factory=dict)
    copy: int = 0

    @property
    def key(self) -> str:
        """The :func:`text_key` of its text."""
        return text_key(self.text)

    @property
    def stream(self) -> str:
        """The name of its random streams; copies have their own, so that they are answered independently."""
        return f"{self.key}.{self.copy}" if self.copy else self.key


_MESSAGES: Any = field(default=None, repr=False, compare=False)
MUCH_BETTER = 3
"""The highest strength of a preference: 1 slightly better, 2 better, 3 much better."""


class _OfPrompt:
    prompt: str

    @property
    def key(self) -> str:
        """The key of the prompt."""
        return text_key(self.prompt)


@dataclass(frozen=True)
class Candidate:
    """A response to be ranked, without its prompt. ``source``: ``model``, ``seed``, ``temperature`` and what else is needed to
    reproduce it."""

    text: str
    source: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task(_OfPrompt, _WithColumns):
    """A prompt, its other columns (as in :class:`Prompt`), and the candidates to be ranked: at least two, no two the same."""

    prompt: str
    candidates: tuple[Candidate, ...]
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def responses(self) -> tuple[str, ...]:
        """The texts of the candidates."""
        return tuple(each.text for each in self.candidates)


@dataclass(frozen=True)
class Ranking(_OfPrompt):
    """One rater's order of at least two responses to a prompt.

    Attributes:
        ranks: one a response; 1 is the best, the same number is a tie. Only their order counts.
        rater: a pseudonym, or None.
        source: the data set or model that this came from, or None.
        messages: the conversation that the prompt stands for, or None.
        strength: of two responses that are not tied, how much better the better one is, 1 to 3; None: it was not said.
    """

    prompt: str
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    rater: str | None = None
    source: str | None = None
    messages: Conversation | None = _MESSAGES
    strength: int | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Pair(_OfPrompt):
    """Two responses to a prompt, of which one was preferred.

    Attributes:
        label: probability that ``chosen`` is the better one: 1 is certain, 0.5 a draw.
        margin: by how much at least its score should be higher, in score units, from 0.
        strength: as in :class:`Ranking`.
    """

    prompt: str
    chosen: str
    rejected: str
    label: float = 1.0
    margin: float = 0.0
    rater: str | None = None
    source: str | None = None
    messages: Conversation | None = _MESSAGES
    strength: int | None = field(default=None, repr=False)

    @property
    def responses(self) -> tuple[str, ...]:
        """Chosen and rejected."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class Score(_OfPrompt):
    """The score of one response: higher is better, any scale."""

    prompt: str
    response: str
    score: float
    rater: str | None = None
    source: str | None = None
    messages: Conversation | None = _MESSAGES

    @property
    def responses(self) -> tuple[str, ...]:
        """The one response."""
        return (self.response,)


Record = Task | Ranking | Pair | Score


@dataclass(frozen=True)
class LabelledText:
    """A text and the number of its label."""

    text: str
    label: int

    @property
    def key(self) -> str:
        """The :func:`text_key` of its text."""
        return text_key(self.text)


class _HasKey(Protocol):
    @property
    def key(self) -> str: ...


Keyed = TypeVar("Keyed", bound=_HasKey)


def is_held_out(key: str, share: float) -> bool:
    """Whether a prompt is held out. Depends only on its key; a larger share holds out a superset.

    >>> is_held_out("8" + 31 * "0", 0.5), is_held_out("7" + 31 * "f", 0.5)
    (False, True)
    """
    return int(key, 16) < int(share * 2**128)


def split_by_key(
    items: Sequence[Keyed], share: float, held_out: Sequence[Keyed] | None = None
) -> tuple[list[Keyed], list[Keyed]]:
    """Return (train, held out), with no key on both sides: by :func:`is_held_out`, or the given ``held_out`` and the others."""
    held = [each for each in items if is_held_out(each.key, share)] if held_out is None else list(held_out)
    keys = {each.key for each in held}
    return [each for each in items if each.key not in keys], held


@dataclass(frozen=True)
class Comparison:
    """One response against another, as indices of the group's responses; the rest as in :class:`Pair`."""

    better: int
    worse: int
    label: float = 1.0
    margin: float = 0.0
    rater: str | None = None


@dataclass(frozen=True)
class Group(_OfPrompt):
    """All comparisons of the responses to one prompt: one element of a batch.

    Attributes:
        responses: no two the same.
        comparisons: may be empty: ties give none.
        ties: pairs of indices that a rater called equal, and the rater.
    """

    prompt: str
    responses: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    ties: tuple[tuple[int, int, str | None], ...] = ()
    source: str | None = None
    messages: Conversation | None = _MESSAGES

    def judgements(self) -> Iterator[tuple[int, int, float, str | None]]:
        """Each judgement of two responses: their indices, the probability that the first is better (a tie: 0.5), the rater."""
        for c in self.comparisons:
            yield c.better, c.worse, c.label, c.rater
        for one, other, rater in self.ties:
            yield one, other, 0.5, rater


def groups(records: Iterable[Ranking | Pair], strength_margin: float = 0.0) -> list[Group]:
    """Group comparisons by prompt (its key), messages and source, in the order of first appearance.

    A ranking of K responses without ties gives K(K-1)/2 comparisons; two of equal rank give none. A preference with a strength
    gets the margin ``strength_margin`` x strength / 3 on top of its own.

    >>> ranking = Ranking("p", ("a", "b", "c"), (1, 2, 2))
    >>> [(c.better, c.worse) for c in groups([ranking])[0].comparisons]
    [(0, 1), (0, 2)]
    """
    by_prompt: dict[tuple[str, str, str | None], list[Ranking | Pair]] = {}
    for record in records:
        by_prompt.setdefault((record.key, identity(record.messages), record.source), []).append(record)
    return [_group(each, strength_margin) for each in by_prompt.values()]


def _group(records: Sequence[Ranking | Pair], strength_margin: float) -> Group:
    index: dict[str, int] = {}
    comparisons: list[Comparison] = []
    ties: list[tuple[int, int, str | None]] = []
    for record in records:
        at = [index.setdefault(text, len(index)) for text in record.responses]
        more = strength_margin * (record.strength or 0) / MUCH_BETTER
        if isinstance(record, Pair):
            towards = more if record.label >= 0.5 else -more  # the better one may be in either place
            comparisons.append(Comparison(at[0], at[1], record.label, record.margin + towards, record.rater))
            continue
        for better, worse, tied in ranked_pairs(record.ranks):
            if tied:
                ties.append((at[better], at[worse], record.rater))
            else:
                comparisons.append(Comparison(at[better], at[worse], margin=more, rater=record.rater))
    first = records[0]
    return Group(first.prompt, tuple(index), tuple(comparisons), tuple(ties), first.source, first.messages)


def ranked_pairs(ranks: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """Each pair of indices, the better one first, and whether the two are tied.

    >>> list(ranked_pairs([2, 1, 2]))
    [(1, 0, False), (0, 2, True), (1, 2, False)]
    """
    for i, j in itertools.combinations(range(len(ranks)), 2):
        yield (j, i, False) if ranks[j] < ranks[i] else (i, j, ranks[i] == ranks[j])
