"""Rows out of files: JSONL, CSV, Parquet, plain text; and the checks of a row that all readers share.

Files of text are read by the standard library and not through ``datasets``: a mistake is then told as ``file:line: what
is wrong``, and nothing is copied into a cache. They are read line by line, and a line that is longer than a text can
reasonably be is refused before it fills the memory. Standard library only, but for Parquet.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from konomi.data.tsv import as_csv
from konomi.errors import DataError
from konomi.files import HEAD, not_utf8, what_it_is
from konomi.reading import check_regular

# where a row is, as the start of a message; the row
Row = tuple[str, dict[str, Any]]
FORMATS = ".jsonl, .csv, .tsv, .parquet or .txt"
TABLES = (".csv", ".tsv")
"""Endings of files that hold nothing but text in rows and columns."""
LINE_LIMIT = 1_000_000
"""Bytes that a line may have."""


class UnusableRow(DataError):
    """A row that is what it should be, but that nothing can be learnt from. Whoever wants to may leave it out.

    Attributes:
        where: the row.
        reason: what is wrong, the same words for all such rows.
        mend: how to mend it.
    """

    def __init__(self, where: str, reason: str, mend: str) -> None:
        super().__init__(f"{where}: {reason}; {mend}")
        self.where, self.reason, self.mend = where, reason, mend


def file_rows(path: Path, column: str | None = None, key: str = "data.column") -> Iterator[Row]:
    """The rows of a file, in order, each with the place where it is; by the file's ending.

    Args:
        path: a file that exists.
        column: where the lines of a text file go; a CSV or Parquet file without it is refused. None: the caller looks
            at the columns, and a text file, which has none, is refused.
        key: the setting that names the column, for messages.

    Raises:
        DataError: the ending is unknown, or (while iterating) the file or a row cannot be read.
    """
    suffix = path.suffix.lower()
    _check_content(path, text=suffix != ".parquet")
    if suffix == ".jsonl":
        return _jsonl_rows(path)
    if suffix in TABLES:
        return _csv_rows(path, column, key)
    if suffix == ".parquet":
        return _parquet_rows(path, column, key)
    if suffix == ".txt" and column is not None:
        return _txt_rows(path, column)
    if suffix == ".txt":
        raise DataError(f"{path}: a text file has no columns; a .jsonl, .csv or .parquet file is needed")
    raise DataError(f"{path}: {suffix or 'no'} file ending is not one that is read; a {FORMATS} file is needed")


def _check_content(path: Path, text: bool) -> None:
    """Refuse what has no end, and instead of a ``text`` what is no UTF-8 at all, by its first bytes, and name it."""
    try:
        check_regular(path)
        if not text:
            return
        with path.open("rb") as file:
            found = what_it_is(file.read(HEAD))
        if found:
            raise DataError(f"{path}: {not_utf8(path, found, 0)}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, the byte order mark that some editors put in front taken off."""
    offset = 0
    number = 1
    try:
        with path.open("rb") as file:
            # not splitlines: that splits at U+2028 and others too, which may stand inside a JSON string
            while data := file.readline(LINE_LIMIT + 1):
                if len(data) > LINE_LIMIT:
                    size = len(data)
                    while not data.endswith(b"\n") and (data := file.readline(LINE_LIMIT)):
                        size += len(data)
                    raise DataError(
                        f"{path}:{number}: a line of {size:,} bytes; {LINE_LIMIT:,} are allowed. Is it one record a line?"
                    )
                try:
                    yield data.decode("utf-8").removeprefix("\ufeff" if number == 1 else "")
                except UnicodeDecodeError as error:
                    advice = not_utf8(path, error.reason, offset + error.start)
                    raise DataError(f"{path}:{number}: {advice}") from error
                offset += len(data)
                number += 1
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _filled_lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield number, line.removesuffix("\n").removesuffix("\r")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in _filled_lines(path):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            message = f"not JSON: {error.msg} at column {error.colno}; one object a line is needed"
            raise DataError(f"{where}: {message}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: JSON that cannot be read: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f'{where}: {kind(row)}; each line has to be an object such as {{"text": "..."}}')
        yield where, row


def _txt_rows(path: Path, column: str) -> Iterator[Row]:
    for number, line in _filled_lines(path):
        yield f"{path}:{number}", {column: line}


def _csv_rows(path: Path, column: str | None, key: str) -> Iterator[Row]:
    # StringIO, because a carriage return by itself ends a line too
    parts = chain.from_iterable(io.StringIO(line, newline="") for line in _lines(path))
    first, skipped = "", 0
    for first in parts:
        if first.strip():
            break
        skipped += 1
    if stated := _SEPARATOR.fullmatch(first):
        first, skipped = next(parts, ""), skipped + 1
    tabs = path.suffix.lower() == ".tsv"
    separator = stated[1] if stated else "\t" if tabs else _separator(first)
    csv.field_size_limit(max(csv.field_size_limit(), LINE_LIMIT))
    lines = chain([first], parts)
    reader = csv.reader(as_csv(lines, separator, LINE_LIMIT) if tabs else lines, strict=True, delimiter=separator)
    header: list[str] = []
    while True:
        where = f"{path}:{reader.line_num + 1 + skipped}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{where}: not CSV: {error}") from error
        if fields is None:
            return
        if not any(fields) and len(fields) != 1:  # a spreadsheet writes lines of separators alone
            continue
        if header:
            yield where, _named(where, header, fields, separator)
            continue
        header = _unpadded(fields)
        if column is not None:
            hint = f". Set {key}; the first line of a CSV file has to name its columns"
            need_column(where, header, column, hint)
        if twice := [name for name in header if header.count(name) > 1]:
            raise DataError(f"{where}: two columns are named {twice[0]!r}; rename one")


