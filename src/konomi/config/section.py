"""The base of all settings: frozen sections, read from TOML, overridden, with errors that say what is wrong and where."""

from __future__ import annotations

import copy
import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from konomi.errors import ConfigError, DataError
from konomi.files import local_path, read_utf8
from konomi.reading import check_plain

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """The base of all sections: frozen, keyword only, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class StageConfig(Section):
    """Where a run is kept and logged."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of everything random in the run."""
    name: str | None = None
    """Run name; the default is made from the time."""
    mlflow: bool = True
    """Log to MLflow: to MLFLOW_TRACKING_URI if set, else to mlflow.db beside the run."""
    sinks: tuple[Literal["mlflow", "tensorboard", "wandb"], ...] = ("mlflow",)
    """Where metrics are logged beside the run's own files. tensorboard: to the run's directory tensorboard; wandb: to Weights &
    Biases, in the project `experiment`. Both are extras: pip install "konomi[tensorboard]", "konomi[wandb]". mlflow = false
    takes MLflow out."""
    experiment: str = "konomi"
    """MLflow experiment."""


class SavedConfig(StageConfig):
    """Where a run of the Trainer is kept and logged, and how often it is saved."""

    save_every: Positive = 50
    """Optimiser steps between checkpoints, from which --resume goes on: a kill costs the steps since the last one. A stop saves
    too. One takes three times the room of the weights that are trained; a finished run has none."""


def check_multiple(section: Section, multiple: str, part: str) -> None:
    """Raise ValueError if the setting ``multiple`` is not a multiple of ``part``."""
    a, b = getattr(section, multiple), getattr(section, part)
    if a % b:
        near = f"{a // b * b or b}, {(a // b + 1) * b}"
        raise ValueError(f"{multiple} = {a} is not a multiple of {part} = {b}; the nearest that are: {near}")


def check_held_out(share: float, why: str) -> None:
    """Raise ValueError if there is nothing to hold out, or nothing left."""
    if not 0.0 < share < 1.0:
        raise ValueError(f"held_out = {share:g}: has to be above 0 and below 1; {why}, and training needs the others")


def check_address(url: str) -> None:
    """Raise ValueError unless it is the address of a service, without a secret in it. Call it from a validator of the section:
    those of a field repeat the value, in which a password may be."""
    plain = url.isascii() and url.isprintable() and " " not in url
    try:
        parts = urlsplit(url)
        valid = plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("url: not an address; write http://host:port/path or https://..., other characters as %XX")
    if "@" in url:  # a password may have a / in it
        raise ValueError("url: holds a user or password, which would be written into the run; use token_env")
    if parts.query:
        raise ValueError("url: what follows ? may be a key, and would be written into the run; use token_env")


JobT = TypeVar("JobT", bound=Section)


