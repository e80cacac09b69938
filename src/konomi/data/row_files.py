"""Read the rows of a file: JSONL, CSV, TSV, Parquet, plain text.

Files of text are read by the standard library, line by line, and not through ``datasets``: a mistake is reported as ``file:line:
what is wrong``, nothing is copied into a cache, and an overlong line is refused before it fills the memory.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, dropwhile
from pathlib import Path

from konomi.data.rows import Row, kind, need_column
from konomi.errors import DataError
from konomi.reading import DEPTH, HEAD, check_depth, check_regular, file_type, not_utf8

FORMATS = ".jsonl, .csv, .tsv, .parquet or .txt"
TABLES = (".csv", ".tsv")
SUFFIXES = (".jsonl", *TABLES, ".parquet", ".txt")
LINE_LIMIT = 1_000_000  # bytes of a line


def file_rows(path: Path, column: str | None = None, key: str = "data.column") -> Iterator[Row]:
    """The rows of a file that exists, read as its ending says.

    Args:
        column: required in CSV and Parquet files; the column name for lines of a text file. None: the caller checks the columns,
            and a text file, which has none, is refused.
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
        return (Row(where, {column: line}) for where, line in _filled_lines(path))
    if suffix == ".txt":
        raise DataError(f"{path}: a text file has no columns; a .jsonl, .csv or .parquet file is needed")
    raise DataError(f"{path}: {suffix or 'no'} file ending is not one that is read; a {FORMATS} file is needed")


def _check_content(path: Path, text: bool) -> None:
    """Refuse a pipe or device and, for a ``text``, a file whose first bytes are those of another format."""
    try:
        check_regular(path)
        if not text:
            return
        with path.open("rb") as file:
            other = file_type(file.read(HEAD))
        if other:
            raise DataError(f"{path}: {not_utf8(path, other, 0)}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, without the byte order mark that some editors put in front."""
    offset, number = 0, 1
    try:
        with path.open("rb") as file:
            # not splitlines, which also splits at U+2028 and others inside a JSON string
            while data := file.readline(LINE_LIMIT + 1):
                if len(data) > LINE_LIMIT:
                    size = len(data)
                    while not data.endswith(b"\n") and (data := file.readline(LINE_LIMIT)):
                        size += len(data)
                    allowed = f"{LINE_LIMIT:,} are allowed. Is it one record a line?"
                    raise DataError(f"{path}:{number}: a line of {size:,} bytes; {allowed}")
                try:
                    yield data.decode("utf-8").removeprefix("\ufeff" if number == 1 else "")
                except UnicodeDecodeError as error:
                    advice = not_utf8(path, error.reason, offset + error.start)
                    raise DataError(f"{path}:{number}: {advice}") from error
                offset += len(data)
                number += 1
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _filled_lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield f"{path}:{number}", line.removesuffix("\n").removesuffix("\r")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for where, line in _filled_lines(path):
        try:
            row = json.loads(line)
            if line.count("[") + line.count("{") > DEPTH:  # quicker than to look at every value
                check_depth(row)
        except json.JSONDecodeError as error:
            what = f"{error.msg} at column {error.colno}"
            raise DataError(f"{where}: not JSON: {what}; one object a line is needed") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: JSON that cannot be read: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f'{where}: {kind(row)}; each line has to be an object such as {{"text": "..."}}')
        yield Row(where, row)


