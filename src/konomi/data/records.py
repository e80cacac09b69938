"""The records that data is read into. Nothing but the standard library is needed."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from konomi.text import plural


@dataclass(frozen=True)
class Prompt:
    """A text that responses are drawn for.

    Attributes:
        text: as it was read, white space and all.
        columns: the row's other columns by name, the same names in all prompts of a source; reward functions get them.
        copy: how many prompts of the source before this one have the same text, with other columns.
    """

    text: str
    columns: dict[str, Any] = field(default_factory=dict)
    copy: int = 0

    @property
    def key(self) -> str:
        """32 hex digits that name the text, whichever way its accents are encoded and whatever white space is around.

        >>> Prompt("caf\\u00e9").key == Prompt(" cafe\\u0301 ").key
        True
        """
        text = unicodedata.normalize("NFC", self.text).strip()
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def stream(self) -> str:
        """Names the random streams of this prompt: its key, and of a copy also the number, so that copies are answered
        independently."""
        return f"{self.key}.{self.copy}" if self.copy else self.key


def is_held_out(key: str, share: float) -> bool:
    """Whether the prompt with this key is on the held-out side. Depends on the key alone; what a smaller share holds out, a
    larger one does too.

    >>> is_held_out("8" + 31 * "0", 0.5), is_held_out("7" + 31 * "f", 0.5)
    (False, True)
    """
    return int(key, 16) < int(share * 2**128)


@dataclass(frozen=True)
class Candidate:
    """A response that may be ranked.

    Attributes:
        text: the response, without its prompt.
        source: where it came from: ``model``, ``seed``, ``temperature`` and what else tells how to draw it again.
    """

    text: str
    source: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A prompt and the candidates that are to be ranked.

    Attributes:
        prompt: the text that the candidates go on from.
        candidates: at least two, no two the same.
        columns: the prompt's other columns.
    """

    prompt: str
    candidates: tuple[Candidate, ...]
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """One rater's order of the responses to a prompt.

    Attributes:
        prompt: the text that the responses go on from.
        responses: at least two.
        ranks: one a response; 1 is the best, the same number is a tie. Only their order counts.
        rater: a pseudonym, or None.
        source: the data set or model that this came from, or None.
    """

    prompt: str
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    rater: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two responses to a prompt, of which one was preferred.

    Attributes:
        prompt: the text that both go on from.
        chosen, rejected: the responses.
        label: probability that ``chosen`` is the better one, 0 to 1: 1 is certain, 0.5 a draw.
        margin: by how much at least its score should be higher, in score units, from 0.
        rater, source: as in :class:`Ranking`.
    """

    prompt: str
    chosen: str
    rejected: str
    label: float = 1.0
    margin: float = 0.0
    rater: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Score:
    """A number that was given to one response.

    Attributes:
        prompt: the text that the response goes on from.
        response: the text that was scored.
        score: higher is better, any scale.
        rater, source: as in :class:`Ranking`.
    """

    prompt: str
    response: str
    score: float
    rater: str | None = None
    source: str | None = None


def repeating_rows(rows: Sequence[tuple[str, Sequence[str]]], say: Callable[[str], None]) -> set[int]:
    """The rows of a file in which all answers begin with the prompt and go on after it, so that it has to be taken off.

    None at all unless nine rows in ten are so: where prompts are short, an answer may begin as its prompt does by chance.

    Args:
        rows: prompt and answers.
        say: is told what was found.

    >>> repeating_rows([("Hi", ["Hi there"]), ("Tea?", ["Yes"])], print)
    1 of 2 rows have answers that begin with their prompt; too few for a rule, so they are left as they are
    set()
    """
    found = {
        number
        for number, (prompt, answers) in enumerate(rows)
        if all(text.startswith(prompt) and text[len(prompt) :].strip() for text in answers)
    }
    if found and 10 * len(found) < 9 * len(rows):
        say(
            f"{len(found):,} of {plural(len(rows), 'row')} have answers that begin with their prompt; too few for a rule, "
            "so they are left as they are"
        )
        return set()
    if found:
        say(f"in {len(found):,} of {plural(len(rows), 'row')} the answers begin with the prompt; it is taken off")
    return found
