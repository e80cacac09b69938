"""Where prompts come from: a file, a data set of the hub, or an embedded list.

Files of text are read by the standard library and not through ``datasets``: a mistake is then told as ``file:line: what
is wrong``, and nothing is copied into a cache. This module imports neither torch nor anything that does at import.
"""

from __future__ import annotations

import csv
import difflib
import http.client
import io
import itertools
import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from konomi.config import DataConfig
from konomi.data.records import Prompt
from konomi.errors import ConfigError, DataError

EMBEDDED = "embedded:"
# where a row is, as the start of a message; the row
Row = tuple[str, dict[str, Any]]
_FORMATS = ".jsonl, .csv, .parquet or .txt"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
_FILE_LIKE = re.compile(r"\.(jsonl?|ndjson|[ct]sv|parquet|txt|text|md|xlsx?|arrow|zip|gz|zst|bz2|ya?ml|toml)", re.I)


def load_prompts(config: DataConfig) -> list[Prompt]:
    """Return the prompts that ``config`` names, in the order of the source; of equal texts (by key) the first is kept.

    A column that a row lacks and another has is None.

    Raises:
        DataError: the source cannot be found, reached or read; a row has no text; there are no rows.
        ConfigError: a setting for hub data sets is given with a file.
    """
    source, rows = _open(config)
    prompts: dict[str, Prompt] = {}
    for where, row in itertools.islice(rows, config.limit):
        text = _text(where, row, config.column)
        prompt = Prompt(text, {name: value for name, value in row.items() if name != config.column})
        prompts.setdefault(prompt.key, prompt)
    if not prompts:
        raise DataError(f"{source}: no rows in it; at least one text is needed")
    # JSON rows may differ in their keys; a reward function that names one must find it in every batch
    names = dict.fromkeys(name for prompt in prompts.values() for name in prompt.columns)
    return [Prompt(prompt.text, {name: prompt.columns.get(name) for name in names}) for prompt in prompts.values()]


def split_held_out(prompts: Sequence[Prompt], share: float) -> tuple[list[Prompt], list[Prompt]]:
    """Return (train, held out). A text's side depends on its key alone: other texts coming or going change nothing.

    ``share`` is the expected share held out, 0 to 1: of few texts it can be more or fewer, and even none. What a
    smaller share holds out, a larger one does too.

    Raises:
        DataError: no text is left for training.
    """
    bound = int(share * 2**128)
    train: list[Prompt] = []
    held_out: list[Prompt] = []
    for prompt in prompts:
        (held_out if int(prompt.key, 16) < bound else train).append(prompt)
    if not train:
        raise DataError(
            f"data.held_out = {share}: all of the {len(held_out)} texts are held out and none is left for training; "
            "lower it or add texts"
        )
    return train, held_out


def examples() -> Path:
    """The directory of the shipped prompt lists and configurations."""
    here = Path(__file__).resolve()
    packed = here.parents[1] / "examples"  # in an installed package; else in a checkout
    return packed if packed.is_dir() else here.parents[3] / "examples"


def embedded_file(name: str) -> Path:
    """Return the file of the embedded list ``name``, for example ``openings-ja`` (``embedded:`` in front is allowed).

    Raises:
        DataError: there is no such list.
    """
    name = name.removeprefix(EMBEDDED)
    known = {path.stem: path for path in sorted(examples().glob("*.jsonl"))}
    if name not in known:
        names = ", ".join(EMBEDDED + each for each in sorted(known)) or "none in this installation"
        raise DataError(f"{EMBEDDED}{name}: no such embedded list{_near(name, known)}; known: {names}")
    return known[name]


