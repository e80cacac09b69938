"""The run directory: all output of a run, in files that survive a kill.

::

    config.json     the resolved configuration
    run.json        status, reason, seed, versions, machine, git, times (see :meth:`RunDir.create`)
    metrics.jsonl   one line per update; units in docs/metrics.md; NaN and infinity are null
    samples.jsonl   one line per sample text
    evaluations.jsonl   one line per evaluation on held-out prompts during training: scores and texts; update 0: the initial model
    inputs/         a copy of each reward function's file, by the setting that names it
    checkpoints/    made by the trainer
    drawn.jsonl     candidates of an unfinished run of sample, batch by batch
    model/          the model that the run ends with
    adapter/        trained adapters alone, for peft; model/ has them merged into the weights
    end/            where the model has landed: the trained model, or its adapters, before that
    land.json       reward and KL at some points of the line through initial and trained weights, and where the model landed
    compare.json    the before/after
    eval.json       how far a reward model can be trusted
    report.html
    trace.json.gz   with --profile: one update, for ui.perfetto.dev; profile.txt is a table of it

Lines are appended and synced one by one, and other files are replaced in one step: a kill loses at most the line being
written.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from konomi import files
from konomi.errors import ConfigError, DataError, RunError
from konomi.reading import check_regular, parse_json
from konomi.runs import environment

VERSION = 1
Status = Literal["running", "finished", "failed", "stopped"]
EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended, as trackers call it. KILLED: somebody stopped it."""
_VERBS = {
    "ppo": "ppo", "sft": "sft", "train": "reward", "dpo": "dpo", "sample": "sample", "judge": "judge", "label": "label",
    "pick": "pick",
}  # fmt: skip
"""Section of the configuration -> the verb whose it is."""


