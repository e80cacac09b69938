"""`konomi run`: run the stages that are not finished, in order, under one lock and one MLflow run; in rounds until one does not
win."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from konomi.config import Pipeline, Stage
from konomi.errors import ConfigError, KonomiError, RunError
from konomi.files import writing
from konomi.jobs.common import locked
from konomi.jobs.rounds import Rounds, gather
from konomi.jobs.stages import VERSION, Notes, Step, decide, stages_from
from konomi.report.model_card import write_card
from konomi.report.page import RESULTS, write_report
from konomi.runs import environment, processes
from konomi.runs.directory import EndStatus, RunDir
from konomi.runs.mlflow import MlflowSink
from konomi.runs.observer import Observer
from konomi.runs.signals import stop_on_signal
from konomi.text import duration


def run_pipeline(
    pipeline: Pipeline, stages: Sequence[Stage], directory: str | Path, observer: Observer | None = None, *,
    start: str | None = None, again: str = "run it again",
) -> dict[str, Any]:  # fmt: skip
    """Run the stages that are not finished; return what ``--json`` prints.

    Args:
        pipeline, stages: from :func:`konomi.config.load_pipeline`.
        directory: of the pipeline; made if needed.
        observer: told how it and its stages go.
        start: a stage from which on all are run again.
        again: the command that goes on after a stop, for the message.

    Raises:
        ConfigError: the directory is not a pipeline's; ``start`` is no stage; people are to rank in several processes.
        RunError: another process runs it; a stage did not finish.
        KonomiError: what a stage raised, with the stage's name in front.
        KeyboardInterrupt: a signal stopped it.
    """
    observer, directory = observer or Observer(), Path(directory)
    forgotten = stages_from(stages, start)
    alone = next((stage.name for stage in stages if stage.do == "label"), None)
    if alone and processes.several():
        raise ConfigError(f"stages.{alone}: people rank in one process; run the pipeline without a launcher, at least until then")
    processes.first(partial(_make, directory))
    with stop_on_signal(observer.stopping), _opened(directory) as notes:
        notes.set(name=pipeline.name, pid=os.getpid())
        for name in forgotten:
            if processes.is_main():
                (directory / name / "stage.json").unlink(missing_ok=True)
            notes.stage(name, status="waiting", key=None)
        parent = _ParentRun(pipeline, stages, notes, observer)
        rounds = Rounds(pipeline, stages, directory, observer)
        rows = []
        with parent.ends():
            for number, stage in enumerate(stages, start=1):
                step = processes.first(lambda stage=stage: decide(stage, notes.of(stage.name)))  # type: ignore[misc]
                title = f"Stage {number} of {len(stages)}, {stage.name} ({stage.do})"
                if step.action == "skip":
                    observer.say(f"{title}: skipped, {step.why}")
                    processes.first(partial(_take, step, notes))
                else:
                    observer.say(f"{title}: {'goes on' if step.action == 'resume' else 'runs'}, {step.why}")
                    _work(step, title, notes, observer, parent, again)
                rows.append(processes.first(partial(_row, stage, "skipped" if step.action == "skip" else "finished")))
                if rounds.ends_with(stage):
                    parent.log(stage.round, rounds.see(stage.round))
                    if rounds.over:
                        break
    return {
        "name": pipeline.name, "pipeline": str(directory), "status": "finished", "stages": rows, "mlflow": parent.address,
        **rounds.result(),
    }  # fmt: skip


@contextmanager
def _opened(directory: Path) -> Iterator[Notes]:
    """The pipeline's notes, its directory locked by the main process, which alone writes them."""
    with ExitStack() as stack:

        def lock() -> None:
            stack.enter_context(locked(directory, lambda: Notes(directory).content))

        processes.first(lock)
        yield Notes(directory)


