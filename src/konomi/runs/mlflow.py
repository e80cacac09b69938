"""MLflow as a sink: settings, metrics and files of a run, in a store that may be unreachable.

An unreachable store causes one warning; unsent metrics are sent later, and metrics.jsonl has them in any case. The time spent
on failures is bounded (with MLflow's own settings a dead server blocks each call for minutes). No global state changes:
environment and loggers are set for each call and restored.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konomi.runs.environment import without_password, without_secrets
from konomi.runs.mlflow_store import failures, opening, quiet, sqlite_uri
from konomi.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from konomi.runs.directory import EndStatus

PATIENCE = 8.0
"""Seconds that failing calls may take in one run; after that no more are made."""
PAUSE = 30.0
"""Seconds between a failure and the next attempt."""
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
}
UPLOAD = ENVIRONMENT | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
_METRICS_A_BATCH, _PARAMS_A_BATCH, _PARAM_LENGTH = 1000, 100, 6000


class MlflowSink:
    """One MLflow run. No method fails when the store is unreachable."""

    def __init__(
        self, experiment: str, run_name: str, params: Mapping[str, Any], default_root: Path, on_warning: Callable[[str], None],
        *, run_id: str | None = None, data: Mapping[str, str] | None = None, git: Mapping[str, Any] | None = None,
        parent: str | None = None, again: bool = False,
    ) -> None:  # fmt: skip
        """Describe the run; :meth:`start` begins it.

        Args:
            experiment: created if it does not exist.
            run_name: in MLflow.
            params: nested settings: {"ppo": {"lam": .95}} becomes ``ppo.lam``.
            default_root: where mlflow.db and mlartifacts/ go without MLFLOW_TRACKING_URI.
            on_warning: called at most once, with the reason why the store cannot be used.
            run_id: the MLflow run to continue. Its params stay, missing ones are added. Steps that it already has get no
                further points: a killed run repeats the updates since its last checkpoint.
            data: ``name``, ``digest`` (up to 36 characters) and ``source`` of the prompts.
            git: ``commit`` and ``dirty`` of the work tree.
            parent: the MLflow run that this one belongs to.
            again: such steps get further points.
        """
        self.run_id: str | None = run_id
        self._experiment, self._run_name, self._root = experiment, run_name, default_root
        self._params = {_key(k): v[:_PARAM_LENGTH] for k, v in flatten(params).items()}
        self._data, self._git, self._parent, self._on_warning = data, git, parent, on_warning
        self._local = not os.environ.get("MLFLOW_TRACKING_URI")
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(default_root.absolute() / "mlflow.db")
        self._client: MlflowClient | None = None
        self._begun = self._warned = False
        self._again = again
        self._last: dict[str, int] = {}  # key -> the last step that the run had when it was opened
        self._waiting: list[tuple[str, float, int, int]] = []  # key, value, Unix milliseconds, update
        self._lost, self._next_try = 0.0, 0.0

    @property
    def address(self) -> str:
        """The store's address, without a password that may be in it."""
        return without_password(self._uri)

    @property
    def complete(self) -> bool:
        """Whether the store has received everything logged so far."""
        return self._begun and not self._waiting

    def start(self) -> None:
        """Open the store, and create or continue the run."""
        self._send()

    def log(self, update: int, metrics: Mapping[str, float | None]) -> None:
        """Log the metrics of one update, all in one call. None, NaN and infinity are left out.

        ``time`` (Unix seconds) is taken as the time of all, ``update`` is the step.
        """
        if self._lost >= PATIENCE:
            return
        at = round(1000 * (metrics.get("time") or time.time()))
        for key, value in metrics.items():
            if key not in ("time", "update") and value is not None and math.isfinite(value):
                self._waiting.append((_key(key), float(value), at, update))
        self._send()

    def artifact(self, path: Path) -> None:
        """Copy a file or directory, if it exists, into the run's artifacts."""
        self._send()
        if self.complete and path.exists() and self._may_try():
            with self._guarded(UPLOAD):
                assert self._client is not None and self.run_id is not None
                if path.is_dir():
                    self._client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
                else:
                    self._client.log_artifact(self.run_id, str(path))

    def end(self, status: EndStatus) -> None:
        """Send pending metrics and close the run in MLflow."""
        self._next_try = 0.0
        self._send()
        if self._begun and self._may_try():
            with self._guarded(ENVIRONMENT):
                assert self._client is not None
                self._client.set_terminated(self.run_id, status)

    def _may_try(self) -> bool:
        return self._lost < PATIENCE and time.monotonic() >= self._next_try

    def _send(self) -> None:
        """Create the run if necessary, then send pending metrics."""
        if not self._may_try():
            return
        with self._guarded(ENVIRONMENT):
            if not self._begun:
                self._begin()
                self._begun = True
            from mlflow.entities import Metric

            assert self._client is not None
            while self._waiting:
                batch = self._waiting[:_METRICS_A_BATCH]
                new = [Metric(k, v, at, step) for k, v, at, step in batch if step > self._last.get(k, -1)]
                if new:
                    self._client.log_batch(self.run_id, metrics=new)
                del self._waiting[: len(batch)]

    def _begin(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Dataset, DatasetInput, Param

        with opening(self._uri):
            client = self._client = MlflowClient(tracking_uri=self._uri)
        if self.run_id is None or not self._reopen(client, self.run_id):
            self.run_id = client.create_run(self._experiment_id(client), run_name=self._run_name, tags=self._tags()).info.run_id
        data = client.get_run(self.run_id).data
        self._last = {} if self._again else {metric.key: metric.step for metric in data._metric_objs}
        missing = [Param(key, value) for key, value in self._params.items() if key not in data.params]
        for start in range(0, len(missing), _PARAMS_A_BATCH):
            client.log_batch(self.run_id, params=missing[start : start + _PARAMS_A_BATCH])
        if self._data is not None:
            source = json.dumps({"uri": self._data["source"]}, ensure_ascii=False)
            dataset = Dataset(self._data["name"][:500], self._data["digest"][:36], source_type="local", source=source)
            client.log_inputs(self.run_id, [DatasetInput(dataset)])

    def _reopen(self, client: MlflowClient, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return False  # deleted, or another store than before: create a new run
        return True

    def _experiment_id(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            place = (self._root.absolute() / "mlartifacts").as_uri() if self._local else None
            try:
                return str(client.create_experiment(self._experiment, artifact_location=place))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = client.get_experiment_by_name(self._experiment)  # created by another run meanwhile
        assert experiment is not None
        return str(experiment.experiment_id)

    def _tags(self) -> dict[str, str]:
        tags = {"konomi.version": __version__, "mlflow.source.name": "konomi", "mlflow.source.type": "LOCAL"}
        if self._git:
            tags |= {"mlflow.source.git.commit": str(self._git["commit"]), "konomi.git.dirty": str(self._git["dirty"])}
        return tags | ({"mlflow.parentRunId": self._parent} if self._parent else {})

    @contextmanager
    def _guarded(self, environment: Mapping[str, str]) -> Iterator[None]:
        """Run one attempt quietly: count the time of a failure, and warn of the first."""
        with quiet(environment):
            expected = failures()
        began = time.monotonic()
        with quiet(environment):
            try:
                yield
            except expected as error:
                self._lost += time.monotonic() - began
                self._next_try = time.monotonic() + PAUSE
                self._warn(error)
                if self._lost >= PATIENCE:
                    self._waiting.clear()

    def _warn(self, error: BaseException) -> None:
        if self._warned:
            return
        self._warned = True
        why = without_secrets(" ".join(str(error).split()), self._uri)[:300]
        self._on_warning(
            f"MLflow at {self.address} cannot be used ({type(error).__name__}: {why}). The run goes on; its metrics "
            "are in metrics.jsonl. Check MLFLOW_TRACKING_URI, or set run.mlflow = false"
        )


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``a.b.c`` -> text. Lists become JSON; an empty section is left out.

    >>> flatten({"ppo": {"lam": 0.95, "range": (1, 2)}, "name": None})
    {'ppo.lam': '0.95', 'ppo.range': '[1, 2]', 'name': 'None'}
    """
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            is_list = isinstance(value, (list, tuple))
            flat[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False) if is_list else str(value)
    return flat


def _key(name: str) -> str:
    return re.sub(r"[^\w/ .:-]", "_", name)[:250]  # what MLflow allows in names
