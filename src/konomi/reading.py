"""Checks of what is read from files, whoever wrote them."""

from __future__ import annotations

import contextlib
import errno
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from konomi.errors import DataError

DEPTH = 100
"""Levels of lists and tables in a file of settings or records."""


def check_regular(path: Path) -> None:
    """Raise OSError if ``path`` exists and is no regular file: reading a pipe or a device might never end."""
    if path.exists() and not path.is_file():
        what = "a directory" if path.is_dir() else "a pipe or a device, not a file"
        raise IsADirectoryError(errno.EISDIR, what) if path.is_dir() else OSError(errno.EINVAL, what)


def parse_json(data: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is none, or holds what :func:`check_plain` refuses."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    check_plain(value)
    return value


def check_plain(value: Any, *, finite: bool = True) -> None:
    """Raise ValueError for what settings and records never hold and would fail later: more than DEPTH levels, whole numbers
    beyond signed 64 bits and, with ``finite``, NaN and infinity."""
    for each in _leaves(value):
        if isinstance(each, int) and not -(2**63) <= each < 2**63:
            raise ValueError("a whole number beyond 64 bits with a sign")
        if finite and isinstance(each, float) and not math.isfinite(each):
            raise ValueError(f"{each}, which is no number")


def check_depth(value: Any) -> None:
    """Raise ValueError for lists and tables of more than DEPTH levels: code that walks through them would run out of stack."""
    for _ in _leaves(value):
        pass


def _leaves(value: Any) -> Iterator[Any]:
    """The values that are no lists or tables, level by level. Raises ValueError below DEPTH levels."""
    level, depth = [value], 0
    while level:
        if depth > DEPTH:
            raise ValueError(f"nested more than {DEPTH} levels deep")
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(each.values())
            elif isinstance(each, list):
                inner.extend(each)
            else:
                yield each
        level, depth = inner, depth + 1


@contextlib.contextmanager
def written_by_konomi(what: object) -> Iterator[None]:
    """Turn errors from files that konomi wrote, and somebody changed, into a DataError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"{what}: one of its files holds what konomi does not write ({type(error).__name__}: {text}); restore it"
        ) from error