class _ParentRun:
    """The MLflow run of the pipeline, parent of its stages' runs; opened when the first stage runs."""

    def __init__(self, pipeline: Pipeline, stages: Sequence[Stage], notes: Notes, observer: Observer) -> None:
        self._pipeline, self._stages, self._notes, self._observer = pipeline, stages, notes, observer
        self._sink: MlflowSink | None = None

    @property
    def address(self) -> str | None:
        """The store's; None if nothing was logged."""
        return self._sink.address if self._sink else None

    def run_id(self) -> str | None:
        """The id that the stages' runs get as their parent."""
        if self._sink is None and self._pipeline.mlflow and processes.is_main():
            params = {"seed": self._pipeline.seed, "stages": {stage.name: stage.do for stage in self._stages}}
            self._sink = MlflowSink(
                self._pipeline.experiment, self._pipeline.name, params, self._notes.directory, self._observer.warn,
                run_id=self._notes.content["mlflow_run_id"], git=environment.git(), again=True,
            )  # fmt: skip
            self._sink.start()
            self._notes.set(mlflow_run_id=self._sink.run_id)
        return self._sink.run_id if self._sink else None

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Log figures, if the run is open."""
        if self._sink:
            self._sink.log(step, figures)

    @contextmanager
    def ends(self) -> Iterator[None]:
        """Close the run with the status in which the block ends."""
        status: EndStatus = "FAILED"
        try:
            yield
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if self._sink:
                seconds = {name: note.get("seconds") for name, note in self._notes.content["stages"].items()}
                self._sink.log(0, {f"seconds/{name}": value for name, value in seconds.items() if value})
                self._sink.artifact(self._notes.directory / "pipeline.json")
                self._sink.end(status)


_HOMES = {"compare": "revisit"}
"""Verb -> the module of its job, where its name is another."""


def runner(verb: str) -> Callable[..., dict[str, Any]]:
    """The function that runs a verb's job. Only this job's module is imported."""
    run: Callable[..., dict[str, Any]] = getattr(import_module(f"konomi.jobs.{_HOMES.get(verb, verb)}"), f"run_{verb}")
    return run


def _work(step: Step, title: str, notes: Notes, observer: Observer, parent: _ParentRun, again: str) -> None:
    """Run or resume a stage."""
    stage, began = step.stage, time.monotonic()
    processes.first(partial(_make_ready, step))
    notes.stage(stage.name, do=stage.do, status="running", key=step.key, reason=None, seconds=None)
    more = {"resume": stage.directory} if step.action == "resume" else {}
    try:
        result = runner(stage.do)(stage.job, stage.directory.parent, observer, parent=parent.run_id(), **more)
        if result["status"] != "finished":
            raise RunError(f"{result.get('reason') or result['status']}; the run is in {stage.directory}")
    except BaseException as error:
        stopped, known = isinstance(error, KeyboardInterrupt), isinstance(error, KonomiError)
        reason = {} if stopped else {"reason": str(error) if known else f"{type(error).__name__}: {error}"}
        with suppress(RunError):  # a disk that is full takes no notes
            notes.stage(stage.name, status="stopped" if stopped else "failed", **reason)
        if stopped:
            raise KeyboardInterrupt(f"{title}: stopped; go on with: {again}") from None
        if known:
            error.args = (f"stage {stage.name}: {error}",)
        raise
    seconds = time.monotonic() - began
    if processes.is_main():
        _close(step, seconds)
    notes.stage(stage.name, status="finished", seconds=seconds)
    observer.say(f"{title}: finished in {duration(seconds)}")
    gc.collect()  # a stage's models are held by cycles of references; the next stage needs the memory


def _make_ready(step: Step) -> None:
    if step.action == "run":
        _move_away(step.stage.directory)
    gather(step.stage)


def _close(step: Step, seconds: float) -> None:
    done = {"version": VERSION, "key": step.key, "inputs": step.inputs, "seconds": seconds}
    RunDir(step.stage.directory).write_json("stage.json", done)


def _take(step: Step, notes: Notes) -> None:
    """Skip a stage that is finished; do what is left to do where a kill came between its end and the note of it."""
    run, seconds = RunDir(step.stage.directory), {}
    if run.read_json("stage.json") is None:
        if step.stage.do in RESULTS and not run.report.exists():
            write_card(run)
            write_report(run)
        started, ended = (datetime.fromisoformat(run.info[key]) for key in ("started", "ended"))
        seconds = {"seconds": (ended - started).total_seconds()}
        _close(step, **seconds)
    notes.stage(step.stage.name, status="finished", **seconds)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in directory.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"{directory}: the pipeline's directory cannot be made: {error.strerror or error}") from None
    if others and "pipeline.json" not in others:
        raise ConfigError(f"{directory}: exists and is not a pipeline's directory; choose another name or --out, or move it away")


def _move_away(directory: Path) -> None:
    """Keep what a stage made before, and nothing older."""
    if not directory.exists():
        return
    kept = directory.parent / ".previous" / directory.name
    with writing(kept):
        kept.parent.mkdir(exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        directory.rename(kept)


def _row(stage: Stage, status: str) -> dict[str, Any]:
    report, run = stage.directory / "report.html", RunDir(stage.directory)
    return {
        "stage": stage.name,
        "do": stage.do,
        "status": status,
        "seconds": run.read_json("stage.json")["seconds"],
        "run": str(stage.directory),
        "outputs": {name: str(path) for name, path in stage.outputs.items()},
        "report": str(report) if report.exists() else None,
    }
