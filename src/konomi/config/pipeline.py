"""A pipeline file: stages one after another, each with the settings of its own verb, that name each other's outputs.

The whole file is checked when it is read: every stage's settings, and that each ``@STAGE.OUTPUT`` is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from konomi.config.candidates import JudgeJob, LabelJob, SampleJob
from konomi.config.ppo import PPOJob
from konomi.config.reward_model import RewardJob
from konomi.config.section import Section, build, changed, read_toml
from konomi.config.sft import SFTJob
from konomi.errors import ConfigError

_OF_THE_PIPELINE = ("name", "experiment", "mlflow")
"""Settings of a stage's section ``run`` that the pipeline decides for all."""


@dataclass(frozen=True)
class Verb:
    """What a stage can do."""

    job: type[Section]
    outputs: Mapping[str, str]
    """What a later stage can ask for -> where it is in the run directory."""
    resumes: bool = False
    """Whether it can continue from the middle."""


VERBS = {
    "sft": Verb(SFTJob, {"model": "model"}, resumes=True),
    "sample": Verb(SampleJob, {"candidates": "candidates.jsonl"}, resumes=True),
    "judge": Verb(JudgeJob, {"rankings": "rankings.jsonl", "truth": "truth.jsonl"}),
    "label": Verb(LabelJob, {name: f"said/{name}.jsonl" for name in ("rankings", "pairs", "scores")}),
    "reward": Verb(RewardJob, {"model": "model"}, resumes=True),
    "ppo": Verb(PPOJob, {"model": "model"}, resumes=True),
}


def verb_of(data: Mapping[str, Any]) -> str:
    """The verb whose job file this is, by its sections and keys; "run" for a pipeline, "ppo" where nothing tells.

    >>> verb_of({"data": {"texts": "my.jsonl"}}), verb_of({"ppo": {}}), verb_of({"stages": {}})
    ('sft', 'ppo', 'run')
    """
    if "stages" in data:
        return "run"

    def unknown(verb: str) -> int:
        fields, count = VERBS[verb].job.model_fields, 0
        for name, value in data.items():
            section = fields[name].annotation if name in fields else None
            known = section.model_fields if isinstance(section, type) and issubclass(section, Section) else value
            count += 1 if name not in fields else sum(key not in known for key in value) if isinstance(value, Mapping) else 0
        return count

    return min(("ppo", *VERBS), key=unknown)


@dataclass(frozen=True)
class Stage:
    """One stage, ready to run."""

    name: str
    do: str
    """Its verb."""
    job: Section
    """Its settings, each reference replaced by the path of what it stands for."""
    references: Mapping[str, tuple[str, str]]
    """Setting -> (earlier stage, output)."""
    directory: Path
    """Its run directory."""

    @property
    def outputs(self) -> dict[str, Path]:
        """Output -> where it is once the stage is finished."""
        return {name: self.directory / path for name, path in VERBS[self.do].outputs.items()}


class Pipeline(Section):
    """The head of a pipeline file."""

    name: str
    """Directory of the pipeline under --out."""
    experiment: str = "konomi"
    """MLflow experiment of the pipeline and its stages."""
    mlflow: bool = True
    """Log to MLflow: to MLFLOW_TRACKING_URI if set, else to mlflow.db in the pipeline's directory."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of every stage that has no run.seed of its own."""
    stages: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """The stages in their order, each under a name of one's own: [stages.NAME], with `do` and the sections of that verb."""


