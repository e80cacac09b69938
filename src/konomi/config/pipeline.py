"""A pipeline file: stages one after another, each with the settings of its own verb, that name each other's outputs.

With ``rounds`` all stages are run several times, each round on what the rounds before it made. The whole file is checked when it
is read: every stage's settings, and that what each ``@STAGE.OUTPUT`` names is there when its stage begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from konomi.config.candidates import CompareJob, JudgeJob, LabelJob, PickJob, SampleJob
from konomi.config.dpo import DPOJob
from konomi.config.ppo import PPOJob
from konomi.config.reward_model import RewardJob
from konomi.config.section import Section, build, changed, may_be_left_out, read_toml
from konomi.config.sft import SFTJob
from konomi.errors import ConfigError
from konomi.seeds import stream_seed

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
    "pick": Verb(PickJob, {"candidates": "candidates.jsonl"}),
    "reward": Verb(RewardJob, {"model": "model"}, resumes=True),
    "dpo": Verb(DPOJob, {"model": "model"}, resumes=True),
    "ppo": Verb(PPOJob, {"model": "model"}, resumes=True),
    "compare": Verb(CompareJob, {"comparison": "compare.json"}),
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
    """Its name in the file; in rounds round-1/NAME and so on."""
    do: str
    """Its verb."""
    job: Section
    """Its settings, each reference replaced by the path of what it stands for."""
    references: Mapping[str, tuple[str, str]]
    """Setting -> (earlier stage, output)."""
    directory: Path
    """Its run directory."""
    round: int = 1
    gathered: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """Setting -> the outputs of all rounds so far that its file is put together from."""

    @property
    def outputs(self) -> dict[str, Path]:
        """Output -> where it is once the stage is finished."""
        return {name: self.directory / path for name, path in VERBS[self.do].outputs.items()}

    @property
    def trains(self) -> bool:
        """Whether a language model comes out of it."""
        return "model" in self.outputs and self.do != "reward"


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
    rounds: Annotated[int, Field(ge=1, le=100)] = 1
    """How often the stages are run, at most: a round that does not win ends them."""
    initial: str | None = None
    """The language model that it begins with: @initial.model, and in the first round also @newest.model."""
    stages: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """The stages in their order, each under a name of one's own: [stages.NAME], with `do` and the sections of that verb."""


def load_pipeline(path: str | Path, out: Path, overrides: Sequence[str] = ()) -> tuple[Pipeline, list[Stage]]:
    """Read a pipeline file that keeps its runs in ``out``/name, and check all of it. Return it with the stages of all rounds.

    Overrides are ``key=value`` or ``stages.NAME.section.key=value``.

    Raises:
        ConfigError: the file cannot be read; a setting of any stage is wrong; a reference leads nowhere.
    """
    own = [item for item in overrides if not item.startswith("stages.")]
    pipeline = build(Pipeline, read_toml(Path(path)), own, where=str(path))
    for name in (pipeline.name, *pipeline.stages):
        _check_name(name, str(path))
    for name, stage in pipeline.stages.items():
        if (do := stage.get("do")) not in [*VERBS]:
            raise ConfigError(f"{path}: stages.{name}: do = {do!r}: no such verb; one of: {', '.join(VERBS)}")
    of_stages: dict[str, list[str]] = {name: [] for name in pipeline.stages}
    for item in overrides:
        if item.startswith("stages."):
            name, _, rest = item.removeprefix("stages.").partition(".")
            if name not in of_stages:
                raise ConfigError(f"--set {item}: no stage {name!r}; the stages are: {', '.join(of_stages)}")
            of_stages[name].append(rest)
    maker = _Maker(pipeline, out / pipeline.name, str(path), of_stages)
    for number in range(1, pipeline.rounds + 1):
        for name in pipeline.stages:
            maker.make(name, number)
    if pipeline.rounds > 1 and not any(stage.do == "compare" for stage in maker.stages):
        raise ConfigError(
            f'{path}: rounds = {pipeline.rounds}: there is no stage with do = "compare"; by it a round is held against the one '
            "before"
        )
    return pipeline, maker.stages


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


