"""What every job shares: its run directory and its MLflow run, which end as the work in them ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from konomi.config import Section, StageConfig
from konomi.errors import RunError
from konomi.files import writing
from konomi.jobs.inputs import inputs_of, keep_code
from konomi.report.model_card import write_card
from konomi.report.report import write_report
from konomi.runs.directory import RunDir, Status
from konomi.runs.environment import forget_peak_memory
from konomi.runs.observer import Observer
from konomi.runs.sinks import MlflowSink


@contextmanager
def begun(
    job: Section, root: str | Path, observer: Observer, *, data: str, digest: str, facts: Mapping[str, str],
    parent: str | None = None, extra: Mapping[str, Any] | None = None,
) -> Iterator[tuple[RunDir, MlflowSink | None]]:  # fmt: skip
    """A new run directory under ``root`` and its MLflow run. Both say how the work inside ended: finished, failed, stopped.

    Args:
        job: the settings, with a section ``run``.
        root: directory of all runs.
        observer: is told where the run is, and ``facts``.
        data: name of what the job reads.
        digest: up to 36 characters that change when it does.
        facts: label -> what the job works with.
        parent: the MLflow run that this one is a part of.
        extra: further fields of run.json.
    """
    settings: StageConfig = job.run  # type: ignore[attr-defined]
    inputs = inputs_of(job.model_dump(mode="json", exclude={"run"}))
    run = new_run(job, root, {"data_digest": digest, "inputs": inputs, **(extra or {})})
    with held(run), ends(run):
        with logged(settings, run, observer, data=data, parent=parent) as sink:
            observer.start(run, dict(facts), 0)
            yield run, sink
        if run.info["status"] == "running":
            run.set_status("finished")
        if sink:
            sink.end("FINISHED")


def new_run(job: Section, root: str | Path, extra: Mapping[str, Any]) -> RunDir:
    """Make the run directory of a job, with a copy of its reward functions. ``extra``: fields of run.json, with ``inputs``."""
    settings: StageConfig = job.run  # type: ignore[attr-defined]
    forget_peak_memory()
    run = RunDir.create(root, settings.name, job.model_dump(mode="json"), seed=settings.seed, extra=extra)
    with ends(run):
        keep_code(run)
    return run


def finish(run: RunDir, sink: MlflowSink | None, status: Status = "finished", reason: str | None = None) -> Path:
    """Record how a run ended; then write its model's card and its page, which show that, and copy what it leaves into MLflow.

    Return the page.
    """
    run.set_status(status, reason)
    write_card(run)
    report = write_report(run)
    if sink:
        names = ("compare.json", "eval.json", "samples.jsonl", "metrics.jsonl", "config.json", "run.json")
        sink.log_artifacts([report, *(run.path / name for name in names)])
    return report


@contextmanager
def logged(
    settings: StageConfig, run: RunDir, observer: Observer, *, data: str, parent: str | None = None
) -> Iterator[MlflowSink | None]:
    """The run's place in MLflow, or None where the settings want none. An end that is not a good one is told there."""
    sink = open_sink(settings, run, observer, data, parent)
    try:
        yield sink
    except BaseException as error:
        if sink:
            sink.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    finally:
        observer.end()
        if sink and run.info.get("mlflow_run_id") != sink.run_id:  # the store answered late
            with suppress(RunError):
                run.note(mlflow_run_id=sink.run_id)


@contextmanager
def held(run: RunDir) -> Iterator[None]:
    """Keep a second process from going on with the run at the same time."""
    with locked(run.path, lambda: run.info):
        yield


@contextmanager
def locked(directory: Path, info: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Hold a directory for this process; ``info`` says with ``pid`` who holds it, if somebody else does."""
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


@contextmanager
def ends(run: RunDir) -> Iterator[None]:
    """See to it that a run that is left in any way does not say "running", where the disk takes it."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(RunError):
            if run.info["status"] == "running":
                run.set_status("stopped", "interrupted")
        raise
    except BaseException as error:
        with suppress(RunError):
            run.set_status("failed", f"{type(error).__name__}: {error}")
        raise


def open_sink(settings: StageConfig, run: RunDir, observer: Observer, data: str, parent: str | None = None) -> MlflowSink | None:
    """The run's place in MLflow, opened anew where it has one; None where the settings want none."""
    if not settings.mlflow:
        return None
    info = run.info
    sink = MlflowSink(
        settings.experiment, run.path.name, run.config, run.path.parent, observer.warn,
        run_id=info.get("mlflow_run_id"), git=info.get("git"), parent=parent,
        data={"name": data, "digest": info["data_digest"], "source": data},
    )  # fmt: skip
    run.note(mlflow_run_id=sink.run_id)  # now: a run that is killed is gone on with in the same place
    return sink
