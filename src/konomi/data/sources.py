"""Open files, hub data sets and embedded lists. Imports nothing heavy."""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from konomi.config import DataConfig, DPOData, RewardData, SFTData
from konomi.data.row_files import FORMATS, SUFFIXES, file_rows
from konomi.data.rows import Row, near, need_column
from konomi.errors import ConfigError, DataError
from konomi.files import local_path
from konomi.runs.environment import without_password

EMBEDDED = "embedded:"
CONVERTED = "refs/convert/parquet"
"""Where the hub keeps its own copy of a data set: SUBSET/SPLIT/0000.parquet."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
_FILE_LIKE = re.compile(r"\.(jsonl?|ndjson|[ct]sv|parquet|txt|text|md|xlsx?|arrow|zip|gz|zst|bz2|ya?ml|toml)", re.I)


@dataclass(frozen=True)
class Hub:
    """Which part of a hub data set; ``subset`` is its configuration's name, ``revision`` a branch, tag or commit."""

    subset: str | None = None
    split: str = "train"
    revision: str | None = None

    @classmethod
    def of(cls, config: DataConfig | SFTData | RewardData | DPOData) -> Hub:
        """The part that settings name."""
        return cls(config.subset, config.split, config.revision)


def sources_of(data: RewardData | DPOData) -> list[tuple[str, Hub]]:
    """The training source, and the evaluation source if it is a separate one."""
    train = (data.file, Hub.of(data))
    if data.evaluation:
        return [train, (data.evaluation, Hub())]
    if data.evaluation_split:
        return [train, (data.file, replace(train[1], split=data.evaluation_split))]
    return [train]


def examples_directory() -> Path:
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
    known = {path.stem: path for path in sorted(examples_directory().glob("*.jsonl"))}
    if name not in known:
        names = ", ".join(EMBEDDED + each for each in sorted(known)) or "none in this installation"
        raise DataError(f"{EMBEDDED}{name}: no such embedded list{near(name, known)}; known: {names}")
    return known[name]


def hub_problem(timeout: float = 5.0) -> str | None:
    """The reason why the hub is unreachable, or None. One small request; the hub's client would retry for 23 seconds per file."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError as error:  # it responded, if only with an error
        error.close()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        # an unknown certificate authority: the hub's client has its own list
        if not isinstance(reason, ssl.SSLError):
            return f"{without_password(constants.ENDPOINT)}: {reason or type(error).__name__}"
    return None


def open_rows(name: str, column: str | None = None, hub: Hub | None = None, section: str = "") -> Iterator[Row]:
    """The rows of a file, an embedded list, a directory that is a copy of a hub data set, or else a hub data set.

    Args:
        column: the column that must be there, or None.
        section: what precedes the names of settings in messages: ``"data."`` in a job.

    Raises:
        DataError: the source cannot be found or reached, or (while iterating) cannot be read.
        ConfigError: a setting for hub data sets is given with a file.
    """
    hub = hub or Hub()
    if name.startswith(EMBEDDED):
        path = embedded_file(name)
    else:
        path = local_path(name)
        if path.is_dir():
            return chain.from_iterable(file_rows(each, column, f"{section}column") for each in _copied(name, hub, section))
        if not path.exists():
            if _HUB_NAME.fullmatch(name) and not _FILE_LIKE.fullmatch(path.suffix):
                return _hub_rows(name, column, hub, section)
            raise DataError(f"{name}: no such file (seen from {Path.cwd()})")
    for key, value in asdict(hub).items():
        if value != getattr(Hub, key):
            raise ConfigError(f"{section}{key}: for data sets of the hub; {name} is a file. Remove it")
    return file_rows(path, column, f"{section}column")


def _copied(name: str, hub: Hub, section: str) -> list[Path]:
    """The files of a part of a hub data set that was copied into a directory: SPLIT/ANY.parquet, SPLIT.csv or
    SPLIT-00000-of-00001.parquet, in the directory of the subset, or without one there, in data/ or in default/."""
    folders = [hub.subset] if hub.subset else [".", "data", "default"]
    for folder in folders:
        directory = local_path(f"{name}/{folder}")
        shards = [
            each for each in directory.glob("*") if re.fullmatch(rf"{re.escape(hub.split)}(-\d+-of-\d+.*)?\.\w+", each.name)
        ]
        files = [each for each in [*local_path(directory / hub.split).glob("*"), *shards] if each.suffix.lower() in SUFFIXES]
        if files:
            return sorted(files)
    raise DataError(
        f"{name}: a directory that has no part {hub.split!r} of a data set in {' or '.join(folders)}; give one {FORMATS} file, "
        f"or a copy of a hub data set (see {section}subset and {section}split)"
    )


def _hub_rows(name: str, column: str | None, hub: Hub, section: str) -> Iterator[Row]:
    import datasets

    problem = hub_problem()
    try:
        with _hub_offline(problem is not None):
            # that branch does not describe its subsets: a subset is a directory
            subset = {"data_dir" if hub.revision == CONVERTED else "name": hub.subset}
            data = datasets.load_dataset(name, split=hub.split, revision=hub.revision, **subset)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise DataError(
            f"{name}: this data set is a loading script, which the datasets library no longer runs. "
            f'The hub keeps a Parquet copy of most such data sets: set {section}revision = "{CONVERTED}"'
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if problem is None:
            hint = f"check the name, {section}subset, {section}split and {section}revision"
            raise DataError(f"{name}: no such file; as a data set of the hub: {error}\n({hint})") from error
        raise DataError(
            f"{name}: no such file; as a data set of the hub it is not in the cache and cannot be fetched ({problem}). "
            f"Without a network, name a local {FORMATS} file" + (" or embedded:openings-ja" if column else "")
        ) from error
    if column is not None:
        need_column(name, data.column_names, column, f". Set {section}column")
    for number, row in enumerate(data, start=1):
        yield Row(f"{name}: row {number}", row)


@contextmanager
def _hub_offline(offline: bool) -> Iterator[None]:
    """Restrict the hub's libraries to their cache. The setting is read at import and has no argument."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if offline:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
