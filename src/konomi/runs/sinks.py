"""Sinks: services beside the run directory that receive a run's metrics and files. ``run.sinks`` names them.

A sink holds copies; the run's own files hold everything. Its package is imported when it starts: MLflow comes with konomi,
TensorBoard and Weights & Biases are extras, reached through Accelerate's trackers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from konomi.errors import ConfigError
from konomi.runs.directory import EndStatus
from konomi.runs.mlflow import MlflowSink, flatten

if TYPE_CHECKING:
    from konomi.config import StageConfig
    from konomi.runs.directory import RunDir


class Sink(Protocol):
    """A service that receives a run's metrics and files."""

    def start(self) -> None:
        """Create or continue the run there."""

    def log(self, update: int, metrics: Mapping[str, float | None]) -> None:
        """Log the metrics of one update. None, NaN and infinity are left out."""

    def artifact(self, path: Path) -> None:
        """Copy a file or directory of the run, if it exists."""

    def end(self, status: EndStatus) -> None:
        """Send pending metrics and close the run there."""


class TrackerSink:
    """One of Accelerate's trackers: metrics and settings; files stay in the run directory."""

    def __init__(
        self, kind: Literal["tensorboard", "wandb"], run: RunDir, project: str, on_warning: Callable[[str], None]
    ) -> None:
        self._kind, self._run, self._project, self._on_warning = kind, run, project, on_warning
        self._tracker: Any = None  # none before the start, and after a failure
        self._failures: tuple[type[BaseException], ...] = (OSError,)

    def start(self) -> None:
        """Open the tracker. TensorBoard's files are in RUN/tensorboard; W&B continues a run that was stopped."""
        from accelerate import PartialState, tracking

        PartialState()  # the trackers ask it whether this is the main process
        settings = flatten(self._run.config)
        if self._kind == "tensorboard":
            tracker: Any = tracking.TensorBoardTracker("tensorboard", self._run.path)
        else:
            from wandb import Error, Settings

            self._failures = (OSError, Error)
            name = self._run.path.name
            unique = re.sub(r"\W", "", f"{name}{self._run.info['started']}")
            # metrics and settings only: no code, command line or host name, and not the console, which has texts
            private = Settings(
                disable_code=True, disable_git=True, console="off", x_disable_meta=True, x_disable_stats=True, host="-"
            )
            tracker = tracking.WandBTracker(
                self._project, name=name, id=unique, resume="allow", dir=str(self._run.path), config=settings, settings=private
            )
        with self._guarded():
            tracker.start()
            self._tracker = tracker
            if self._kind == "tensorboard":
                tracker.tracker.add_text("config", "\n".join(f"    {key} = {value}" for key, value in settings.items()))

    def log(self, update: int, metrics: Mapping[str, float | None]) -> None:
        """As :meth:`Sink.log`."""
        numbers = {key: float(value) for key, value in metrics.items() if value is not None and math.isfinite(value)}
        with self._guarded():
            if self._tracker:
                self._tracker.log({key: value for key, value in numbers.items() if key not in ("time", "update")}, step=update)

    def artifact(self, path: Path) -> None:
        """Do nothing: files stay in the run directory."""

    def end(self, status: EndStatus) -> None:
        """Flush and close."""
        with self._guarded():
            if self._tracker and self._kind == "wandb":  # Accelerate's finish knows no failure
                self._tracker.tracker.finish(exit_code=int(status != "FINISHED"))
            elif self._tracker:
                self._tracker.finish()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """On a failure disable the sink with a warning; the run continues."""
        try:
            yield
        except self._failures as error:
            self._tracker = None
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            self._on_warning(f"{self._kind} cannot be used ({why}). The run goes on; its metrics are in metrics.jsonl")


class Sinks:
    """All sinks of a run, used as one."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    @property
    def mlflow(self) -> MlflowSink | None:
        """The run in MLflow, if it is logged there."""
        return next((sink for sink in self._sinks if isinstance(sink, MlflowSink)), None)

    @property
    def address(self) -> str | None:
        """The address of the MLflow store."""
        return self.mlflow.address if self.mlflow else None

    def start(self) -> None:
        """Start each."""
        for sink in self._sinks:
            sink.start()

    def log(self, update: int, metrics: Mapping[str, float | None]) -> None:
        """Log the metrics of one update."""
        for sink in self._sinks:
            sink.log(update, metrics)

    def artifacts(self, *paths: Path) -> None:
        """Copy files of the run."""
        for sink in self._sinks:
            for path in paths:
                sink.artifact(path)

    def end(self, status: EndStatus) -> None:
        """Close each."""
        for sink in self._sinks:
            sink.end(status)


def sink_names(settings: StageConfig) -> list[str]:
    """The sinks of a run, each once. Raises ConfigError if a package is missing that one of them needs."""
    names: list[str] = [name for name in dict.fromkeys(settings.sinks) if name != "mlflow" or settings.mlflow]
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # or a directory of that name, where the command was called
            raise ConfigError(f'run.sinks: {name} is not installed; pip install "konomi[{name}]", or take it out of run.sinks')
    return names


def open_sinks(
    settings: StageConfig, run: RunDir, on_warning: Callable[[str], None], data: str, parent: str | None = None,
    again: bool = False,
) -> Sinks:  # fmt: skip
    """Start or continue a run's sinks. ``data``: name of what the job reads; ``again``: figures of a step may be replaced."""
    info = run.info
    home = run.path.parent
    if re.fullmatch(r"round-\d+", home.name) and (home.parent / "pipeline.json").is_file():
        home = home.parent
    name = run.path.relative_to(home).as_posix()

    def sink(kind: Any) -> Sink:
        if kind != "mlflow":
            return TrackerSink(kind, run, settings.experiment, on_warning)
        return MlflowSink(
            settings.experiment, name, run.config, home, on_warning,
            run_id=info.get("mlflow_run_id"), git=info.get("git"), parent=parent, again=again,
            data={"name": data, "digest": info["data_digest"], "source": data},
        )  # fmt: skip

    sinks = Sinks(*map(sink, sink_names(settings)))
    try:
        sinks.start()
        if sinks.mlflow:
            run.note(mlflow_run_id=sinks.mlflow.run_id)  # now: a run that is killed continues in the same place
    except BaseException as error:
        sinks.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    return sinks
