"""TSV for a reader of CSV: most programs write its quotes as they are, spreadsheets put them around fields as in CSV."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator

_CLOSING = re.compile(r'[^"]*(?:""[^"]*)*"(?!")')
"""Up to the first quote that is not doubled."""


def as_csv(lines: Iterable[str], separator: str, limit: int) -> Iterator[str]:
    """The lines with quotes around each field that begins with one that does not close the whole field, and so is text.

    ``limit``: how many characters are looked through for the quote that closes a field.
    """
    source, ahead = iter(lines), deque[str]()
    end_of_field = re.compile(rf"[^{re.escape(separator)}\r\n]*")
    while line := ahead.popleft() if ahead else next(source, ""):
        made, at = "", 0
        while at < len(line):
            end = end_of_field.match(line, at).end()  # type: ignore[union-attr]  # it matches nothing too
            if line[at] != '"':
                end = max(end, at + 1)  # the separator itself
                made += line[at:end]
                at = end
                continue
            more: list[str] = []
            closing = _CLOSING.match(line, at + 1)
            size = len(line)
            while not closing and size <= limit and (following := ahead.popleft() if ahead else next(source, "")):
                more.append(following)
                closing = _CLOSING.match(following)
                size += len(following)
            last = more[-1] if more else line
            if closing and last[closing.end() : closing.end() + 1] in (separator, "\r", "\n", ""):
                if more:
                    yield made + line[at:]
                    yield from more[:-1]
                    made, line, at = "", last, 0
                made += line[at : closing.end()]
                at = closing.end()
            else:
                ahead.extendleft(reversed(more))
                doubled = line[at:end].replace('"', '""')
                made += f'"{doubled}"'
                at = end
        yield made
