"""What stands between a file, whoever wrote it, and the code that makes use of its content."""

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
    """Raise OSError if ``path`` is there but is no file with an end: of a pipe or a device one would read for ever."""
    if path.exists() and not path.is_file():
        what = "a directory" if path.is_dir() else "a pipe or a device, not a file"
        raise IsADirectoryError(errno.EISDIR, what) if path.is_dir() else OSError(errno.EINVAL, what)


def parse_json(data: str | bytes) -> Any:
    """The value of a JSON text that konomi itself could have written: see :func:`check_plain`.

    Raises:
        ValueError: it is no JSON, or holds what no file of konomi's does.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    check_plain(value)
    return value


def check_plain(value: Any, *, finite: bool = True) -> None:
    """Raise ValueError for what settings and records never hold, and what would fail far from here: more than `DEPTH` levels,
    whole numbers that 64 bits with a sign cannot hold and, where they are to be ``finite``, NaN and infinity."""
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
            elif isinstance(each, int) and not -(2**63) <= each < 2**63:
                raise ValueError("a whole number beyond 64 bits with a sign")
            elif finite and isinstance(each, float) and not math.isfinite(each):
                raise ValueError(f"{each}, which is no number")
        level, depth = inner, depth + 1


@contextlib.contextmanager
def written_by_konomi(what: object) -> Iterator[None]:
    """Within, files that konomi wrote are made use of: content of another shape than it writes becomes a DataError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"{what}: one of its files holds what konomi does not write ({type(error).__name__}: {text}); restore it"
        ) from error
