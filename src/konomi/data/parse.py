"""A row of a file as a record: candidates, rankings, pairs in three forms, scores. Standard library only."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

from konomi.data.layouts import LAYOUTS
from konomi.data.messages import Render, preference
from konomi.data.records import Candidate, Pair, Ranking, Score, Task
from konomi.data.rows import UnusableRow, checked_text, kind, need_column, text_of
from konomi.errors import DataError
from konomi.files import plain

VERSION = 1
"""Of our files; a later one is refused."""
Record = Task | Ranking | Pair | Score
COLUMNS = {
    "candidates": ("prompt", "candidates"),
    "rankings": ("prompt", "responses", "ranks"),
    "pairs": ("prompt", "chosen", "rejected"),
    "hh": ("chosen", "rejected"),
    "scores": ("prompt", "response", "score"),
}
"""By format, the columns that it needs."""
OPTIONAL = {
    "candidates": ("columns",),
    "rankings": ("rater", "source"),
    "pairs": ("label", "margin", "rater", "source"),
    "hh": ("label", "margin", "rater", "source"),
    "scores": ("rater", "source"),
}
_NUMBERS = ("version", "label", "margin", "score")
_CUE = "\n\nAssistant:"
_WRITTEN_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")


def detect(where: str, row: dict[str, Any]) -> str:
    """The format of a row by its columns; a column may be misspelt.

    >>> detect("x:1", {"prompt": "p", "chosen": "a", "rejected": "b", "id": 7})
    'pairs'
    """

    def has(format: str, cutoff: float) -> bool:
        """Whether all columns are there, or misspelt; messages may hold the prompt."""
        own = [name for name in COLUMNS[format] if name != "prompt"]
        return all(name in row or bool(cutoff < 1 and difflib.get_close_matches(name, row, 1, cutoff)) for name in own)

    published = (name for name, layout in LAYOUTS.items() if set(layout.columns) <= row.keys())
    best = next((name for name in COLUMNS if has(name, 1)), None)  # of equal ones the first: pairs, not hh
    best = best or next(published, None) or next((name for name in COLUMNS if has(name, 0.7)), None)
    if best is None:
        known = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in COLUMNS.items())
        raise DataError(
            f"{where}: the columns {', '.join(row) or 'none'} are those of no known format ({known}; and the data sets of "
            f"{', '.join(LAYOUTS)})"
        )
    texts = [row.get(name) for name in ("chosen", "rejected")]
    dialogues = all(isinstance(text, str) and _CUE in text for text in texts)
    return "hh" if best == "pairs" and row.get("prompt") is None and dialogues else best


def parse_all(where: str, row: dict[str, Any], format: str, render: Render | None = None) -> list[Record]:
    """The records in a row of a format, or of a layout, where it may hold several.

    Raises: as :func:`parse`.
    """
    if format not in LAYOUTS:
        return [parse(where, row, format, render)]
    layout = LAYOUTS[format]
    for name in layout.columns:
        need_column(where, list(row), name)
    return [parse(where, each, layout.format, render) for each in layout.rows(where, row)]


def parse(where: str, row: dict[str, Any], format: str, render: Render | None = None) -> Record:
    """The record in a row of a format.

    Raises:
        DataError: a column is missing or what is in it is not what is needed.
        UnusableRow: nothing can be learnt from it.
    """
    version = row.get("version")
    if version is not None and version != VERSION:
        if isinstance(version, (int, float)) and version > VERSION:
            raise DataError(f"{where}: version {version}; this konomi reads version {VERSION}: update konomi")
        given = version if isinstance(version, (int, float)) else kind(version)
        raise DataError(f"{where}: 'version' is {given}; {VERSION} is the only one")
    if format in ("pairs", "hh"):
        return _pair(where, row, format, render)
    if format == "scores":
        return _score(where, row)
    return _task(where, row) if format == "candidates" else _ranking(where, row)


def _task(where: str, row: dict[str, Any]) -> Task:
    prompt = text_of(where, row, "prompt")
    candidates = []
    for number, each in enumerate(_list(where, row, "candidates"), start=1):
        if not isinstance(each, dict) or "text" not in each:
            raise DataError(f'{where}: candidate {number} is not an object with a "text"')
        text = checked_text(where, f"the text of candidate {number}", each["text"], blank=True)
        candidates.append(Candidate(text, {name: value for name, value in each.items() if name != "text"}))
    _different(where, "candidate", [each.text for each in candidates])
    columns = row.get("columns")
    if not isinstance(columns, (dict, type(None))):
        raise DataError(f"{where}: 'columns' is {kind(columns)}; an object is needed")
    try:  # a table may hold dates
        return Task(prompt, tuple(Candidate(each.text, plain(each.source)) for each in candidates), plain(columns or {}))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: JSON cannot hold it: {error}") from error


def _ranking(where: str, row: dict[str, Any]) -> Ranking:
    prompt = text_of(where, row, "prompt")
    texts = enumerate(_list(where, row, "responses"), start=1)
    responses = [checked_text(where, f"response {number}", each, blank=True) for number, each in texts]
    # a table that had a gap somewhere holds whole numbers as 1.0
    ranks = [int(n) if isinstance(n, float) and n.is_integer() else n for n in _list(where, row, "ranks")]
    for each in ranks:
        if isinstance(each, bool) or not isinstance(each, int) or each < 1:
            given = each if isinstance(each, (int, float)) else kind(each)
            raise DataError(f"{where}: {given} in 'ranks'; ranks are whole numbers from 1, the best")
    if len(ranks) != len(responses):
        raise DataError(f"{where}: {len(ranks)} ranks for {len(responses)} responses; one each is needed")
    _different(where, "response", responses)
    return Ranking(prompt, tuple(responses), tuple(ranks), _name(where, row, "rater"), _name(where, row, "source"))


def _pair(where: str, row: dict[str, Any], format: str, render: Render | None) -> Pair:
    for name in ("chosen", "rejected"):
        need_column(where, list(row), name)
    if format == "hh":
        prompt, chosen, rejected = _dialogues(where, row)
    elif any(isinstance(row.get(name), list) for name in ("prompt", "chosen", "rejected")):
        prompt, chosen, rejected = preference(where, row, render)
    else:
        hint = "; only messages, and dialogues with 'Assistant:', hold their prompt in chosen and rejected"
        prompt = text_of(where, row, "prompt", hint=hint)
        chosen, rejected = (text_of(where, row, name, blank=True) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise UnusableRow(where, "chosen and rejected are equal", "remove the row")
    label, margin = _number(where, row, "label", 1.0), _number(where, row, "margin", 0.0)
    if not 0 <= label <= 1:
        raise DataError(f"{where}: 'label' is {label:g}; it is the probability that chosen is the better one: 0 to 1")
    if margin < 0:
        raise DataError(f"{where}: 'margin' is {margin:g}; it is 0 or more, in favour of chosen")
    return Pair(prompt, chosen, rejected, label, margin, _name(where, row, "rater"), _name(where, row, "source"))


def _dialogues(where: str, row: dict[str, Any]) -> tuple[str, str, str]:
    """Anthropic-HH: two dialogues that differ in the last answer alone; the prompt ends in the cue for it."""
    prompts, answers = [], []
    for name in ("chosen", "rejected"):
        text = text_of(where, row, name)
        end = text.rfind(_CUE) + len(_CUE)
        if end < len(_CUE):
            raise DataError(f"{where}: {name!r} is no dialogue: there is no {_CUE!r} in it")
        prompts.append(text[:end])
        answers.append(text[end:])
    if prompts[0] != prompts[1]:
        reason = "chosen and rejected are different before the last 'Assistant:'"
        raise UnusableRow(where, reason, "remove the row; two answers to the same dialogue are needed")
    return prompts[0], answers[0], answers[1]


def _score(where: str, row: dict[str, Any]) -> Score:
    prompt, response = text_of(where, row, "prompt"), text_of(where, row, "response", blank=True)
    need_column(where, list(row), "score")
    score = _number(where, row, "score", None)
    return Score(prompt, response, score, _name(where, row, "rater"), _name(where, row, "source"))


def _list(where: str, row: dict[str, Any], column: str) -> list[Any]:
    need_column(where, list(row), column)
    value = row[column]
    if not isinstance(value, list):
        raise DataError(f"{where}: {column!r} is {kind(value)}; a list is needed (which a CSV file cannot hold)")
    return value


def _different(where: str, what: str, texts: Sequence[str]) -> None:
    if len(texts) < 2:
        raise UnusableRow(where, f"fewer than two {what}s", "nothing can be compared; add one or remove the row")
    if twice := [text for text, count in Counter(texts).items() if count > 1]:
        places = [str(number) for number, text in enumerate(texts, start=1) if text == twice[0]]
        raise UnusableRow(where, f"two {what}s are the same text", f"keep one of {' and '.join(places)}")


def _number(where: str, row: dict[str, Any], column: str, default: float | None) -> float:
    value = row.get(column)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{where}: {column!r} is {kind(value)}; a number is needed")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{where}: {column!r} is {number}; a finite number is needed")
    return number


def _name(where: str, row: dict[str, Any], column: str) -> str | None:
    value = row.get(column)
    return None if value is None else checked_text(where, repr(column), value, blank=True) or None


def csv_values(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of a CSV file, which holds only text, with its numbers parsed and optional blank columns removed."""
    may_be_blank = {"version", *chain.from_iterable(OPTIONAL.values())}
    row = {name: value for name, value in row.items() if value or name not in may_be_blank}
    for name in _NUMBERS:
        if name in row:
            try:
                row[name] = float(row[name])
            except ValueError:
                raise DataError(f"{where}: {name!r} is {row[name][:40]!r}; a number is needed") from None
    for name in ("prompt", "chosen", "rejected"):
        if _WRITTEN_MESSAGES.match(row.get(name, "")):
            raise DataError(f"{where}: {name!r} is messages written as a text; a list is needed: use JSONL or Parquet")
    return row
