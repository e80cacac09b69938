"""A pipeline file: stages one after another, each with the settings of its own verb, that name each other's outputs.

With ``rounds`` all stages are run several times, each round on what the rounds before it made. The whole file is checked when it
is read: every stage's settings, and that each ``@STAGE.OUTPUT`` is there.
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
from konomi.config.section import Section, build, changed, read_toml
from konomi.config.sft import SFTJob
from konomi.errors import ConfigError
from konomi.seeds import stream_seed

_OF_THE_PIPELINE = ("name", "experiment", "mlflow")
"""Settings of a stage's section ``run`` that the pipeline decides for all."""
_OF_EARLIER_ROUNDS = "pick.rankings"
"""The setting that may name a later stage: it takes what that made in the rounds before, and in the first one nothing."""


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
        do = data.get("do")
        if do not in VERBS:
            raise ConfigError(f"{where}: do = {do!r}: no such verb; one of: {', '.join(VERBS)}")
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
            """``value`` with each ``@STAGE.OUTPUT`` in it replaced by its path, and noted in ``found``."""
            if isinstance(value, dict):
                return {key: resolved(each, f"{path}.{key}" if path else key) for key, each in value.items()}
            if isinstance(value, list):
                return [resolved(each, f"{path}.{i}") for i, each in enumerate(value)]
            if not isinstance(value, str) or not value.startswith("@"):
                return value
            if value.startswith("@@"):  # a text that begins with @
                return value[1:]
            return self._referred(value, path, number, f"{where}: {path}", found)

        job = build(kind, resolved(settings), where=where)
        directory = self._of_round(number) / name
        full = directory.relative_to(self.directory).as_posix()
        self.stages.append(Stage(full, do, job, found.references, directory, number, found.gathered))

    def _of_round(self, number: int) -> Path:
        return self.directory / f"round-{number}" if self.pipeline.rounds > 1 else self.directory

    def _referred(self, value: str, path: str, number: int, where: str, found: _Found) -> str | None:
        """What ``@STAGE.OUTPUT``, ``@STAGE.OUTPUT*``, ``@initial.model`` or ``@newest.model`` stands for; None: nothing yet."""
        name, _, output = value[1:].partition(".")
        if name in ("initial", "newest") and name not in self.pipeline.stages:
            return self._model(value, path, number, where, found)
        output = output.removesuffix("*")
        if path == _OF_EARLIER_ROUNDS and value.endswith("*") and self._comes_later(name, output, number):
            if number == 1:
                return None
            number -= 1
        stage = self._stage(name, output, number, value, where)
        found.references[path] = (stage.name, output)
        every = [each.outputs[output] for each in self.stages if each.directory.name == name]
        if not value.endswith("*") or len(every) == 1:
            return str(stage.outputs[output])
        if every[0].suffix != ".jsonl":
            raise ConfigError(
                f"{where} = {value!r}: only rankings, truth, pairs, scores and candidates of several rounds go together"
            )
        found.gathered[path] = tuple(every)
        return str(stage.directory.parent / f"{name}.{output}.jsonl")

    def _model(self, value: str, path: str, number: int, where: str, found: _Found) -> str:
        """The model that the pipeline begins with, or the newest one."""
        if value not in ("@initial.model", "@newest.model"):
            raise ConfigError(f"{where} = {value!r}: to be had here: @initial.model, @newest.model")
        trained = [each for each in self.stages if each.round == number - 1 and each.trains]
        if value == "@newest.model" and trained:
            found.references[path] = (trained[-1].name, "model")
            return str(trained[-1].outputs["model"])
        if value == "@newest.model" and number > 1:
            raise ConfigError(f"{where} = {value!r}: no stage trains a language model: all rounds would be the same")
        if self.pipeline.initial is None:
            raise ConfigError(f'{where} = {value!r}: which model does it begin with? Set initial = "..." at the top of the file')
        return self.pipeline.initial

    def _comes_later(self, name: str, output: str, number: int) -> bool:
        """Whether a stage with this output is in the file and not yet in this round."""
        do = self.pipeline.stages.get(name, {}).get("do")
        here = {each.directory.name for each in self.stages if each.round == number}
        return do in VERBS and output in VERBS[do].outputs and name not in here

    def _stage(self, name: str, output: str, number: int, value: str, where: str) -> Stage:
        """The stage of this round with this output. Raises ConfigError if there is none."""
        earlier = {each.directory.name: each for each in self.stages if each.round == number}
        stage = earlier.get(name)
        if stage is not None and output in stage.outputs:
            return stage
        known = ", ".join(f"@{place}.{each}" for place, made in earlier.items() for each in made.outputs)
        if stage is not None:
            problem = f"stage {name} ({stage.do}) has no output {output!r}"
        elif name in self.pipeline.stages:
            problem = f"stage {name} does not come before this one"
        else:
            problem = f"there is no stage {name!r}"
        raise ConfigError(
            f"{where} = {value!r}: {problem}; to be had here: {known or 'nothing, this is the first stage'} (a text that "
            "begins with @ is written @@)"
        )


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