def _csv_rows(path: Path, column: str | None, key: str) -> Iterator[Row]:
    # StringIO, because a lone carriage return ends a line too
    parts = chain.from_iterable(io.StringIO(line, newline="") for line in _lines(path))
    numbered = dropwhile(lambda part: not part[1].strip(), enumerate(parts))
    skipped, first = next(numbered, (0, ""))
    if stated := _SEPARATOR.fullmatch(first):
        skipped, first = next(numbered, (0, ""))
    tabs = path.suffix.lower() == ".tsv"
    separator = stated[1] if stated else "\t" if tabs else _separator(first)
    csv.field_size_limit(max(csv.field_size_limit(), LINE_LIMIT))
    lines = chain([first], (part for _, part in numbered))
    reader = csv.reader(_quoted(lines, separator) if tabs else lines, strict=True, delimiter=separator)
    header: list[str] = []
    while True:
        where = f"{path}:{reader.line_num + 1 + skipped}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{where}: not CSV: {error}") from error
        if fields is None:
            return
        if not any(fields) and len(fields) != 1:  # spreadsheets write lines of nothing but separators
            continue
        if header:
            yield _named(where, header, fields, separator)
            continue
        header = _unpadded(fields)
        if column is not None:
            need_column(where, header, column, f". Set {key}; the first line of a CSV file has to name its columns")
        if twice := [name for name in header if header.count(name) > 1]:
            raise DataError(f"{where}: two columns are named {twice[0]!r}; rename one")


_SEPARATOR = re.compile(r'"?sep=([^"\w\s]|\t)"?\s*', re.I)  # a first line written and read by Excel


def _separator(header: str) -> str:
    """The separator of a CSV file: a comma, or a semicolon or tab if the header has more of those.

    >>> _separator("prompt;chosen;rejected"), _separator('"a;b",c'), _separator("text")
    (';', ',', ',')
    """
    outside = "".join(header.split('"')[::2])
    return max(",;\t", key=outside.count)


def _unpadded(fields: list[str]) -> list[str]:
    """Fields without the empty ones at the end, which spreadsheets write."""
    return fields[: max((n for n, field in enumerate(fields, start=1) if field), default=0)]


def _named(where: str, header: list[str], fields: list[str], separator: str) -> Row:
    fields = [*fields[: len(header)], *_unpadded(fields[len(header) :])]
    if len(fields) != len(header):
        name = {",": "a comma", ";": "a semicolon", "\t": "a tab"}.get(separator, repr(separator))
        raise DataError(
            f"{where}: {len(fields)} fields, but the header names {len(header)}; "
            f"a field with {name} or a line break in it needs double quotes around it"
        )
    return Row(where, dict(zip(header, fields, strict=True)), as_text=True)


_CLOSING = re.compile(r'[^"]*(?:""[^"]*)*"(?!")')  # up to the first quote that is not doubled


def _quoted(lines: Iterable[str], separator: str) -> Iterator[str]:
    """TSV lines for a reader of CSV. Most programs write quotes in TSV as they are, spreadsheets put them around fields: a field
    whose first quote is not closed at its end, within LINE_LIMIT characters, is plain text and is quoted here."""
    source, ahead = iter(lines), deque[str]()
    end_of_field = re.compile(rf"[^{re.escape(separator)}\r\n]*")
    while line := ahead.popleft() if ahead else next(source, ""):
        written, at = "", 0
        while at < len(line):
            end = end_of_field.match(line, at).end()  # type: ignore[union-attr]  # it matches nothing too
            if line[at] != '"':
                end = max(end, at + 1)  # the separator itself
                written += line[at:end]
                at = end
                continue
            more: list[str] = []
            closing = _CLOSING.match(line, at + 1)
            size = len(line)
            while not closing and size <= LINE_LIMIT and (following := ahead.popleft() if ahead else next(source, "")):
                more.append(following)
                closing = _CLOSING.match(following)
                size += len(following)
            last = more[-1] if more else line
            if closing and last[closing.end() : closing.end() + 1] in (separator, "\r", "\n", ""):
                if more:
                    yield written + line[at:]
                    yield from more[:-1]
                    written, line, at = "", last, 0
                written += line[at : closing.end()]
                at = closing.end()
            else:
                ahead.extendleft(reversed(more))
                doubled = line[at:end].replace('"', '""')
                written += f'"{doubled}"'
                at = end
        yield written


def _parquet_rows(path: Path, column: str | None, key: str) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if column is not None:
                need_column(str(path), file.schema_arrow.names, column, f". Set {key}")
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield Row(f"{path}: row {number}", row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error
