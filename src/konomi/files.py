"""Paths from users, JSON lines, and files and directories that are replaced in one step."""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from konomi.errors import DataError, KonomiError, RunError
from konomi.reading import check_regular, not_utf8, parse_json


def local_path(name: str | Path, error: type[KonomiError] = DataError) -> Path:
    """The path that a user wrote, with ``~`` and ``~user`` expanded. It need not exist. Raises ``error`` if no file can have this
    name, or it cannot be looked up."""
    path = Path(name)
    try:
        path = Path(os.path.expanduser(name))  # pathlib's own raises where there is no such user
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as problem:
        no_name = problem.errno in (errno.ENAMETOOLONG, errno.EINVAL)
        what = "no such file, and no file can have this name" if no_name else "cannot be looked up"
        raise error(f"{_short(name)}: {what}: {problem.strerror}") from None
    except ValueError as problem:  # a NUL, half a character
        raise error(f"{_short(name)}: no such file, and no file can have this name: {problem}") from None
    return path


def model_path(name: str | Path, error: type[KonomiError] = DataError) -> Path:
    """As :func:`local_path`, but ``RUN/model`` for the directory of a run; raises ``error`` also where a run has no model."""
    path = local_path(name, error)
    if not os.path.isfile(path / "run.json"):  # False, where pathlib raises, for a directory that may not be searched
        return path
    if not os.path.isdir(path / "model"):
        raise error(f"{name}: a run without a model: it has not ended, or is none of ppo, sft or reward")
    return path / "model"


def _short(name: str | Path) -> str:
    text = repr(str(name))[1:-1]
    return text if len(text) <= 80 else f"{text[:20]}... ({len(str(name))} characters)"


def read_utf8(path: Path) -> str:
    """The text of a file, without a byte order mark. Raises OSError, or DataError if it is not UTF-8."""
    check_regular(path)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {not_utf8(path, error.reason, error.start)}") from None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert file system errors to a RunError that names ``path``.

    Where Python raises OSError, safetensors raises SafetensorError and tokenizers a bare Exception, with the error's number in
    the message.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number and not isinstance(error, KonomiError):
            raise RunError(f"{path}: cannot be written: {os.strerror(int(number[1]))}") from error
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file in one step. Raises RunError if it cannot be written; the old content is then unchanged."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_names(path.parent)
    except RunError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:  # hashlib.file_digest needs Python 3.11
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The records of a JSONL file, which may not exist, and its size in bytes without a damaged last line (else None).

    Raises DataError if an earlier line is damaged.
    """
    try:
        check_regular(path)
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return [], None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number == len(lines):  # cut by a kill during a write
            return records, sum(map(len, lines[:-1]))
        else:
            raise DataError(f"{path}, line {number}: not a JSON object; delete the line")
    return records, None


def content_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a directory's files, without hidden ones and README.md: the
    card of a model changes with its figures. A file is read once in a process, unless its size or time changes."""
    if not path.is_dir():
        return _sha256_as_of(path.absolute(), path.stat().st_size, path.stat().st_mtime_ns)
    named = {each.relative_to(path).as_posix(): each for each in path.rglob("*") if each.is_file()}
    shown = sorted(name for name in named if name != "README.md" and not any(p.startswith(".") for p in name.split("/")))
    return hashlib.sha256(json.dumps([[name, content_sha256(named[name])] for name in shown]).encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _sha256_as_of(file: Path, size: int, time_ns: int) -> str:
    return file_sha256(file)


def json_line(record: Mapping[str, Any]) -> bytes:
    """One line of JSONL."""
    return utf8(json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n")


def utf8(text: str) -> bytes:
    """JSON text as bytes. A lone surrogate has no UTF-8 form; backslashreplace writes \\udXXX, its escape in a JSON string."""
    return text.encode("utf-8", "backslashreplace")


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinity null, paths and dates strings, tuples lists, numpy numbers plain. Raises
    TypeError or ValueError for anything else."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):  # float would read a number in them
        raise TypeError("bytes, which JSON cannot hold")
    number = float(value)
    return number if math.isfinite(number) else None


def sync_directory(directory: Path) -> None:
    """Flush all files of a directory to the disk, and give them the umask's permissions, which safetensors does not."""
    probe = directory / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in directory.rglob("*"):
        if path.is_dir():
            sync_names(path)
        elif path.is_file():
            sync_file(path)
            path.chmod(mode)
    sync_names(directory)


def sync_file(file: Path) -> None:
    """Flush a file to the disk."""
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())


def sync_names(directory: Path) -> None:
    """Flush the names in a directory to the disk, where the system and the file system can."""
    if os.name != "posix":
        return
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)


def remove_drafts(directory: Path) -> None:
    """Remove half-written files of a killed process. If it was killed between the two renames of :func:`new_directory`, the old
    directory gets its name back."""
    for old in filter(Path.is_dir, directory.glob(".*.old")):
        replaced = directory / old.name[1:-4]
        shutil.rmtree(old) if replaced.exists() else old.rename(replaced)
    for path in directory.glob(".*"):
        if re.fullmatch(r"\..+\.[0-9]+(\.tmp)?", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A draft directory that replaces ``path`` in one step when the block ends without an error, and is removed otherwise.

    Raises:
        RunError: something cannot be written; the old directory is still there.
    """
    draft, old = path.with_name(f".{path.name}.{os.getpid()}"), path.with_name(f".{path.name}.old")
    try:
        with writing(path):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            yield draft
            sync_directory(draft)
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():  # never half-removed under its final name
                path.rename(old)
            draft.rename(path)
            sync_names(path.parent)
    finally:
        if old.exists() and not path.exists():  # stopped between the two renames
            old.rename(path)
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
