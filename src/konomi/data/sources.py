"""Open files, hub data sets and embedded lists; read prompts from them. Imports nothing heavy."""

from __future__ import annotations

import http.client
import itertools
import re
import ssl
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from konomi.config import DataConfig, RewardData, SFTData
from konomi.config.ppo import NO_CUT
from konomi.data.messages import Conversation, asked, messages_of, readable
from konomi.data.records import Prompt, split_by_key
from konomi.data.row_files import FORMATS, file_rows
from konomi.data.rows import Row, near, need_column
from konomi.errors import ConfigError, DataError
from konomi.files import local_path, plain
from konomi.runs.environment import without_password
from konomi.text import plural

EMBEDDED = "embedded:"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
_FILE_LIKE = re.compile(r"\.(jsonl?|ndjson|[ct]sv|parquet|txt|text|md|xlsx?|arrow|zip|gz|zst|bz2|ya?ml|toml)", re.I)


@dataclass(frozen=True)
class Hub:
    """Which part of a hub data set; ``subset`` is its configuration's name, ``revision`` a branch, tag or commit."""

    subset: str | None = None
    split: str = "train"
    revision: str | None = None

    @classmethod
    def of(cls, config: DataConfig | SFTData | RewardData) -> Hub:
        """The part that settings name."""
        return cls(config.subset, config.split, config.revision)


def sources_of(data: RewardData) -> list[tuple[str, Hub]]:
    """What a reward model is trained on, and what it is evaluated on if that is not a part of it."""
    train = (data.file, Hub.of(data))
    if data.evaluation:
        return [train, (data.evaluation, Hub())]
    if data.evaluation_split:
        return [train, (data.file, replace(train[1], split=data.evaluation_split))]
    return [train]


def load_prompts(
    config: DataConfig, reads: Iterable[str] | None = (), say: Callable[[str], None] = lambda _: None
) -> list[Prompt]:
    """Return the prompts that ``config`` names, in the order of the source; ``reads`` as in :func:`distinct_prompts`.

    All have the same columns, None where a row lacks one. Dates become ISO strings; a column with values that JSON cannot hold,
    such as bytes, is left out, and ``say`` gets its name.

    Raises:
        DataError: the source cannot be found, reached or read; a row has no text; there are no rows.
        ConfigError: a setting for hub data sets is given with a file, one for conversations with texts, or one for texts with
            conversations.
    """
    rows = open_rows(config.prompts, config.column, Hub.of(config), "data.")
    prompts = _prompts(itertools.islice(rows, config.limit), config, config.prompts, say)
    return distinct_prompts(prompts, reads, say, config.prompts)


def as_prompts(
    given: Iterable[str | Mapping[str, Any] | Prompt], config: DataConfig | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Prompt]:  # fmt: skip
    """Return prompts of strings, of rows that have ``config.column`` (dicts, a data set), or of prompts, as :func:`load_prompts`
    does.

    Raises:
        DataError: there are none; one has no text.
    """
    if isinstance(given, str | bytes):
        raise DataError("prompts: one string; give a list of them")
    given, config = list(given), config or DataConfig()
    column = config.column
    if all(isinstance(each, Prompt) for each in given):  # their text needs a column that none of them has
        while any(column in each.columns for each in given if isinstance(each, Prompt)):
            column += "_"

    def values_of(each: str | Mapping[str, Any] | Prompt) -> dict[str, Any]:
        if isinstance(each, Prompt):
            return {**each.columns, column: each.text}
        return dict(each) if isinstance(each, Mapping) else {column: each}

    rows = (Row(f"prompts[{i}]", values_of(each)) for i, each in enumerate(given))
    named = config.model_copy(update={"column": column})
    return distinct_prompts(_prompts(rows, named, "prompts", say), None, say)


def _prompt_of(row: Row, config: DataConfig, columns: dict[str, Any]) -> Prompt:
    """The prompt in a row: a text, or a conversation up to what is to be answered."""
    hint = ". Set data.column"
    if isinstance(columns.get("messages"), Conversation):  # it was a prompt already
        return Prompt(row.text(config.column), columns)
    if not isinstance(row.value(config.column, hint), list):
        text = row.text(config.column, hint=hint)
        if not config.chat:
            return Prompt(text, columns)
        own = [{"role": "user", "content": text}]
    else:
        own = messages_of(row, config.column, blank=False, hint=hint)
        while own and own[-1]["role"] == "assistant":  # of a data set for fine-tuning
            own.pop()
        if not own:
            raise DataError(f"{row.where}: {config.column!r} has nothing to be answered: no message of the user")
    return Prompt(readable(own), {**columns, "messages": asked(own, config.system)})


def extra_prompts(texts: Iterable[str], data: DataConfig, like: Prompt) -> list[Prompt]:
    """Prompts of texts given beside a data set: a user's messages where its prompts, such as ``like``, are conversations."""
    config = data.model_copy(update={"chat": like.messages is not None})
    return [_prompt_of(Row("prompts", {config.column: text}), config, {}) for text in texts]


