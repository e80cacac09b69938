"""What a job depends on: the contents of the files and directories that its settings name."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konomi.config import VERBS, PPOJob, Section, build
from konomi.config.pipeline import leaves
from konomi.data.records import Prompt
from konomi.data.sources import EMBEDDED, embedded_file
from konomi.errors import ConfigError, DataError
from konomi.files import content_sha256, local_path, model_path, new_directory
from konomi.runs.directory import RunDir

if TYPE_CHECKING:
    from konomi.models.load import Loaded
    from konomi.rewards.base import Reward

_MODELS = ("name", "before", "initial")
"""Settings that name models, or functions; of a run its model is meant."""
_FILES = (*_MODELS, "prompts", "texts", "file", "truth", "candidates", "samples", "evaluation")
"""Settings that name files; others do if their value looks like a path. What does not exist is no file."""
_NO_FILES = re.compile(r"(.+\.)?(project|people|system|subset|(\w+_)?split|revision|(\w+_)?column)|sample\.prompts")
"""Settings, by their paths, that name none. Not a project either: people working in it make no stage run again."""
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def file_of(path: str, value: str) -> Path | None:
    """The file or directory that the setting at a dotted path names, if there is one."""
    if _NO_FILES.fullmatch(path):
        return None
    key = _key(path)
    if value.startswith(EMBEDDED):
        return embedded_file(value) if key in ("prompts", "texts") else None
    if key not in _FILES and "/" not in value and not Path(value).suffix:
        return None
    before, colon, _ = value.rpartition(":")
    module = before.replace(".", "/") if colon and re.fullmatch(r"\w+(\.\w+)*", before) else ""
    # a file; file.py:function; package.module:function
    for name in (value, *((f"{module}.py", f"{module}/__init__.py") if module else ()), before):
        with contextlib.suppress(DataError):  # a text that no file can be called
            if name and local_path(name).exists():
                return model_path(name) if key in _MODELS else local_path(name)
    return None


def inputs_of(settings: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """Of each setting that names a file, a directory or a model of the hub: its value, and ``sha256`` or ``commit``."""
    values = {path: value for path, value in leaves(settings) if isinstance(value, str)}
    inputs: dict[str, dict[str, str | None]] = {}
    for path, value in values.items():
        section, key = path.rpartition(".")[0], _key(path)
        if (file := file_of(path, value)) is not None:
            inputs[path] = {"name": value, "sha256": content_sha256(file)}
        elif key == "name" and (commit := _cached_commit(value, values.get(f"{section}.revision"))):
            inputs[path] = {"name": value, "commit": commit}
    return inputs


def job_inputs(job: Section) -> dict[str, dict[str, str | None]]:
    """`inputs_of` all settings but those of the run itself."""
    return inputs_of({name: each for name, each in job.model_dump(mode="json").items() if name != "run"})


def function_source(function: Any) -> str | None:
    """SHA-256 of the source of a Python function; None where it cannot be found."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    except (OSError, TypeError):
        return None


def keep_code(run: RunDir) -> None:
    """Copy the Python files among the inputs of a new run into it. Raises RunError if they cannot be written."""
    files = {path: file_of(path, each["name"]) for path, each in run.info["inputs"].items()}
    code = {path: file for path, file in files.items() if file is not None and file.suffix == ".py"}
    if code:
        with new_directory(run.inputs) as draft:
            for path, file in code.items():
                (draft / f"{path}.py").write_bytes(file.read_bytes())