_SEPARATOR = re.compile(r'"?sep=([^"\w\s]|\t)"?\s*', re.I)
"""The first line that Excel writes and reads, which is no row."""


def _separator(header: str) -> str:
    """What stands between the names of columns of a CSV file: a comma, or a semicolon or tab if there are more of those.

    >>> _separator("prompt;chosen;rejected"), _separator('"a;b",c'), _separator("text")
    (';', ',', ',')
    """
    outside = "".join(header.split('"')[::2])
    return max(",;\t", key=outside.count)


def _unpadded(fields: list[str]) -> list[str]:
    """Fields without the empty ones at the end, which a spreadsheet writes for columns that were used once."""
    return fields[: max((n for n, field in enumerate(fields, start=1) if field), default=0)]


def _named(where: str, header: list[str], fields: list[str], separator: str) -> dict[str, Any]:
    if len(fields) > len(header):
        fields = [*fields[: len(header)], *_unpadded(fields[len(header) :])]
    if len(fields) != len(header):
        name = {",": "a comma", ";": "a semicolon", "\t": "a tab"}.get(separator, repr(separator))
        raise DataError(
            f"{where}: {len(fields)} fields, but the header names {len(header)}; "
            f"a field with {name} or a line break in it needs double quotes around it"
        )
    return dict(zip(header, fields, strict=True))


def _parquet_rows(path: Path, column: str | None, key: str) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if column is not None:
                need_column(str(path), file.schema_arrow.names, column, f". Set {key}")
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error


def need_column(where: str, names: Sequence[str], column: str, hint: str = "") -> None:
    """Raise DataError if ``column`` is not among ``names``; the message names the nearest one and ends in ``hint``."""
    if column not in names:
        have = ", ".join(names) or "none"
        raise DataError(f"{where}: no column {column!r}{near(column, names)}; it has: {have}{hint}")


def text_of(where: str, row: dict[str, Any], column: str, *, blank: bool = False, hint: str = "") -> str:
    """The text in a column of a row.

    Raises:
        DataError: there is no such column, or no text in it, or one that UTF-8 cannot hold.
        UnusableRow: the text is blank, and ``blank`` does not allow that.
    """
    need_column(where, list(row), column, hint)
    return checked_text(where, repr(column), row[column], blank=blank)


def checked_text(where: str, name: str, text: object, *, blank: bool = False) -> str:
    """``text``, if it is one; the errors are those of :func:`text_of`, in which ``name`` says what this is."""
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
    """Names that differ in case, width or white space alone, or nothing.

    >>> alike(["positive", "neutral", "Positive", "ＰＯＳＩＴＩＶＥ"])
    "'positive' and 'Positive' and 'ＰＯＳＩＴＩＶＥ'"
    """
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        found.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(repr(name))
    return ", ".join(" and ".join(each) for each in found.values() if len(each) > 1)


def unused(names: Iterable[str], used: Iterable[str]) -> str:
    """``; columns not used: 'this'``, or nothing where all are used."""
    left = [repr(name) for name in names if name not in tuple(used)]
    return f"; columns not used: {', '.join(left)}" if left else ""


def near(name: str, names: Iterable[str]) -> str:
    """`` (did you mean 'this'?)``, or nothing where no name is like it."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def kind(value: object) -> str:
    """What a value of JSON is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null", bytes: "binary data"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")
