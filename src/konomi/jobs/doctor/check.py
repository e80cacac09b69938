"""Examine a job file of any verb, a pipeline, or the directory of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from konomi.config import VERBS, Section, Stage, build, load_pipeline
from konomi.config.pipeline import verb_of
from konomi.config.section import read_toml
from konomi.errors import ConfigError
from konomi.jobs.doctor.lines import Line, result_of
from konomi.jobs.doctor.runs import examine_run
from konomi.runs.observer import Observer


def examine(given: Path, observer: Observer, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Examine a job before it runs, or a run; return what ``--json`` prints. Nothing is written.

    Args:
        given: a job file, or the directory of a run.
        observer: told what takes time.
        overrides: settings of the job, ``section.key=value``.

    Returns:
        ``subject``, ``verb``; how many lines are ``broken``, ``look`` and ``fine``; ``lines``, the most important first, each
        with ``checked``, ``seen``, ``do`` and ``level``. Of a PPO job: ``gigabytes`` that it needs, ``plan``, GB by what could be
        changed, and where it fits the ``seconds`` that it takes.

    Raises:
        ConfigError, DataError, ModelError: the job cannot be read, or the run would refuse it; the run is damaged.
    """
    if given.is_dir():
        if overrides:
            raise ConfigError(f"--set {overrides[0]}: the settings of a run are what they were; give its job file")
        verb, lines = examine_run(given)
        return result_of(str(given), verb, lines)
    data = read_toml(given)
    if (verb := verb_of(data)) == "run":
        _, stages = load_pipeline(given, Path("runs"), overrides)
        return result_of(str(given), verb, [line for stage in stages for line in _of_stage(stage, stages, observer)])
    lines, figures = _examined(verb, build(VERBS[verb].job, data, overrides, where=str(given)), observer)
    return result_of(str(given), verb, lines, **figures)


def _of_stage(stage: Stage, stages: Sequence[Stage], observer: Observer) -> list[Line]:
    """Lines on a stage of a pipeline, if the outputs that it needs exist."""
    outputs = {(each.name, output): path for each in stages for output, path in each.outputs.items()}
    if waits := sorted({f"@{name}.{output}" for name, output in stage.references.values() if not outputs[name, output].exists()}):
        return [Line(f"stage {stage.name}", f"waits for {', '.join(waits)}: ask again when that is made")]
    lines, _ = _examined(stage.do, stage.job, observer)
    return [replace(line, checked=f"stage {stage.name}: {line.checked}") for line in lines]


def _examined(verb: str, job: Section, observer: Observer) -> tuple[list[Line], dict[str, Any]]:
    """Lines on a job, and figures for programs."""
    if verb == "ppo":
        from konomi.jobs.doctor.ppo import examine_ppo

        return examine_ppo(job, observer)  # type: ignore[arg-type]
    from konomi.jobs.doctor.stages import examine_stage

    return examine_stage(job, observer), {}
