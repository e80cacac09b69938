"""A row of a file, and the checks that all readers share."""

from __future__ import annotations

import difflib
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from konomi.errors import DataError
from konomi.text import plural


class UnusableRow(DataError):
    """A well-formed row without information; a reader may skip it and count it by its ``reason``."""

    def __init__(self, where: str, reason: str, mend: str) -> None:
        super().__init__(f"{where}: {reason}; {mend}")
        self.where, self.reason, self.mend = where, reason, mend


class Row(NamedTuple):
    """A row: where it is, as the start of a message, and its values by column. ``as_text``: all are texts, as in a CSV file.

    Each method returns the value in a column, or raises DataError: there is no such column (``hint`` then ends the message), or
    the value is of another type.
    """

    where: str
    values: dict[str, Any]
    as_text: bool = False

    def value(self, column: str, hint: str = "") -> Any:
        """The value, of any type."""
        need_column(self.where, list(self.values), column, hint)
        return self.values[column]

    def text(self, column: str, *, blank: bool = False, hint: str = "") -> str:
        """A text, as :func:`checked_text` has it."""
        return checked_text(self.where, repr(column), self.value(column, hint), blank=blank)

    def optional_text(self, column: str) -> str | None:
        """A text, or None where it is empty or there is none."""
        value = self.values.get(column)
        return None if value is None else checked_text(self.where, repr(column), value, blank=True) or None

    def number(self, column: str, default: float | None = None, *, as_text: bool = False) -> float:
        """A finite number, or ``default`` where there is none. ``as_text``: it may be written as a text, as in CSV files."""
        value = self.value(column) if default is None else self.values.get(column)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, str) if as_text else (int, float)):
            raise DataError(f"{self.where}: {column!r} is {kind(value)}; a number is needed")
        try:
            number = float(value)
        except ValueError:
            raise DataError(f"{self.where}: {column!r} is {str(value)[:40]!r}; a number is needed") from None
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise DataError(f"{self.where}: {column!r} is {number}; a finite number is needed")
        return number

    def items(self, column: str) -> list[Any]:
        """A list."""
        value = self.value(column)
        if not isinstance(value, list):
            raise DataError(f"{self.where}: {column!r} is {kind(value)}; a list is needed (which a CSV file cannot hold)")
        return value

    def inner(self, column: str) -> Row:
        """An object, as a row."""
        value = self.value(column)
        if not isinstance(value, dict):
            raise DataError(f"{self.where}: {column!r} is {kind(value)}; an object is needed")
        return Row(self.where, value)

    def objects(self, column: str, *names: str) -> list[dict[str, Any]]:
        """A list of objects that have these ``names``."""
        value = self.value(column)
        if not isinstance(value, list) or not all(isinstance(each, dict) and set(names) <= each.keys() for each in value):
            needed = f"a list of objects with {' and '.join(names)} is needed"
            raise DataError(f"{self.where}: {column!r} is {kind(value)}; {needed}")
        return value


def need_column(where: str, names: Sequence[str], column: str, hint: str = "") -> None:
    """Raise DataError if ``column`` is not among ``names``; the message suggests the nearest one and ends in ``hint``."""
    if column not in names:
        have = ", ".join(names) or "none"
        raise DataError(f"{where}: no column {column!r}{near(column, names)}; it has: {have}{hint}")


def checked_text(where: str, name: str, text: object, *, blank: bool = False) -> str:
    """``text``, if it is one; ``name`` says in messages what it is.

    Raises:
        DataError: it is no text, or one that UTF-8 cannot hold.
        UnusableRow: it is blank, and ``blank`` does not allow that.
    """
    if not isinstance(text, str):
        raise DataError(f"{where}: {name} is {kind(text)}; a text is needed")
    if not blank and not text.strip():
        raise UnusableRow(where, f"{name} is blank", "remove the row or write a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {name} has half a character (a surrogate) at position {error.start}") from error
    return text


def alike(names: Iterable[str]) -> str:
    """Names that differ only in case, width or white space, or nothing.

    >>> alike(["positive", "neutral", "Positive", "ＰＯＳＩＴＩＶＥ"])
    "'positive' and 'Positive' and 'ＰＯＳＩＴＩＶＥ'"
    """
    spellings: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        spellings.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(repr(name))
    return ", ".join(" and ".join(each) for each in spellings.values() if len(each) > 1)


def unused(names: Iterable[str], used: Sequence[str]) -> str:
    """``; columns not used: 'this'``, or nothing where all are used."""
    left = [repr(name) for name in names if name not in used]
    return f"; columns not used: {', '.join(left)}" if left else ""


def near(name: str, names: Iterable[str]) -> str:
    """`` (did you mean 'this'?)``, or nothing where no name is similar."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def kind(value: object) -> str:
    """The type of a JSON value, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null", bytes: "binary data"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")


def repeating_rows(rows: Sequence[tuple[str, Sequence[str]]], say: Callable[[str], None]) -> set[int]:
    """The numbers of the rows (prompt, answers) whose answers all repeat the prompt and go on after it.

    None unless nine rows in ten do: an answer may begin like a short prompt by chance. ``say`` gets the outcome.

    >>> repeating_rows([("Hi", ["Hi there"]), ("Tea?", ["Yes"])], print)
    1 of 2 rows have answers that begin with their prompt; too few for a rule, so they are left as they are
    set()
    """
    repeating = {
        number
        for number, (prompt, answers) in enumerate(rows)
        if all(text.startswith(prompt) and text[len(prompt) :].strip() for text in answers)
    }
    count = f"{len(repeating):,} of {plural(len(rows), 'row')}"
    if repeating and 10 * len(repeating) < 9 * len(rows):
        say(f"{count} have answers that begin with their prompt; too few for a rule, so they are left as they are")
        return set()
    if repeating:
        say(f"in {count} the answers begin with the prompt; it is taken off")
    return repeating