def _check_kinds(prompts: Sequence[Prompt], config: DataConfig, source: str) -> None:
    talks = sum(prompt.messages is not None for prompt in prompts)
    if talks and config.query_tokens:
        raise ConfigError(f"data.query_tokens with conversations: {NO_CUT}")
    if config.system is not None and not talks:
        raise ConfigError("data.system: for chat models, and the prompts are texts to be continued; set data.chat = true")
    if 0 < talks < len(prompts):
        raise DataError(f"{source}: texts among conversations; if a text is a user's message, set data.chat = true")


def _prompts(rows: Iterable[Row], config: DataConfig, source: str, say: Callable[[str], None]) -> list[Prompt]:
    prompts: list[Prompt] = []
    column = config.column
    unsupported: dict[str, None] = {}
    for row in rows:
        values = {}
        for name, value in row.values.items():
            if name != column and name not in unsupported:
                try:
                    values[name] = value if isinstance(value, Conversation) else plain(value)
                except (TypeError, ValueError, OverflowError, RuntimeError):  # the last one of torch
                    unsupported[name] = None
        prompts.append(_prompt_of(row, config, values))
    if not prompts:
        raise DataError(f"{source}: no rows in it; at least one text is needed")
    if unsupported:
        say(f"{source}: columns left out, because JSON cannot hold their values: {', '.join(map(repr, unsupported))}")
    _check_kinds(prompts, config, source)
    # JSON rows may differ in their keys; a reward function that names one must find it in every batch
    kept = dict.fromkeys(name for prompt in prompts for name in prompt.columns if name not in unsupported)
    return [Prompt(prompt.text, {name: prompt.columns.get(name) for name in kept}) for prompt in prompts]


def distinct_prompts(
    prompts: Sequence[Prompt], reads: Iterable[str] | None, say: Callable[[str], None], name: str = "prompts"
) -> list[Prompt]:
    """The prompts without repetitions: the same text (by key) and the same values in the columns ``reads`` (None: all).

    Prompts that have the same text and stay are numbered by ``Prompt.copy``. ``say`` gets how many were left out, of the source
    ``name``, and in which columns they differ.
    """
    names = None if reads is None else set(reads)
    seen: dict[tuple[str, str], Prompt] = {}
    copies: Counter[str] = Counter()
    differ: dict[str, None] = {}
    for prompt in prompts:
        same = prompt.key, repr([(k, v) for k, v in prompt.columns.items() if names is None or k in names])
        if same in seen:
            differ |= dict.fromkeys(k for k, v in prompt.columns.items() if repr(v) != repr(seen[same].columns.get(k)))
        else:
            seen[same] = replace(prompt, copy=copies[prompt.key])
            copies[prompt.key] += 1
    if left := len(prompts) - len(seen):
        how = f"; they differ in {', '.join(map(repr, differ))}, which nothing here reads" if differ else ""
        say(f"{name}: {left:,} of {plural(len(prompts), 'prompt')} repeat the text of an earlier one and are left out{how}")
    return list(seen.values())


def split_held_out(prompts: Sequence[Prompt], share: float) -> tuple[list[Prompt], list[Prompt]]:
    """Return (train, held out). A text's side depends on its key alone, whatever other texts there are.

    ``share`` is the expected share held out, 0 to 1: of few texts it can be more or fewer, and even none. What a
    smaller share holds out, a larger one does too.

    Raises:
        DataError: no text is left for training.
    """
    train, held_out = split_by_key(prompts, share)
    if not train:
        raise DataError(
            f"data.held_out = {share}: all of the {len(held_out)} texts are held out and none is left for training; "
            "lower it or add texts"
        )
    return train, held_out


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
    """Why the hub cannot be reached, or None: one small request, where its own client would try for 23 seconds a file."""
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
            return f"{without_password(constants.ENDPOINT)}: {reason or type(error).__name__}"
    return None


def open_rows(name: str, column: str | None = None, hub: Hub | None = None, section: str = "") -> Iterator[Row]:
    """The rows of a file, an embedded list, or else a hub data set.

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
            raise DataError(f"{name}: a directory; give one {FORMATS} file")
        if not path.exists():
            if _HUB_NAME.fullmatch(name) and not _FILE_LIKE.fullmatch(path.suffix):
                return _hub_rows(name, column, hub, section)
            raise DataError(f"{name}: no such file (seen from {Path.cwd()})")
    for key, value in asdict(hub).items():
        if value != getattr(Hub, key):
            raise ConfigError(f"{section}{key}: for data sets of the hub; {name} is a file. Remove it")
    return file_rows(path, column, f"{section}column")


def _hub_rows(name: str, column: str | None, hub: Hub, section: str) -> Iterator[Row]:
    import datasets

    problem = hub_problem()
    try:
        with _hub_offline(problem is not None):
            data = datasets.load_dataset(name, hub.subset, split=hub.split, revision=hub.revision)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise DataError(
            f"{name}: this data set is a loading script, which the datasets library no longer runs. "
            f'The hub keeps a Parquet copy of most such data sets: set {section}revision = "refs/convert/parquet"'
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
    """Make the hub's libraries use their cache only: the switch is read at import, no argument sets it."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if offline:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