def hub_problem(timeout: float = 5.0) -> str | None:
    """Say why the hub cannot be reached, or None where it can: one small request, `timeout` seconds.

    Asked first because the hub's own client goes on trying for 23 seconds a file before it gives up.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError as error:  # it answered, if only to refuse
        error.close()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        # an unknown certificate authority: the hub's client has its own list of them
        if not isinstance(reason, ssl.SSLError):
            return f"{constants.ENDPOINT}: {reason or type(error).__name__}"
    return None


def _open(config: DataConfig) -> tuple[str, Iterator[Row]]:
    name = config.prompts
    if name.startswith(EMBEDDED):
        path = embedded_file(name)
    else:
        path = Path(name).expanduser()
        if path.is_dir():
            raise DataError(f"{name}: a directory; give one {_FORMATS} file")
        if not path.exists():
            if _HUB_NAME.fullmatch(name) and not _FILE_LIKE.fullmatch(path.suffix):
                return name, _hub_rows(config)
            raise DataError(f"{name}: no such file (seen from {Path.cwd()})")
    for key in ("subset", "split", "revision"):
        if getattr(config, key) != DataConfig.model_fields[key].default:
            raise ConfigError(f"data.{key}: for data sets of the hub; {name} is a file. Remove it")
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return name, _jsonl_rows(path)
    if suffix == ".csv":
        return name, _csv_rows(path, config.column)
    if suffix == ".txt":
        return name, _txt_rows(path, config.column)
    if suffix == ".parquet":
        return name, _parquet_rows(path, config.column)
    raise DataError(f"{name}: {suffix or 'no'} file ending is not one that is read; a {_FORMATS} file is needed")


def _read(path: Path) -> str:
    """Return the text of a UTF-8 file, the byte order mark that some editors put in front taken off."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8; "
            f"for Japanese text from Windows: iconv -f CP932 -t UTF-8 {path.name} > new{path.suffix}"
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    # not splitlines: that splits at U+2028 and others too, which may stand inside a JSON string
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            message = f"not JSON: {error.msg} at column {error.colno}; one object a line is needed"
            raise DataError(f"{where}: {message}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: JSON that cannot be read: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f'{where}: {_kind(row)}; each line has to be an object such as {{"text": "..."}}')
        yield where, row


def _txt_rows(path: Path, column: str) -> Iterator[Row]:
    for number, line in _lines(path):
        yield f"{path}:{number}", {column: line}


def _csv_rows(path: Path, column: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(_read(path), newline=""), strict=True)
    header: list[str] = []
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{where}: not CSV: {error}") from error
        if fields is None:
            return
        if not fields:
            continue
        if not header:
            header = fields
            _need_column(where, header, column, "; the first line of a CSV file has to name its columns")
            if twice := [name for name in header if header.count(name) > 1]:
                raise DataError(f"{where}: two columns are named {twice[0]!r}; rename one")
        elif len(fields) != len(header):
            raise DataError(
                f"{where}: {len(fields)} fields, but the header names {len(header)}; "
                "a field with a comma or a line break in it needs double quotes around it"
            )
        else:
            yield where, dict(zip(header, fields, strict=True))


def _parquet_rows(path: Path, column: str) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _need_column(str(path), file.schema_arrow.names, column)
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error


def _hub_rows(config: DataConfig) -> Iterator[Row]:
    import datasets

    name = config.prompts
    problem = hub_problem()
    try:
        with _hub_offline(problem is not None):
            data = datasets.load_dataset(name, config.subset, split=config.split, revision=config.revision)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise DataError(
            f"{name}: this data set is a loading script, which the datasets library no longer runs. "
            'The hub keeps a Parquet copy of most such data sets: set data.revision = "refs/convert/parquet"'
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if problem is None:
            hint = "check data.prompts, data.subset, data.split and data.revision"
            raise DataError(f"{name}: no such file; as a data set of the hub: {error}\n({hint})") from error
        raise DataError(
            f"{name}: no such file; as a data set of the hub it is not in the cache and cannot be fetched ({problem}). "
            f"Without a network, set data.prompts to a local {_FORMATS} file or to embedded:openings-ja"
        ) from error
    _need_column(name, data.column_names, config.column)
    for number, row in enumerate(data, start=1):
        yield f"{name}: row {number}", row


@contextmanager
def _hub_offline(offline: bool) -> Iterator[None]:
    """Make the hub's libraries look into their cache only: the switch is read at import, no argument sets it."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if offline:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _need_column(where: str, names: Sequence[str], column: str, hint: str = "") -> None:
    if column not in names:
        have = ", ".join(names) or "none"
        raise DataError(f"{where}: no column {column!r}{_near(column, names)}; it has: {have}. Set data.column{hint}")


def _text(where: str, row: dict[str, Any], column: str) -> str:
    _need_column(where, list(row), column)
    text = row[column]
    if not isinstance(text, str):
        raise DataError(f"{where}: {column!r} is {_kind(text)}; a text is needed")
    if not text.strip():
        raise DataError(f"{where}: {column!r} is blank; remove the row or write a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {column!r} has half a character (a surrogate) at position {error.start}") from error
    return text


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")
