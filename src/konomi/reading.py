"""Checks of files that are read, whoever wrote them: kind, encoding, JSON."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from konomi.errors import DataError

DEPTH = 100
"""Levels of lists and tables in a file of settings or records."""
_SIGNATURES = {
    rb"\xff\xfe": "UTF-16 text (Excel's \"Unicode Text\", PowerShell's >)",
    rb"\xfe\xff": "UTF-16 text",
    rb"\x1f\x8b": "gzip data: unpack it first (gunzip)",
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": "bzip2 data: unpack it first (bunzip2)",
    rb"\xfd7zXZ": "xz data: unpack it first (unxz)",
    rb"\x28\xb5\x2f\xfd": "Zstandard data: unpack it first (unzstd)",
    rb"PK\x03\x04": 'an Excel workbook or another zip archive: unpack it, or save the sheet as "CSV UTF-8"',
    rb"\xd0\xcf\x11\xe0": 'an old Excel workbook: save the sheet as "CSV UTF-8"',
    rb"PAR1": "a Parquet file: give it the ending .parquet",
}
"""First bytes of files that are often taken for text."""
HEAD = 64
"""How many first bytes :func:`file_type` needs."""
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
"""Bytes that no text has."""


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
    """Convert errors caused by a changed file of konomi to a DataError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"{what}: one of its files holds what konomi does not write ({type(error).__name__}: {text}); restore it"
        ) from error


def file_type(head: bytes) -> str | None:
    """The format of a file with these first HEAD bytes, if it is no UTF-8 text, or None.

    >>> file_type(b"\\x1f\\x8b\\x08\\x00"), file_type(b"PAR1,q"), file_type(b'{\\x00"\\x00')
    ('gzip data: unpack it first (gunzip)', None, 'UTF-16LE text')
    """
    if not _CONTROL.search(head):
        with contextlib.suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder("utf-8")().decode(head)  # its last character may be cut
            return None
    for start, name in _SIGNATURES.items():
        if re.match(start, head):
            return name
    zeros = "".join("0" if byte == 0 else "x" for byte in head[:4])
    return {"x0x0": "UTF-16LE text", "0x0x": "UTF-16BE text"}.get(zeros)  # ASCII without a byte order mark


def not_utf8(path: Path, reason: str, at: int) -> str:
    """What is wrong with a file that is not UTF-8, and how to convert it, with the encoding of its first MB if that is clear."""
    with path.open("rb") as file:
        data = file.read(1_000_000)
    kind = file_type(data[:HEAD])
    if kind and not kind.startswith("UTF-16"):
        return kind
    encoding = kind.split()[0] if kind else _encoding(data)
    new = shlex.quote(str(path.with_name(f"{path.stem}-utf8{path.suffix}")))
    command = f": iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {new}" if encoding else ""
    what = kind or f"not UTF-8 text ({reason} at byte {at})" + (f", but probably {encoding}" if encoding else "")
    return f"{what}. Save it as UTF-8{command}"


def _encoding(data: bytes) -> str | None:
    """The Japanese encoding of some bytes. EUC-JP is nearly always valid CP932 too, but of half-width kana; Chinese in GBK is
    often valid EUC-JP, but has no kana."""
    for name in ("CP932", "EUC-JP"):
        try:
            text = codecs.getincrementaldecoder(name)().decode(data)
        except UnicodeDecodeError:
            continue
        half = sum("\uff61" <= c <= "\uff9f" for c in text)
        kana = sum("\u3041" <= c <= "\u30ff" for c in text)
        if name == "EUC-JP" and not kana:
            continue
        if 2 * half < sum(c > "\x7f" for c in text):
            return name
    return None
