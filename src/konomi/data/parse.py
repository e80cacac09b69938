"""Parse a row as a record: candidates, rankings, pairs in three forms, scores. Standard library only."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from konomi.data.layouts import LAYOUTS
from konomi.data.messages import Conversation, messages_of, preference, readable
from konomi.data.records import MUCH_BETTER, Candidate, Pair, Ranking, Record, Score, Task
from konomi.data.rows import Row, UnusableRow, checked_text, kind
from konomi.errors import DataError
from konomi.files import plain

VERSION = 1
"""The version of the files that konomi writes; a later one is refused."""
COLUMNS = {
    "candidates": ("prompt", "candidates"),
    "rankings": ("prompt", "responses", "ranks"),
    "pairs": ("prompt", "chosen", "rejected"),
    "hh": ("chosen", "rejected"),
    "scores": ("prompt", "response", "score"),
}
"""By format, the columns that it needs."""
OPTIONAL = {
    "candidates": ("columns", "messages", "version"),
    "rankings": ("strength", "rater", "source", "messages", "version"),
    "pairs": ("label", "margin", "strength", "rater", "source", "messages", "version"),
    "hh": ("label", "margin", "strength", "rater", "source", "version"),
    "scores": ("rater", "source", "messages", "version"),
}
_CUE = "\n\nAssistant:"
_WRITTEN_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")


def detect(row: Row) -> str:
    """The format of a row by its columns; a column may be misspelt.

    >>> detect(Row("x:1", {"prompt": "p", "chosen": "a", "rejected": "b", "id": 7}))
    'pairs'
    """
    where, values = row.where, row.values

    def has(format: str, cutoff: float) -> bool:
        """Whether all columns are there, or misspelt; messages may hold the prompt."""
        own = [name for name in COLUMNS[format] if name != "prompt"]
        return all(name in values or bool(cutoff < 1 and difflib.get_close_matches(name, values, 1, cutoff)) for name in own)

    published = (name for name, layout in LAYOUTS.items() if set(layout.columns) <= values.keys())
    best = next((name for name in COLUMNS if has(name, 1)), None)  # of equal ones the first: pairs, not hh
    best = best or next(published, None) or next((name for name in COLUMNS if has(name, 0.7)), None)
    if best is None:
        known = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in COLUMNS.items())
        raise DataError(
            f"{where}: the columns {', '.join(values) or 'none'} are those of no known format ({known}; and the data sets of "
            f"{', '.join(LAYOUTS)})"
        )
    texts = [values.get(name) for name in ("chosen", "rejected")]
    dialogues = all(isinstance(text, str) and _CUE in text for text in texts)
    return "hh" if best == "pairs" and values.get("prompt") is None and dialogues else best


def parse_all(row: Row, format: str) -> list[Record]:
    """The records in a row of a format, or of a layout, where it may hold several.

    Raises: as :func:`parse`.
    """
    layout = LAYOUTS.get(format)
    if layout is None:
        return [parse(row, format)]
    for name in layout.columns:
        row.value(name)
    return [parse(Row(row.where, each), layout.format) for each in layout.rows(row)]


def parse(row: Row, format: str) -> Record:
    """The record in a row of a format.

    Raises:
        DataError: a column is missing or what is in it is not what is needed.
        UnusableRow: nothing can be learnt from it.
    """
    version = row.values.get("version")
    if version is not None and version != VERSION:
        if isinstance(version, (int, float)) and version > VERSION:
            raise DataError(f"{row.where}: version {version}; this konomi reads version {VERSION}: update konomi")
        given = version if isinstance(version, (int, float)) else kind(version)
        raise DataError(f"{row.where}: 'version' is {given}; {VERSION} is the only one")
    if format in ("pairs", "hh"):
        return _pair(row, format)
    if format == "scores":
        (prompt, messages), response = _prompt(row), row.text("response", blank=True)
        return Score(prompt, response, row.number("score"), row.optional_text("rater"), row.optional_text("source"), messages)
    return _task(row) if format == "candidates" else _ranking(row)


def _prompt(row: Row) -> tuple[str, Conversation | None]:
    """The text of a prompt, and the conversation that it stands for: in ``messages``, or in its place."""
    if isinstance(row.values.get("prompt"), list):
        own = Conversation(messages_of(row, "prompt"))
        if not any(message["content"].strip() for message in own):
            raise UnusableRow(row.where, "'prompt' is blank", "remove the row or write a text")
        return readable(own), own
    ours = row.values.get("version") is not None  # in files of other programs it may be anything
    return row.text("prompt"), Conversation(messages_of(row, "messages")) if ours and row.values.get("messages") else None


def _task(row: Row) -> Task:
    (prompt, messages), candidates = _prompt(row), []
    for number, each in enumerate(row.items("candidates"), start=1):
        if not isinstance(each, dict) or "text" not in each:
            raise DataError(f'{row.where}: candidate {number} is not an object with a "text"')
        text = checked_text(row.where, f"the text of candidate {number}", each["text"], blank=True)
        candidates.append(Candidate(text, {name: value for name, value in each.items() if name != "text"}))
    _different(row.where, "candidate", [each.text for each in candidates])
    columns = {} if row.values.get("columns") is None else row.inner("columns").values
    try:  # a table may contain dates
        columns = {**plain(columns), **({"messages": messages} if messages else {})}
        return Task(prompt, tuple(Candidate(each.text, plain(each.source)) for each in candidates), columns)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{row.where}: JSON cannot hold it: {error}") from error


def _ranking(row: Row) -> Ranking:
    where, (prompt, messages) = row.where, _prompt(row)
    texts = enumerate(row.items("responses"), start=1)
    responses = [checked_text(where, f"response {number}", each, blank=True) for number, each in texts]
    # a table with missing values stores whole numbers as 1.0
    ranks = [int(n) if isinstance(n, float) and n.is_integer() else n for n in row.items("ranks")]
    for each in ranks:
        if isinstance(each, bool) or not isinstance(each, int) or each < 1:
            given = each if isinstance(each, (int, float)) else kind(each)
            raise DataError(f"{where}: {given} in 'ranks'; ranks are whole numbers from 1, the best")
    if len(ranks) != len(responses):
        raise DataError(f"{where}: {len(ranks)} ranks for {len(responses)} responses; one each is needed")
    _different(where, "response", responses)
    strength = _strength(row, len(ranks) == 2 and ranks[0] != ranks[1])
    names = row.optional_text("rater"), row.optional_text("source")
    return Ranking(prompt, tuple(responses), tuple(ranks), *names, messages, strength)


def _pair(row: Row, format: str) -> Pair:
    where, messages = row.where, None
    answers = row.value("chosen"), row.value("rejected")
    if format == "hh":
        prompt, chosen, rejected = _dialogues(row)
    elif any(isinstance(each, list) for each in (row.values.get("prompt"), *answers)):
        messages, chosen, rejected = preference(row)
        prompt = readable(messages)
    else:
        hint = "; only messages, and dialogues with 'Assistant:', hold their prompt in chosen and rejected"
        row.value("prompt", hint)
        (prompt, messages), chosen, rejected = _prompt(row), row.text("chosen", blank=True), row.text("rejected", blank=True)
    if chosen == rejected:
        raise UnusableRow(where, "chosen and rejected are equal", "remove the row")
    label, margin = row.number("label", 1.0), row.number("margin", 0.0)
    if not 0 <= label <= 1:
        raise DataError(f"{where}: 'label' is {label:g}; it is the probability that chosen is the better one: 0 to 1")
    if margin < 0:
        raise DataError(f"{where}: 'margin' is {margin:g}; it is 0 or more, in favour of chosen")
    names = row.optional_text("rater"), row.optional_text("source")
    return Pair(prompt, chosen, rejected, label, margin, *names, messages, _strength(row, label != 0.5))


def _strength(row: Row, decided: bool) -> int | None:
    """How much better one of two responses is; ``decided``: there are two, and one is better."""
    if row.values.get("strength") is None:
        return None
    strength = row.number("strength")
    if strength not in range(1, MUCH_BETTER + 1):
        raise DataError(f"{row.where}: 'strength' is {strength:g}; 1 (slightly better), 2 or 3 (much better) is needed")
    if not decided:
        raise DataError(f"{row.where}: 'strength' says how much better one of two responses is; neither is: leave it empty")
    return int(strength)


def _dialogues(row: Row) -> tuple[str, str, str]:
    """Anthropic-HH: two dialogues that differ in the last answer alone; the prompt ends in the cue for it."""
    parts = []
    for name in ("chosen", "rejected"):
        before, cue, answer = row.text(name).rpartition(_CUE)
        if not cue:
            raise DataError(f"{row.where}: {name!r} is no dialogue: there is no {_CUE!r} in it")
        parts.append((before + cue, answer))
    (prompt, chosen), (other, rejected) = parts
    if prompt != other:
        reason = "chosen and rejected are different before the last 'Assistant:'"
        raise UnusableRow(row.where, reason, "remove the row; two answers to the same dialogue are needed")
    return prompt, chosen, rejected


def _different(where: str, what: str, texts: Sequence[str]) -> None:
    if len(texts) < 2:
        raise UnusableRow(where, f"fewer than two {what}s", "nothing can be compared; add one or remove the row")
    if twice := [text for text, count in Counter(texts).items() if count > 1]:
        places = [str(number) for number, text in enumerate(texts, start=1) if text == twice[0]]
        raise UnusableRow(where, f"two {what}s are the same text", f"keep one of {' and '.join(places)}")


def csv_values(row: Row) -> Row:
    """A row of a CSV file, which holds only text, with its numbers parsed and optional blank columns removed."""
    optional = {name for names in OPTIONAL.values() for name in names}
    values: dict[str, Any] = {name: value for name, value in row.values.items() if value or name not in optional}
    numbers = ("label", "margin", "strength") if "chosen" in values else ()  # the label of a thumb may be a word
    for name in ("version", "score", *numbers):
        if name in values:
            values[name] = row.number(name, as_text=True)
    for name in ("prompt", "chosen", "rejected"):
        if _WRITTEN_MESSAGES.match(values.get(name, "")):
            raise DataError(f"{row.where}: {name!r} is messages written as a text; a list is needed: use JSONL or Parquet")
    return Row(row.where, values)