def digest_of(rows: Iterable[str], separator: str = "\n") -> str:
    """32 hex digits that change when one of the rows does, or their order."""
    return hashlib.blake2b(separator.join(rows).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def prompts_digest(prompts: Iterable[Prompt], repeats: bool = True) -> str:
    """The digest of prompts' texts, whatever their order; without ``repeats`` each text counts once."""
    keys = sorted(each.key for each in prompts)
    return digest_of(keys if repeats else dict.fromkeys(keys), "")


def columns_digest(prompts: Iterable[Prompt]) -> str:
    """The digest of prompts' columns, whatever the order of prompts."""
    return digest_of(sorted(json.dumps([each.key, each.columns], sort_keys=True, default=str) for each in prompts))


def given_function(run: RunDir, reward: Reward) -> Any:
    """The function of ``reward`` if the run began with one from Python code; None if a job file named the reward."""
    return getattr(reward, "function", None) if "reward" in (run.info.get("inputs") or {}) else None


def describe_inputs(
    job: PPOJob, loaded: Loaded, prompts: list[Prompt], own_prompts: bool = False, function: Any = None
) -> dict[str, Any]:
    """What a run depends on, as run.json has it.

    ``own_prompts``: they are not those that the job names. ``function``: the reward, if it came from Python code; its source
    counts, not its file, which may be the script that calls konomi.
    """
    settings = job.model_dump(mode="json", include={"model", "reward", "judges"} | (set() if own_prompts else {"data"}))
    inputs = inputs_of(settings)
    if function is not None:
        inputs.pop("reward.name", None)
        inputs["reward"] = {"name": settings["reward"]["name"], "sha256": function_source(function)}
    digests = {"data_digest": prompts_digest(prompts), "columns_digest": columns_digest(prompts)}
    return {"model_revision": loaded.revision, **digests, "inputs": inputs}


def resumed_run(path: Path, verb: str, overrides: Sequence[str]) -> RunDir:
    """The run of ``verb`` to continue.

    Raises:
        ConfigError: ``overrides`` would change a setting midway; the run is finished, or another verb's.
        DataError: there is no run.
    """
    if overrides:
        raise ConfigError(f"--set {overrides[0]}: a resumed run goes on as it began; start a new one to change a setting")
    run = RunDir.open(path)
    run.check_verb(verb)
    if run.info["status"] == "finished":
        raise ConfigError(f"{path}: this run is finished; there is nothing to go on with")
    return run


def resumed_job(path: Path, verb: str, overrides: Sequence[str]) -> Section:
    """The settings of :func:`resumed_run`."""
    run = resumed_run(path, verb, overrides)
    return build(VERBS[verb].job, run.config, where=str(path / "config.json"))


def check_unchanged(run: RunDir, now: Mapping[str, Any], prompts: Sequence[Prompt] = (), data: str = "data.prompts") -> None:
    """Raise ConfigError, with what has changed, if a run began with something else than ``now``.

    ``now``: fields of run.json, with ``prompts`` as they are read now, which the setting ``data`` names. What an older konomi
    did not note is not compared, and it read each text once.
    """
    then, changed = run.info, []
    if then.get("inputs") is None and prompts:
        now = {**now, "data_digest": prompts_digest(prompts, repeats=False)}
    for setting, each in (then.get("inputs") or {}).items():
        if now["inputs"].get(setting) != each:
            copy = run.inputs / f"{setting}.py"
            changed.append(f"{setting} = {each['name']}" + (f" (as it was: {copy})" if copy.is_file() else ""))
    fields = ("data_digest", data), ("columns_digest", data), ("model_revision", "model.name")
    for field, setting in fields:
        if field in then and now[field] != then[field]:
            changed.append(f"{setting} ({field} is {now[field]} and was {then[field]})")
    if changed:
        raise ConfigError(
            f"{run.path}: what it depends on has changed since it began: {'; '.join(changed)}. Give back the old files, or start "
            "a new run"
        )


def _key(path: str) -> str:
    """The last name in a dotted path; what follows it are places in a list.

    >>> _key("reward.name"), _key("reward.name.1")
    ('name', 'name')
    """
    return re.sub(r"(\.\d+)+$", "", path).rpartition(".")[2]


def _cached_commit(name: str, revision: str | None) -> str | None:
    """The commit of a hub model that is in the hub's cache; None: the name is none of a hub model, or it is not there."""
    if not _HUB_NAME.fullmatch(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None