def load_config(path: str | Path, kind: type[JobT], overrides: Sequence[str] = ()) -> JobT:
    """Read a TOML file into ``kind`` and apply ``section.key=value`` overrides (a value is TOML, else a plain string; for a
    setting that is text, 2024 and true are text; ``section.key=`` leaves out a number that may be left out, as if the file had
    not set it).

    Relative file names in it are taken from the current directory, as on the command line.

    Raises:
        ConfigError: the file is missing or not TOML; a key is unknown; a value is of the wrong type or contradicts another.
    """
    return build(kind, read_toml(Path(path)), overrides, where=str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises ConfigError if it is missing or not TOML."""
    try:
        return tomllib.loads(read_utf8(local_path(path)))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. See examples/ for configurations to start from") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a directory; a TOML file is needed") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except DataError as error:
        raise ConfigError(str(error)) from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, a thousand brackets
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def build(kind: type[JobT], data: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "config") -> JobT:
    """Make ``kind`` of plain data with overrides applied; see :func:`load_config`."""
    try:
        return kind.model_validate(changed(kind, data, overrides, where))
    except ValidationError as error:
        raise ConfigError(_explain(error, kind, where)) from None


def changed(kind: type[Section], data: Mapping[str, Any], overrides: Sequence[str], where: str = "config") -> dict[str, Any]:
    """A copy of plain data that is meant for ``kind``, with overrides applied; see :func:`load_config`."""
    try:
        check_plain(data, finite=False)
        merged: dict[str, Any] = copy.deepcopy(dict(data))
        for item in overrides:
            _override(merged, item, kind)
        check_plain(merged, finite=False)  # a section says itself where a number is not finite
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return merged


def may_be_left_out(kind: type[Section], path: str) -> bool:
    """Whether the setting at a dotted path may be None, as if it were not set."""
    return NoneType in _types(kind, path.split("."))


def _override(data: dict[str, Any], item: str, kind: type[Section]) -> None:
    key, equals, text = item.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or (len(parts) < 2 and not _stands_alone(kind, parts[0])):
        raise ConfigError(f"--set {_shown(item)}: write section.key=value, for example --set ppo.episodes=512")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--set {_shown(item)}: {error}") from None
    types = _types(kind, parts)
    texts = {str, NoneType, tuple[str, ...]}  # reward.label may be a number too
    if not isinstance(value, (list, dict, str)) and str in types and types <= texts:
        value = text
    for part in parts[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {_shown(item)}: {part} is not a section")
    if not text.strip() and NoneType in types and str not in types:
        data.pop(parts[-1], None)
    else:
        data[parts[-1]] = value


def _shown(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text):,} characters)"


def _stands_alone(kind: type[Section], name: str) -> bool:
    """Whether this setting is in no section."""
    return name in kind.model_fields and not any(_sections([kind.model_fields[name].annotation]))


def _types(kind: type[Section], parts: Sequence[str]) -> set[Any]:
    """The types that a setting may have."""
    types: set[Any] = {kind}
    for part in parts:
        if named := [each for each in types if get_origin(each) is dict]:
            annotations = [get_args(each)[1] for each in named]
        else:
            annotations = [each.model_fields[part].annotation for each in _sections(types) if part in each.model_fields]
        types = {each for annotation in annotations for each in _alternatives(annotation)}
    return types


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types that a setting may have; a table of names is one type."""
    return (annotation,) if get_origin(annotation) is dict else get_args(annotation) or (annotation,)


def _explain(error: ValidationError, kind: type[Section], where: str) -> str:
    lines = []
    for problem in error.errors():
        path, sections = _follow(kind, [str(part) for part in problem["loc"]])
        at = ".".join(path)
        if problem["type"] == "extra_forbidden":
            known = sorted({name for section in sections for name in section.model_fields})
            near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            lines.append(f"{where}: {at}: unknown key; {hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "union_tag_not_found":
                message = 'kind is missing; write kind = "..." to say which kind it is'
            value = problem.get("input")
            shown = f" (got {_shown(repr(value))})" if isinstance(value, (str, int, float, bool)) else ""
            lines.append(f"{where}: {at or kind.__name__}: {message}{shown}")
    return "\n".join(lines)


def _follow(kind: type[Section], loc: Sequence[str]) -> tuple[list[str], set[type[Section]]]:
    """The path of a setting as a user writes it, and the sections that its last key was looked up in."""
    path: list[str] = []
    here = looked_in = {kind}
    named = False  # what comes next is a name that the user has made up: it may be that of a kind, or of a setting
    for part in loc:
        if part == "[key]":  # pydantic's word for a name that is not allowed
            continue
        if named:
            path.append(part)
            named = False
            continue
        if chosen := {each for each in here if len(here) > 1 and _kind_of(each) == part}:
            here = chosen  # pydantic names the kind that was chosen of several
            continue
        path.append(part)
        looked_in = here
        if annotations := [each.model_fields[part].annotation for each in here if part in each.model_fields]:
            here = set(_sections(annotations))
            named = any(get_origin(annotation) is dict for annotation in annotations)
    return path, looked_in


def _kind_of(section: type[Section]) -> str | None:
    field = section.model_fields.get("kind")
    return get_args(field.annotation)[0] if field else None


def _sections(types: Iterable[Any]) -> Iterator[type[Section]]:
    """The sections among types and in what they are made of."""
    for each in types:
        if isinstance(each, type) and issubclass(each, Section):
            yield each
        else:
            yield from _sections(get_args(each))
