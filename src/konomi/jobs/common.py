"""The skeleton of every verb's job: check, ``with running(...) as work``, work, finish."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from konomi.config import Section, StageConfig
from konomi.engine.device import choose_precision, forget_peak_memory, gpu_name
from konomi.errors import RunError
from konomi.files import writing
from konomi.jobs.inputs import job_inputs, keep_code
from konomi.reading import written_by_konomi
from konomi.report.model_card import write_card
from konomi.report.page import write_report
from konomi.runs import processes
from konomi.runs.directory import RunDir, Status
from konomi.runs.environment import machine, typed
from konomi.runs.observer import Observer
from konomi.runs.signals import Stop, stop_on_signal
from konomi.runs.sinks import Sinks, open_sinks, sink_names
from konomi.service import Unanswered
from konomi.text import plural

if TYPE_CHECKING:
    from konomi.training.checkpoints import Checkpoints
    from konomi.training.loop import Saving


@dataclass
class Work:
    """A run under way."""

    run: RunDir
    observer: Observer
    stop: Stop
    settings: StageConfig
    parent: str | None
    sinks: Sinks = field(default_factory=Sinks)

    def start(self, data: str, facts: Mapping[str, str], updates: int = 0) -> None:
        """Open the sinks and announce the run: ``data`` names what it reads, ``facts`` (label -> text) what it works with."""
        if processes.is_main():
            self.sinks = open_sinks(self.settings, self.run, self.observer.warn, data, self.parent)
        licence = self.run.info.get("licence")
        together = {"processes": str(processes.count())} if processes.several() else {}
        self.observer.start(self.run, {**facts, **together, **({"licence": licence} if licence else {})}, updates)

    def log(self, update: int, metrics: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl, and to the sinks."""
        self.run.append_metrics(update, metrics)
        self.sinks.log(update, metrics)

    def finish(self, status: Status = "finished", reason: str | None = None) -> Path:
        """Set the status, write the model's card and the page, copy the run's files to the sinks; return the page."""
        self.run.set_status(status, reason)
        if not processes.is_main():
            return self.run.report
        write_card(self.run)
        report = write_report(self.run)
        results = ("compare.json", "land.json", "eval.json")
        names = (*results, "samples.jsonl", "evaluations.jsonl", "metrics.jsonl", "config.json", "run.json")
        self.sinks.artifacts(report, *(self.run.path / name for name in names))
        return report


@contextmanager
def running(
    job: Section, root: str | Path, observer: Observer, *, fields: Mapping[str, Any], parent: str | None = None,
    resume: RunDir | None = None,
) -> Iterator[Work]:  # fmt: skip
    """Make a run directory under ``root``, lock it for the block, and record how it ends: finished, failed or stopped.

    Of several processes the main one does that; the others work along, and their `Work` writes nothing.

    Args:
        job: the settings, with a section ``run``.
        root: directory of all runs.
        observer: gets all progress.
        fields: further fields of run.json; ``data_digest``, up to 36 characters, changes with the data.
        parent: the MLflow run that this one belongs to.
        resume: the run to continue instead.

    Raises:
        ConfigError: the directory cannot be made, or a sink's package is missing.
        RunError: another process works on the run.
    """
    settings: StageConfig = job.run  # type: ignore[attr-defined]
    sink_names(settings)
    with stop_on_signal(observer.stopping) as stop, _opened(job, root, fields, resume) as run:
        work = Work(run, observer, stop, settings, parent)
        try:
            if not resume and processes.is_main():
                keep_code(run)
            with processes.survivors():
                yield work
            if run.info["status"] == "running":
                run.set_status("finished")
            work.sinks.end("FINISHED" if run.info["status"] == "finished" else "KILLED")
        except BaseException as error:
            _record(run, error)
            work.sinks.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        finally:
            observer.end()
            if work.sinks.mlflow and run.info.get("mlflow_run_id") != work.sinks.mlflow.run_id:  # the store answered late
                with suppress(RunError):
                    run.note(mlflow_run_id=work.sinks.mlflow.run_id)
            if stop.agreed:  # a launcher ends the others as soon as one has
                processes.wait()


@contextmanager
def _opened(job: Section, root: str | Path, fields: Mapping[str, Any], resume: RunDir | None) -> Iterator[RunDir]:
    """The run's directory, made and locked by the main process."""
    with ExitStack() as stack:

        def opened() -> tuple[RunDir, dict[str, Any]]:
            run = resume or new_run(job, root, fields)
            stack.enter_context(locked(run.path, lambda: run.info))
            return run, run.info

        run, info = processes.first(opened)
        yield run if processes.is_main() else RunDir(run.path, followed=info)


