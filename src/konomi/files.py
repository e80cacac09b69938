"""Files that survive a kill: whole files are replaced in one step, lines of JSON read back without a torn last one."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from konomi.errors import DataError, RunError


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file in one step: whoever reads ``path`` finds the old content or the new, whole.

    Raises:
        RunError: the file cannot be written; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The records of a JSONL file, and the size in bytes to cut it to if its last line is damaged (else None).

    A file that does not exist has no records. Raises DataError if a line before the last is damaged.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return [], None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number == len(lines):  # torn by a kill in the middle of a write
            return records, sum(map(len, lines[:-1]))
        else:
            raise DataError(f"{path}, line {number}: not a JSON object; delete the line")
    return records, None


def content_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; of a directory, that of the names and contents of all its files but hidden ones.

    A file is read once in a process, unless its size or its time changes.
    """
    if not path.is_dir():
        return _sha256_as_of(path.absolute(), path.stat().st_size, path.stat().st_mtime_ns)
    named = {each.relative_to(path).as_posix(): each for each in path.rglob("*") if each.is_file()}
    shown = sorted(name for name in named if not any(part.startswith(".") for part in name.split("/")))
    return hashlib.sha256(json.dumps([[name, content_sha256(named[name])] for name in shown]).encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _sha256_as_of(file: Path, size: int, time_ns: int) -> str:
    return file_sha256(file)


def line(record: Mapping[str, Any]) -> bytes:
    """One line of JSONL."""
    return utf8(json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n")


def utf8(text: str) -> bytes:
    """JSON text as bytes, whatever is in its strings."""
    # a lone surrogate has no UTF-8 form; backslashreplace writes \udXXX, which in a JSON string is its very escape
    return text.encode("utf-8", "backslashreplace")


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinity null, paths strings, tuples lists, numbers of numpy plain."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    number = float(value)
    return number if math.isfinite(number) else None


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A draft to write files into. When the block ends well it takes the place of the directory ``path``, and else it goes away:
    whoever looks at ``path`` finds the old one whole, or the new one whole.

    Raises:
        RunError: something cannot be written; the old directory is still there.
    """
    draft, old = path.with_name(f".{path.name}.{os.getpid()}"), path.with_name(f".{path.name}.old")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        for file in (each for each in draft.rglob("*") if each.is_file()):
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():  # never a half-removed directory under the name of a whole one
            path.rename(old)
        draft.rename(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if old.exists() and not path.exists():  # stopped between the two names
            old.rename(path)
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
