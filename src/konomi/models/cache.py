"""The cache of models that konomi makes from others: conversions of GGUF files, trimmed vocabularies.

It is in ``$KONOMI_CACHE``, else ``$XDG_CACHE_HOME/konomi``, else ``~/.cache/konomi``. A model is built in a directory
beside the final one, written to disk, and renamed into place, under a lock that the system takes back from a process
that dies: so what has the final name is whole, and one that was killed leaves only a directory that the next removes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from konomi.errors import DataError, ModelError, RunError
from konomi.files import file_sha256, local_path, read_utf8, settle, write_atomic, writing
from konomi.reading import parse_json

if sys.platform != "win32":
    import fcntl

Progress = Callable[[str], None]
Make = Callable[[Path, Path], None]  # given a working directory, makes the model in another
FORMAT = 1  # of the cache; part of each directory's name, so that another version of konomi never reads what it cannot
MANIFEST = "manifest.json"


def cache_root() -> Path:
    """Return the directory of konomi's cache; it may not exist yet."""
    if own := os.environ.get("KONOMI_CACHE"):
        return local_path(own, ModelError)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "konomi"


def is_whole(directory: Path, *, verify: bool = False) -> bool:
    """Say whether a cached directory is as its manifest says: each file's size, with ``verify`` its SHA-256 too."""
    try:
        files = parse_json(read_utf8(directory / MANIFEST))["files"]
        for name, stated in files.items():
            if (directory / name).stat().st_size != stated["size"]:
                return False
            if verify and file_sha256(directory / name) != stated["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError):
        return False
    return bool(files)


def cached(key: str, what: str, sha256: str, make: Make, texts: Sequence[Path], progress: Progress, verify: bool) -> Path:
    """Return the directory of a model, making it first if the cache does not have it whole.

    Args:
        key: its name in the cache.
        what: its name in messages.
        sha256: of the file that it is made from, for the manifest.
        make: makes it.
        texts: files that are put beside it.
        progress: called with a message before each slow step.
        verify: compare the SHA-256 of every cached file, not only the sizes.

    Raises:
        RunError: the cache cannot be written.
        KonomiError: what ``make`` raises.
    """
    root = cache_root() / "models"
    key = f"{key}-v{FORMAT}"
    path = root / key
    if is_whole(path, verify=verify):
        return path
    with _explained(what, root):
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f"{key}.lock", what, progress):
            if is_whole(path, verify=verify):  # another process made it while this one waited
                return path
            for left in root.glob(f".{key}.*"):  # of a process that was killed: the lock says that none is at work
                shutil.rmtree(left, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=root))
            try:
                _build(work, what, sha256, make, texts)
                if path.exists():
                    progress(f"{path} is damaged: replacing it")
                    path.rename(work / "damaged")
                (work / "model").rename(path)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return path


@contextmanager
def _explained(what: str, root: Path) -> Iterator[None]:
    try:
        with writing(root):
            yield
    except RunError as error:
        raise RunError(
            f"{what}: its conversion: {error}. The embedded model needs about 1.4 GB there, one with a trimmed vocabulary 0.5 GB "
            "more; to keep the cache elsewhere, set the environment variable KONOMI_CACHE"
        ) from error


def _build(work: Path, what: str, sha256: str, make: Make, texts: Sequence[Path]) -> None:
    out = work / "model"
    make(work, out)
    for text in texts:
        shutil.copyfile(text, out / text.name)
    settle(out)
    files = {}
    for file in sorted(out.iterdir()):
        files[file.name] = {"size": file.stat().st_size, "sha256": file_sha256(file)}
    versions = {name: metadata.version(name) for name in ("transformers", "gguf", "safetensors")}
    manifest = {"format": FORMAT, "source": what, "source_sha256": sha256, "versions": versions, "files": files}
    write_atomic(out / MANIFEST, json.dumps(manifest, indent=1).encode())


@contextmanager
def _lock(file: Path, what: str, progress: Progress) -> Iterator[None]:
    """Hold the file's lock. The system drops it with its process, so that a kill leaves none behind."""
    if sys.platform == "win32":
        yield  # no such lock there; the rename into place still lets one conversion win
        return
    with file.open("wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting: another process is converting {what} (it holds {file})")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