def go_on(work: Work, checkpoints: Checkpoints, load: Callable[[Path], None]) -> int | None:
    """Load the newest checkpoint that is complete, and drop what was recorded after it; return its update. Without one the
    run begins again.

    Raises:
        RunError: there are checkpoints, and none is complete.
    """
    run, warn = work.run, work.observer.warn
    forget_peak_memory()
    checkpoints.make()
    try:
        update = checkpoints.load_newest(load, warn)
    except RunError as error:
        advice = "Put a copy of one back, or remove that directory to train from the beginning"
        raise RunError(f"{error}, and nothing was trained. {advice}") from error
    if update is None and (recorded := len({line.get("update") for line in run.read_metrics()})):
        lost = f"its {plural(recorded, 'recorded update')} {'is' if recorded == 1 else 'are'} dropped"
        warn(f"{run.path} has no checkpoint: it begins again, and {lost}")
    with written_by_konomi(run.path):
        run.truncate_after(-1 if update is None else update)
    run.remove_drafts()
    run.set_status("running")
    return update


def saving_of(work: Work, checkpoints: Checkpoints, every: int, going_on: bool) -> Saving:
    """How a training on the Trainer is saved; ``going_on``: resume from its newest checkpoint."""
    from konomi.training.loop import Saving

    def resume(load: Callable[[Path], None]) -> None:
        if (update := go_on(work, checkpoints, load)) is not None:
            work.observer.say(f"Going on after update {update}")

    return Saving(checkpoints, every, resume if going_on else None)


def precision_of(wanted: str, run: RunDir | None) -> str:
    """The precision of a model, or that which the run to continue began with."""
    return str(run.info["precision"]) if run and "precision" in run.info else choose_precision(wanted)


@contextmanager
def resume_command(work: Work, verb: str, saved: Callable[[], str]) -> Iterator[None]:
    """Add to an interruption how to resume the run, and, unless it came after a save, what is ``saved``."""
    try:
        yield
    except (KeyboardInterrupt, Unanswered) as error:
        until = "" if work.run.info["status"] == "stopped" else f"{saved()}; "
        again = f"go on with: {typed('konomi')} {verb} --resume {shlex.quote(str(work.run.path))}"
        raise type(error)(f"{error}; {until}{again}") from error.__cause__


def saved_until(checkpoints: Checkpoints) -> str:
    """How far a run is saved, for `resume_command`."""
    saved = [update for update, _ in checkpoints.all()]
    return f"saved up to update {saved[-1]}" if saved else "nothing was saved yet, so that it begins again"


def _record(run: RunDir, error: BaseException) -> None:
    """Set the status of a run that an exception ends; a full disk may prevent it."""
    with suppress(RunError):
        if not isinstance(error, KeyboardInterrupt):
            run.set_status("failed", f"{type(error).__name__}: {error}")
        elif run.info["status"] == "running":
            run.set_status("stopped", "interrupted")


def new_run(job: Section, root: str | Path, fields: Mapping[str, Any]) -> RunDir:
    """Make a job's run directory; run.json gets ``fields``, and ``inputs`` if they are not among them."""
    settings: StageConfig = job.run  # type: ignore[attr-defined]
    forget_peak_memory()
    config = job.model_dump(mode="json")
    inputs = fields["inputs"] if "inputs" in fields else job_inputs(job)
    extra = {**fields, "inputs": inputs, "machine": machine(gpu_name())}
    return RunDir.create(root, settings.name, config, seed=settings.seed, extra=extra)


@contextmanager
def locked(directory: Path, info: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Hold a directory for this process. Raises RunError if another process, the ``pid`` in ``info``, has it."""
    lock = filelock.FileLock(directory / ".lock", blocking=False)
    with writing(directory / ".lock"):
        try:
            lock.acquire()
        except filelock.Timeout:
            raise RunError(
                f"{directory}: another process (pid {info().get('pid')}) works on this run; wait for it or stop it"
            ) from None
    try:
        yield
    finally:
        lock.release()


def result_of(work: Work, started: float, **figures: Any) -> dict[str, Any]:
    """What ``--json`` prints of a job, in all its processes; ``started``: when it began, by the monotonic clock."""
    ends = {"seconds": time.monotonic() - started, "mlflow": work.sinks.address}
    return processes.shared({"run": str(work.run.path), "status": "finished", **figures, **ends})