class RunDir:
    """One run's directory. Make it with :meth:`create` or :meth:`open`. The paths are those of the list above.

    ``followed``: the content of run.json, in a process that is not the main one; nothing is written then.
    """

    def __init__(self, path: Path, followed: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._followed = followed
        self.checkpoints, self.inputs = path / "checkpoints", path / "inputs"
        self.model, self.adapter = path / "model", path / "adapter"
        self.end, self.land = path / "end", path / "land.json"
        self.compare, self.report = path / "compare.json", path / "report.html"
        self.metrics, self.samples = path / "metrics.jsonl", path / "samples.jsonl"
        self.evaluations = path / "evaluations.jsonl"
        self.drawn = path / "drawn.jsonl"
        self._checked: set[Path] = set()  # files whose last line is complete

    @classmethod
    def create(
        cls, root: str | Path, name: str | None, config: Mapping[str, Any], *, seed: int, extra: Mapping[str, Any] | None = None
    ) -> RunDir:
        """Make ``root/name`` with config.json and run.json in it, status "running", in one step: a kill leaves no part of it
        under that name. An empty directory that is there already is used as it is.

        Args:
            root: directory of all runs; made if needed.
            name: None: the time, ``YYYYmmdd-HHMMSS``, with a number behind it if that exists.
            config: the resolved configuration.
            seed: of everything random in the run.
            extra: further fields of run.json.

        Raises:
            ConfigError: the name is not one plain directory name; the directory is not empty or cannot be made.
        """
        _check_name(name)
        info = {
            "version": VERSION, "name": name, "status": "running", "reason": None, "started": _now(), "ended": None,
            "seed": seed, "pid": os.getpid(), "git": environment.git(), "versions": environment.versions(),
            "machine": environment.machine(), **(extra or {}),
        }  # fmt: skip
        path = Path(root, name or "run")
        try:
            if name and path.is_dir() and not any(path.iterdir()):  # it stays: its rights, or the volume that is mounted there
                return cls(path)._begin(config, info)
            with _draft(path) as draft:
                for place in [path] if name else (path.with_name(each) for each in _times()):
                    cls(draft)._begin(config, {**info, "name": info["name"] or place.name})
                    if _put(draft, place):
                        return cls(place)
        except OSError as error:
            where = Path(root, name or "")
            raise ConfigError(f"{where}: the run's directory cannot be made: {error.strerror or error}") from None
        if not path.is_dir():
            raise ConfigError(f"{path}: exists and is not a directory; choose another run.name, or move that file away")
        known = f". It holds a run; to see how to resume it: {environment.typed('konomi')} doctor {shlex.quote(str(path))}"
        raise ConfigError(
            f"{path}: exists and is not empty; choose another run.name, or move that directory away"
            f"{known if (path / 'run.json').is_file() else ''}"
        )

    def _begin(self, config: Mapping[str, Any], info: Mapping[str, Any]) -> RunDir:
        self.write_json("config.json", config)
        self.write_json("run.json", info)  # last: a directory with run.json in it is complete
        return self

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """Open a run that exists. Changes nothing on disk.

        Raises:
            DataError: there is no run there; its run.json is damaged; it was written by a newer konomi.
        """
        run = cls(Path(path))
        file = run.path / "run.json"
        if not run.path.is_dir():
            raise DataError(f"{path}: no such directory; give the directory of a run, the one that holds run.json")
        if not file.is_file():
            raise DataError(f"{path}: not a run: there is no run.json in it")
        info = run.read_json("run.json")
        version = info.get("version") if isinstance(info, dict) else None
        if not isinstance(version, int):
            raise DataError(f"{file}: not a run's description: it has no version number")
        if version > VERSION:
            raise DataError(
                f"{file}: written by a newer konomi (format {version}, this one reads up to {VERSION}); update konomi"
            )
        if not isinstance(info.get("status"), str):
            raise DataError(f"{file}: not a run's description: it has no status; restore it")
        return run

    @property
    def info(self) -> dict[str, Any]:
        """The current content of run.json. Raises DataError if it is missing or damaged."""
        return self._object("run.json") if self._followed is None else dict(self._followed)

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says. Raises DataError if it is missing or damaged."""
        return self._object("config.json")

    @property
    def verb(self) -> str:
        """The verb that made the run, "" where nothing says so. Raises DataError as `info` and `config` do."""
        config = self.config
        return str(self.info.get("verb") or next((verb for section, verb in _VERBS.items() if section in config), ""))

    def check_verb(self, wanted: str) -> None:
        """Raise ConfigError if another verb than ``wanted`` made the run."""
        if self.verb not in ("", wanted):
            raise ConfigError(f"{self.path}: a run of `konomi {self.verb}`; give one of `konomi {wanted}`")

    def note(self, **fields: Any) -> None:
        """Set fields of run.json, for example ``mlflow_run_id``."""
        if self._followed is not None:
            self._followed = {**self._followed, **fields}
        self.write_json("run.json", self.info | fields)

    def set_status(self, status: Status, reason: str | None = None) -> None:
        """Set the status and why. Any status but "running" sets the end time; "running" (a resume) clears it."""
        times = {"ended": None, "pid": os.getpid()} if status == "running" else {"ended": _now()}
        self.note(status=status, reason=reason, **times)

    def append_metrics(self, update: int, metrics: Mapping[str, Any]) -> None:
        """Append the line of one update, with ``time`` (Unix seconds). Raises RunError if the file cannot be written."""
        self._append(self.metrics, [{"update": update, "time": time.time(), **metrics}])

    def append_samples(self, update: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append the sample texts of one update, one line each. Raises RunError if the file cannot be written."""
        self._append(self.samples, [{"update": update, **sample} for sample in samples])

    def append_evaluation(self, update: int, evaluation: Mapping[str, Any]) -> None:
        """Append an evaluation on held-out prompts. Raises RunError if the file cannot be written."""
        self._append(self.evaluations, [{"update": update, **evaluation}])

    def append_drawn(self, batch: Mapping[str, Any]) -> None:
        """Append a batch of candidates. Raises RunError if the file cannot be written."""
        self._append(self.drawn, [batch])

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl; a half-written last one is left out. Raises DataError if another is damaged."""
        return files.read_lines(self.metrics)[0]

    def read_samples(self) -> list[dict[str, Any]]:
        """All lines of samples.jsonl; a half-written last one is left out. Raises DataError if another is damaged."""
        return files.read_lines(self.samples)[0]

    def read_evaluations(self) -> list[dict[str, Any]]:
        """All lines of evaluations.jsonl; a half-written last one is left out. Raises DataError if another is damaged."""
        return files.read_lines(self.evaluations)[0]

    def read_drawn(self) -> list[dict[str, Any]]:
        """All lines of drawn.jsonl; a half-written last one is left out. Raises DataError if another is damaged."""
        return files.read_lines(self.drawn)[0]

    def remove_drafts(self) -> None:
        """Remove half-written files of a killed process. The caller must hold the run's lock."""
        if self._followed is None:
            files.remove_drafts(self.path)

    def truncate_after(self, update: int) -> None:
        """Drop metrics, samples and evaluations after ``update``, to continue from an older checkpoint."""
        if self._followed is not None:
            return
        for path in (self.metrics, self.samples, self.evaluations):
            records, _ = files.read_lines(path)
            kept = [record for record in records if record.get("update", 0) <= update]
            if len(kept) < len(records):
                files.write_atomic(path, b"".join(map(files.json_line, kept)))

    def write_json(self, name: str, value: Any) -> Path:
        """Write ``value`` to the file ``name`` of the run, all or nothing, and return its path.

        NaN and infinity become null, paths become strings. Raises RunError if the file cannot be written.
        """
        text = json.dumps(files.plain(value), ensure_ascii=False, allow_nan=False, indent=2) + "\n"
        if self._followed is None:
            files.write_atomic(self.path / name, files.utf8(text))
        return self.path / name

    def read_json(self, name: str) -> Any:
        """The content of the JSON file ``name``; None if there is none. Raises DataError if it is damaged."""
        path = self.path / name
        try:
            check_regular(path)
            return parse_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as JSON ({error}); restore it or delete it") from None

    def _object(self, name: str) -> dict[str, Any]:
        value = self.read_json(name)
        if not isinstance(value, dict):
            raise DataError(f"{self.path / name}: missing, or not a JSON object; restore it")
        return value

    def _append(self, path: Path, records: Sequence[Mapping[str, Any]]) -> None:
        data = b"".join(map(files.json_line, records))
        if self._followed is not None:
            return
        try:
            with open(path, "ab") as file:
                if path not in self._checked:  # only a writer repairs the file: a reader may look at a run in progress
                    size = files.read_lines(path)[1]
                    if size is not None:
                        file.truncate(size)
                    elif file.tell() and not path.read_bytes().endswith(b"\n"):
                        data = b"\n" + data  # the last line lacks only its newline
                    self._checked.add(path)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror or error}. Mend that and resume the run") from None


def _check_name(name: str | None) -> None:
    if name is not None and (name in ("", ".", "..") or any(c in "/\\:" or not c.isprintable() for c in name)):
        raise ConfigError(f"run.name = {name!r}: has to be one plain directory name, without / \\ : or control characters")


def _times() -> Iterator[str]:
    """The time, then with numbers behind it."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    yield stamp
    yield from (f"{stamp}-{number}" for number in itertools.count(2))


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A temporary directory beside ``path``, removed at the end unless it was renamed."""
    draft = Path(os.path.realpath(path)).with_name(f".{secrets.token_hex(8)}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _put(draft: Path, path: Path) -> bool:
    """Rename a draft to ``path``; False if something is there already."""
    try:
        draft.rename(os.path.realpath(path))
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    files.sync_names(path.parent)
    return True


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