def load_pipeline(path: str | Path, out: Path, overrides: Sequence[str] = ()) -> tuple[Pipeline, list[Stage]]:
    """Read a pipeline file that keeps its runs in ``out``/name, and check all of it.

    Overrides are ``key=value`` or ``stages.NAME.section.key=value``.

    Raises:
        ConfigError: the file cannot be read; a setting of any stage is wrong; a reference leads nowhere.
    """
    own = [item for item in overrides if not item.startswith("stages.")]
    pipeline = build(Pipeline, read_toml(Path(path)), own, where=str(path))
    for name in (pipeline.name, *pipeline.stages):
        _check_name(name, str(path))
    of_stages: dict[str, list[str]] = {name: [] for name in pipeline.stages}
    for item in overrides:
        if item.startswith("stages."):
            name, _, rest = item.removeprefix("stages.").partition(".")
            if name not in of_stages:
                raise ConfigError(f"--set {item}: no stage {name!r}; the stages are: {', '.join(of_stages)}")
            of_stages[name].append(rest)
    stages: list[Stage] = []
    for name, data in pipeline.stages.items():
        stages.append(_stage(pipeline, name, data, of_stages[name], stages, out / pipeline.name / name, str(path)))
    return pipeline, stages


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The single values in nested tables and lists, each with its dotted path.

    >>> list(leaves({"a": {"b": 1}, "c": [2, "x"]}))
    [('a.b', 1), ('c.0', 2), ('c.1', 'x')]
    """
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else None
    if items is None:
        yield path, value
        return
    for key, item in items:
        yield from leaves(item, f"{path}.{key}" if path else str(key))


def _stage(
    pipeline: Pipeline, name: str, data: Mapping[str, Any], overrides: list[str], earlier: list[Stage], directory: Path, file: str
) -> Stage:
    where = f"{file}: stages.{name}"
    do = data.get("do")
    if do not in VERBS:
        raise ConfigError(f"{where}: do = {do!r}: no such verb; one of: {', '.join(VERBS)}")
    kind = VERBS[do].job
    settings = changed(kind, {key: value for key, value in data.items() if key != "do"}, overrides)
    run = settings.setdefault("run", {})
    if not isinstance(run, dict):
        raise ConfigError(f"{where}: run has to be a section, [stages.{name}.run]")
    if taken := [key for key in _OF_THE_PIPELINE if key in run]:
        raise ConfigError(f"{where}: run.{taken[0]} is decided by the pipeline for all its stages; set it at the top of the file")
    run |= {"seed": pipeline.seed} | run | {"name": name, "experiment": pipeline.experiment, "mlflow": pipeline.mlflow}
    references: dict[str, tuple[str, str]] = {}

    def resolved(value: Any, path: str = "") -> Any:
        """``value`` with each ``@STAGE.OUTPUT`` in it replaced by its path, and noted in ``references``."""
        if isinstance(value, dict):
            return {key: resolved(each, f"{path}.{key}" if path else key) for key, each in value.items()}
        if isinstance(value, list):
            return [resolved(each, f"{path}.{i}") for i, each in enumerate(value)]
        if not isinstance(value, str) or not value.startswith("@"):
            return value
        if value.startswith("@@"):  # a text that begins with @
            return value[1:]
        references[path], target = _referred(value, earlier, list(pipeline.stages), f"{where}: {path}")
        return str(target)

    job = build(kind, resolved(settings), where=where)
    return Stage(name, do, job, references, directory)


def _referred(value: str, earlier: list[Stage], names: list[str], where: str) -> tuple[tuple[str, str], Path]:
    """The stage and output that ``@STAGE.OUTPUT`` names, and its path. Raises ConfigError if there is none."""
    name, _, output = value[1:].partition(".")
    stage = next((each for each in earlier if each.name == name), None)
    if stage is not None and output in stage.outputs:
        return (name, output), stage.outputs[output]
    known = ", ".join(f"@{each.name}.{name}" for each in earlier for name in each.outputs) or "nothing, this is the first stage"
    if stage is not None:
        problem = f"stage {name} ({stage.do}) has no output {output!r}"
    elif name in names:
        problem = f"stage {name} does not come before this one"
    else:
        problem = f"there is no stage {name!r}"
    raise ConfigError(f"{where} = {value!r}: {problem}; to be had here: {known} (a text that begins with @ is written @@)")


def _check_name(name: str, where: str) -> None:
    if not re.fullmatch(r"\w[\w-]*", name) or name == "mlartifacts":
        raise ConfigError(
            f"{where}: {name!r}: the names of a pipeline and its stages are directories: letters, digits, _ and - only, "
            "and not mlartifacts"
        )
