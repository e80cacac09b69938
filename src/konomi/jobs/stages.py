"""Which stages of a pipeline have to run: those not finished, and those whose inputs have changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from konomi.config import VERBS, Stage
from konomi.config.pipeline import leaves
from konomi.errors import ConfigError, DataError
from konomi.files import content_sha256
from konomi.jobs.inputs import file_of
from konomi.runs.directory import RunDir
from konomi.runs.processes import is_main

VERSION = 1
_NO_INPUTS = re.compile(r"run\.(name|mlflow|experiment|sinks\.\d+)")
"""Settings that do not change what a stage makes."""


@dataclass(frozen=True)
class Step:
    """What to do with a stage.

    Attributes:
        action: ``skip`` it, ``run`` it, or ``resume`` it from the middle.
        why: in words.
        inputs: setting -> value; of a file or another stage's output, its name and SHA-256.
        key: their hash.
    """

    stage: Stage
    action: Literal["skip", "run", "resume"]
    why: str
    inputs: dict[str, Any]
    key: str


class Notes:
    """The content of pipeline.json."""

    def __init__(self, directory: Path) -> None:
        self._place = RunDir(directory, followed=None if is_main() else {})
        content = self._place.read_json("pipeline.json") or {"version": VERSION, "mlflow_run_id": None, "stages": {}}
        if not isinstance(content, dict) or not isinstance(content.get("stages"), dict) or content.get("version") != VERSION:
            raise DataError(
                f"{directory / 'pipeline.json'}: not a description of a pipeline that this konomi reads; update konomi, or "
                "move the directory away to begin anew"
            )
        self.directory = directory
        self.content: dict[str, Any] = content

    def of(self, stage: str) -> dict[str, Any]:
        """The notes of a stage."""
        return dict(self.content["stages"].get(stage) or {})

    def set(self, **fields: Any) -> None:
        """Set fields of the pipeline."""
        self.content |= fields
        self._place.write_json("pipeline.json", self.content)

    def stage(self, name: str, **fields: Any) -> None:
        """Set fields of a stage."""
        self.content["stages"][name] = self.of(name) | fields
        self.set()


def plan(directory: Path, stages: Sequence[Stage], start: str | None = None) -> list[Step]:
    """What `run_pipeline` would do, as far as that is known beforehand. It changes nothing on disk."""
    again = stages_from(stages, start)
    notes = Notes(directory)
    steps: list[Step] = []
    moving: set[str] = set()
    makers = {path: each.name for each in stages for path in each.outputs.values()}
    for stage in stages:
        step = decide(stage, notes.of(stage.name))
        gathered = {makers[path] for paths in stage.gathered.values() for path in paths}
        reads = sorted(({name for name, _ in stage.references.values()} | gathered) & moving)
        if stage.name in again:
            step = replace(step, action="run", why="it is to run again (--from)")
        elif reads and step.action == "skip":
            step = replace(step, action="run", why=f"what it reads from {', '.join(reads)} may change")
        if step.action != "skip":
            moving.add(stage.name)
        steps.append(step)
    return steps


def decide(stage: Stage, note: Mapping[str, Any]) -> Step:
    """Whether a stage is to run, and why."""
    inputs = _inputs(stage)
    key = hashlib.sha256(json.dumps([VERSION, inputs], sort_keys=True).encode()).hexdigest()
    done = RunDir(stage.directory).read_json("stage.json")
    if isinstance(done, dict):
        missing = [name for name, path in stage.outputs.items() if not path.exists()]
        if missing:
            return Step(stage, "run", f"its output {missing[0]} is gone", inputs, key)
        if done.get("key") != key:
            return Step(stage, "run", _difference(done.get("inputs"), inputs), inputs, key)
        return Step(stage, "skip", "nothing that it depends on has changed", inputs, key)
    status = note.get("status")
    if status == "waiting":
        return Step(stage, "run", "it is to run again (--from)", inputs, key)
    if status not in ("running", "stopped", "failed"):
        why = "it has not run yet" if status is None else "its stage.json is gone"
        return Step(stage, "run", why, inputs, key)
    left = {"running": "it was killed", "stopped": "it was stopped", "failed": "it failed"}[status]
    if note.get("key") == key and _has_ended(stage):
        return Step(stage, "skip", f"{left} after its end", inputs, key)
    if note.get("key") == key and _can_go_on(stage):
        return Step(stage, "resume", left, inputs, key)
    return Step(stage, "run", left, inputs, key)


def _has_ended(stage: Stage) -> bool:
    run = RunDir(stage.directory)
    complete = (run.path / "run.json").is_file() and all(path.exists() for path in stage.outputs.values())
    return complete and run.info["status"] == "finished"


def _can_go_on(stage: Stage) -> bool:
    run = RunDir(stage.directory)
    begun = (run.path / "run.json").is_file() and (run.drawn.is_file() or any(run.checkpoints.glob("update-*")))
    return VERBS[stage.do].resumes and begun and run.info["status"] != "finished"


def _inputs(stage: Stage) -> dict[str, Any]:
    """Everything that decides what a stage makes, one value a setting."""
    inputs: dict[str, Any] = {"do": stage.do}
    for path, value in leaves(stage.job.model_dump(mode="json")):
        if _NO_INPUTS.fullmatch(path):
            continue
        name, file = value, file_of(path, value) if isinstance(value, str) else None
        if path in stage.references:
            name, file = "@{}.{}".format(*stage.references[path]), Path(value)
        inputs[path] = value
        if path in stage.gathered:
            parts = [content_sha256(each) if each.exists() else None for each in stage.gathered[path]]
            inputs[path] = {"name": f"{name}*", "sha256": parts}
        elif file is not None:
            inputs[path] = {"name": name, "sha256": content_sha256(file) if file.exists() else None}
    return inputs


def _difference(old: Any, new: Mapping[str, Any]) -> str:
    """What has changed, in words."""
    old = old if isinstance(old, dict) else {}
    changes = []
    for path in sorted(old.keys() | new.keys()):
        before, now = old.get(path), new.get(path)
        if before == now:
            continue
        names = [each["name"] if isinstance(each, dict) else json.dumps(each, ensure_ascii=False) for each in (before, now)]
        changes.append(f"{names[1]} has changed" if names[0] == names[1] else f"{path} is {names[1]} and was {names[0]}")
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return "; ".join(each if len(each) <= 120 else f"{each[:120]}..." for each in changes[:3]) + more


def stages_from(stages: Sequence[Stage], start: str | None) -> list[str]:
    """The stages from ``start`` on."""
    names = [stage.name for stage in stages]
    if start is None:
        return []
    if start not in names:
        raise ConfigError(f"--from {start}: no such stage; the stages are: {', '.join(names)}")
    return names[names.index(start) :]