@dataclass
class _Maker:
    """Makes the stages one after the other; ``stages`` has those so far."""

    pipeline: Pipeline
    directory: Path
    file: str
    overrides: Mapping[str, list[str]]
    stages: list[Stage] = field(default_factory=list)

    def make(self, name: str, number: int) -> None:
        """Add a stage of the round ``number``."""
        where = f"{self.file}: stages.{name}"
        data = self.pipeline.stages[name]
        do = data["do"]
        kind = VERBS[do].job
        settings = changed(kind, {key: value for key, value in data.items() if key != "do"}, self.overrides[name])
        run = settings.setdefault("run", {})
        if not isinstance(run, dict):
            raise ConfigError(f"{where}: run has to be a section, [stages.{name}.run]")
        if taken := [key for key in _OF_THE_PIPELINE if key in run]:
            raise ConfigError(
                f"{where}: run.{taken[0]} is decided by the pipeline for all its stages; set it at the top of the file"
            )
        pipeline = self.pipeline
        run |= {"seed": pipeline.seed} | run | {"name": name, "experiment": pipeline.experiment, "mlflow": pipeline.mlflow}
        if number > 1 and isinstance(run["seed"], int):
            run["seed"] = stream_seed(run["seed"], "round", number) % 2**31
        if do == "label" and pipeline.rounds > 1:
            _in_rounds(settings.get("label"), number)
        found = _Found({}, {})

        def resolved(value: Any, path: str = "") -> Any:
            """``value``, each reference replaced by its path and recorded in ``found``; settings without a value are dropped."""
            if isinstance(value, dict):
                each = {key: resolved(item, f"{path}.{key}" if path else key) for key, item in value.items()}
                return {key: item for key, item in each.items() if item is not None}
            if isinstance(value, list):
                return [resolved(item, f"{path}.{i}") for i, item in enumerate(value)]
            if not isinstance(value, str) or not value.startswith("@"):
                return value
            if value.startswith("@@"):  # a text that begins with @
                return value[1:]
            return self._referred(_Reference(value, path, where, number, may_be_left_out(kind, path)), found)

        job = build(kind, resolved(settings), where=where)
        directory = self._of_round(number) / name
        full = directory.relative_to(self.directory).as_posix()
        self.stages.append(Stage(full, do, job, found.references, directory, number, found.gathered))

    def _of_round(self, number: int) -> Path:
        return self.directory / f"round-{number}" if self.pipeline.rounds > 1 else self.directory

    def _referred(self, reference: _Reference, found: _Found) -> str | None:
        """The path that a reference stands for; None: in round 1, in an optional setting, what earlier rounds made."""
        name, output, of_all_rounds = reference.parts
        if name in ("initial", "newest") and name not in self.pipeline.stages:
            return self._model(reference, found)
        do = self.pipeline.stages.get(name, {}).get("do")
        if do is None:
            raise self._not_there(reference, f"there is no stage {name!r}")
        if output not in VERBS[do].outputs:
            raise self._not_there(reference, f"stage {name} ({do}) has no output {output!r}")
        if of_all_rounds and not VERBS[do].outputs[output].endswith(".jsonl"):
            raise reference.refused("only rankings, truth, pairs, scores and candidates of several rounds go together")
        made = [each for each in self.stages if each.directory.name == name]
        late = f"stage {name} does not come before this one"
        if not of_all_rounds and (not made or made[-1].round < reference.round):
            raise self._not_there(reference, late)
        if not made and not reference.optional:
            needed = f"{reference.setting} cannot be left out"
            raise self._not_there(reference, f"{late}, so that in round 1 there is nothing of it, and {needed}")
        if not made:
            return None
        found.references[reference.setting] = (made[-1].name, output)
        if not of_all_rounds or len(made) == 1:
            return str(made[-1].outputs[output])
        found.gathered[reference.setting] = tuple(each.outputs[output] for each in made)
        return str(made[-1].directory.parent / f"{name}.{output}.jsonl")

    def _model(self, reference: _Reference, found: _Found) -> str:
        """The model that the pipeline begins with, or the newest one."""
        if reference.text not in ("@initial.model", "@newest.model"):
            raise reference.refused("to be had here: @initial.model, @newest.model")
        newest = reference.text == "@newest.model"
        trained = [each for each in self.stages if each.round == reference.round - 1 and each.trains]
        if newest and trained:
            found.references[reference.setting] = (trained[-1].name, "model")
            return str(trained[-1].outputs["model"])
        if newest and reference.round > 1:
            raise reference.refused("no stage trains a language model: all rounds would be the same")
        if self.pipeline.initial is None:
            raise reference.refused('which model does it begin with? Set initial = "..." at the top of the file')
        return self.pipeline.initial

    def _not_there(self, reference: _Reference, problem: str) -> ConfigError:
        """The error of a reference that leads nowhere, with those that would lead somewhere."""
        made = [each for each in self.stages if each.round == reference.round]
        known = ", ".join(f"@{each.directory.name}.{output}" for each in made for output in each.outputs)
        return reference.refused(
            f"{problem}; to be had here: {known or 'nothing, this is the first stage'} (a text that begins with @ is written @@)"
        )


@dataclass(frozen=True)
class _Reference:
    """A setting that is ``@STAGE.OUTPUT``, ``@STAGE.OUTPUT*``, ``@initial.model`` or ``@newest.model``."""

    text: str
    setting: str
    where: str
    """File and stage, for messages."""
    round: int
    optional: bool
    """Whether the setting may be left out."""

    @property
    def parts(self) -> tuple[str, str, bool]:
        """Stage, output, and whether that of all rounds so far is meant."""
        name, _, output = self.text[1:].partition(".")
        return name, output.removesuffix("*"), output.endswith("*")

    def refused(self, problem: str) -> ConfigError:
        """The error of a reference that is wrong."""
        return ConfigError(f"{self.where}: {self.setting} = {self.text!r}: {problem}")


@dataclass(frozen=True)
class _Found:
    """The references in a stage; see `Stage`."""

    references: dict[str, tuple[str, str]]
    gathered: dict[str, tuple[Path, ...]]


def _in_rounds(label: Any, number: int) -> None:
    """Give a stage in which people rank a project for each round, with the people of the round before."""
    if isinstance(label, dict) and isinstance(label.get("project"), str):
        project = label["project"].rstrip("/")
        label["project"] = f"{project}-round-{number}"
        if number > 1:
            label["people"] = f"{project}-round-{number - 1}"


def _check_name(name: str, where: str) -> None:
    if not re.fullmatch(r"\w[\w-]*", name) or name == "mlartifacts":
        raise ConfigError(
            f"{where}: {name!r}: the names of a pipeline and its stages are directories: letters, digits, _ and - only, "
            "and not mlartifacts"
        )
