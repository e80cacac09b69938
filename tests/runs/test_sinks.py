"""Sinks against real stores: MLflow in SQLite, a server, and addresses that never answer; TensorBoard's files."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from konomi.config import StageConfig
from konomi.errors import ConfigError
from konomi.runs.directory import RunDir
from konomi.runs.environment import without_password, without_secrets
from konomi.runs.mlflow import ENVIRONMENT, PATIENCE, MlflowSink, flatten
from konomi.runs.mlflow_store import opening, quiet, sqlite_uri
from konomi.runs.sinks import open_sinks, sink_names

PARAMS = {"ppo": {"lam": 0.95, "range": (10, 24)}, "name": None, "long": "あ" * 7000, "many": {f"k{i}": i for i in range(230)}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose mlflow.db all tests share: making one takes seconds."""
    return tmp_path_factory.mktemp("好み store")


def started(root: Path, warn: Any = pytest.fail, name: str = "r", params: Any = (), **options: Any) -> MlflowSink:
    sink = MlflowSink("k", name, dict(params), root, warn, **options)
    sink.start()
    return sink


def read(sink: MlflowSink) -> tuple[Any, Any]:
    with quiet(ENVIRONMENT):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=sink.address)
        return client, client.get_run(sink.run_id)


def history(client: Any, run_id: str | None, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


def log_a_run(sink: MlflowSink, folder: Path) -> None:
    for update in range(1, 6):
        sink.log(update, {"objective/kl": update / 3, "ppo/loss/value": -update, "time": 1e9 + update, "update": update})
    sink.log(6, {"objective/kl": 2.0, "nan": math.nan, "inf": math.inf, "none": None})
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
    (folder / "report.html").write_text("<p>", encoding="utf-8")
    for name in ("report.html", "model", "missing"):
        sink.artifact(folder / name)


def check_the_run(sink: MlflowSink) -> None:
    client, run = read(sink)
    kl = [(u, u / 3) for u in range(1, 6)]
    assert history(client, sink.run_id, "objective/kl") == [*kl, (6, 2.0)]
    assert history(client, sink.run_id, "ppo/loss/value") == [(u, -u) for u in range(1, 6)]
    assert {m.timestamp for m in client.get_metric_history(sink.run_id, "ppo/loss/value")} == {
        1000 * (10**9 + u) for u in range(1, 6)
    }
    assert set(run.data.metrics) == {"objective/kl", "ppo/loss/value"}
    assert sorted(a.path for a in client.list_artifacts(sink.run_id)) == ["model", "report.html"]
    assert [a.path for a in client.list_artifacts(sink.run_id, "model")] == ["model/config.json"]


def test_flatten_and_cleaning() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": ["好", 2], "f": True}) == {"a.b.c": "1", "e": '["好", 2]', "f": "True"}
    assert without_password("at http://me:pa%40ss@host:5000/x, see") == "at http://host:5000/x, see"
    assert without_password("sqlite:////tmp/a@b.db") == "sqlite:////tmp/a@b.db"
    for password in ("se@cret", "se/cret", "/secret", "se:cret", "se#cret", "se?cret", "se%cret", "12/secret", "se%40cret@x"):
        for address in (f"http://me:{password}@host:5000/x?token=secret", f"postgresql://me:{password}@host/db"):
            shown = without_password(f"at {address} now")
            assert "cret" not in shown and "//host" in shown and shown.endswith(" now"), shown


def test_no_part_of_a_password_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("http://me:se@cret", "http://me:se%40cret", "postgresql://me:12/cret", "postgresql://me:se%cret"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{address}@127.0.0.1:9/db?token=cret")
        warned: list[str] = []
        sink = started(tmp_path, warned.append)
        (told,) = warned
        assert "cret" not in told + sink.address and "MLflow at" in told, told
        assert ("%XX" in told) == ("%" not in address), told
    for password in ("se@cret", "se/cret", "se:cret", "se#cret", "12/cret", "se%cret", "se%40cret"):
        uri = f"http://me:{password}@127.0.0.1:9/db?token=cret"
        for error in (f"{uri}: refused", f"no port {password!r} in {uri}"):
            told = without_secrets(error, uri)
            assert "cret" not in told and ("%XX" in told) == ("%" not in password), told


def test_any_path_has_an_address(tmp_path: Path) -> None:
    from sqlalchemy.engine import make_url

    for name in ("plain", "with space 好み", "per%20cent?x#y"):
        path = tmp_path / name / "mlflow.db"
        assert make_url(sqlite_uri(path)).database == path.as_posix()
        with opening(sqlite_uri(path)):
            pass
        assert path.parent.is_dir()


def test_sqlite_store_holds_everything(store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    warnings: list[str] = []
    sink = MlflowSink(
        "実験", "run 一", PARAMS, store, warnings.append, git={"commit": "c" * 40, "dirty": True},
        data={"name": "openings", "digest": "0" * 32, "source": "openings.jsonl"},
    )  # fmt: skip
    sink.start()
    log_a_run(sink, tmp_path)
    sink.end("FINISHED")
    assert warnings == [] and sink.complete
    assert capfd.readouterr() == ("", "")

    check_the_run(sink)
    client, run = read(sink)
    params = run.data.params
    assert (params["ppo.lam"], params["ppo.range"], params["name"]) == ("0.95", "[10, 24]", "None")
    assert params["long"] == "あ" * 6000 and len(params) == 234
    assert (run.info.run_name, run.info.status) == ("run 一", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "実験"
    assert run.data.tags["mlflow.source.git.commit"] == "c" * 40 and run.data.tags["konomi.git.dirty"] == "True"
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("openings", "0" * 32)
    assert sorted(p.name for p in store.iterdir()) == ["mlartifacts", "mlflow.db", "mlflow.db.lock"]


def test_a_step_done_again_after_a_kill_has_one_point(store: Path) -> None:
    first = started(store)
    for step in (0, 1, 2, 3):
        first.log(step, {"a": step, "time": 1e9 + step})
    first.log(2, {"b": 1.0})
    second = started(store, run_id=first.run_id)  # goes on from step 1
    for step in (2, 3, 4):
        second.log(step, {"a": step, "b": 2.0, "time": 2e9 + step})
    second.end("FINISHED")
    client, run = read(second)
    assert history(client, second.run_id, "a") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert history(client, second.run_id, "b") == [(2, 1.0), (3, 2.0), (4, 2.0)]
    assert (run.info.status, second.complete) == ("FINISHED", True)
    again = started(store, run_id=first.run_id, again=True)  # a pipeline, whose stages may run again
    again.log(0, {"a": 9.0})
    assert (0, 9.0) in history(client, second.run_id, "a")


def test_a_run_continues_and_says_how_it_ended(store: Path) -> None:
    first = started(store, params={"a": 1})
    first.log(1, {"m": 1.0})
    for status in ("FAILED", "KILLED"):
        first.end(status)  # type: ignore[arg-type]
        assert read(first)[1].info.status == status
    second = started(store, params={"a": 2, "b": 3}, run_id=first.run_id)
    assert second.run_id == first.run_id
    client, run = read(second)
    assert run.info.status == "RUNNING" and run.data.params == {"a": "1", "b": "3"}
    second.log(2, {"m": 2.0})
    second.end("FINISHED")
    assert history(client, second.run_id, "m") == [(1, 1.0), (2, 2.0)]
    assert read(second)[1].info.status == "FINISHED"


def test_a_run_that_is_gone_is_begun_anew(store: Path) -> None:
    deleted = started(store)
    read(deleted)[0].delete_run(deleted.run_id)
    for run_id in (deleted.run_id, "0" * 32, "x y"):
        sink = started(store, run_id=run_id)
        assert sink.run_id != run_id and sink.complete


def test_an_experiment_that_another_run_makes_at_the_same_time(store: Path) -> None:
    sink = started(store)
    client, _ = read(sink)
    asked: list[str] = []

    class Late:
        """The real client, but its first look comes before the other run's experiment exists."""

        def get_experiment_by_name(self, name: str) -> Any:
            asked.append(name)
            return None if len(asked) == 1 else client.get_experiment_by_name(name)

        create_experiment = client.create_experiment

    late: Any = Late()
    assert sink._experiment_id(late) == client.get_experiment_by_name("k").experiment_id
    assert asked == ["k", "k"]


FRESH = """if True:
    import sys
    from pathlib import Path
    from konomi.runs.mlflow import MlflowSink
    sink = MlflowSink("k", "r", {"a": 1}, Path(sys.argv[1]), print)
    sink.start()
    sink.log(1, {"m": 1.0})
    sink.end("FINISHED")
    assert sink.complete
"""
"""A run, in a process of its own."""


def test_runs_that_start_together_share_a_new_store(tmp_path: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", FRESH, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in "ab"]
    assert [(process.communicate()[0], process.returncode) for process in both] == [("", 0)] * 2


def test_nothing_global_is_changed(store: Path) -> None:
    environment = dict(os.environ)
    started(store).end("FINISHED")
    levels = [logging.getLogger(name).level for name in ("mlflow", "alembic", "urllib3", "sqlalchemy")]
    assert dict(os.environ) == environment
    assert logging.CRITICAL not in levels
    import mlflow

    assert mlflow.active_run() is None and str(store) not in mlflow.get_tracking_uri()


def test_no_telemetry_and_no_words_in_a_fresh_process(store: Path) -> None:
    code = FRESH + "    from mlflow.telemetry import get_telemetry_client\n    assert get_telemetry_client() is None\n"
    off = ("CI", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS")
    environment = {name: value for name, value in os.environ.items() if name not in off}
    done = subprocess.run([sys.executable, "-c", code, str(store)], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def use_a_dead_sink(sink: MlflowSink, folder: Path) -> None:
    for update in range(1, 200):
        sink.log(update, {"m": 1.0})
    sink.artifact(folder)
    sink.end("FAILED")
    assert not sink.complete


def test_an_address_that_never_answers_is_asked_a_few_times_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    warnings: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as hole:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(hole.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take)
        thread.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{hole.getsockname()[1]}")
        sink = started(tmp_path, warnings.append)
        use_a_dead_sink(sink, tmp_path)
        hole.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in taken:
            connection.close()
    assert len(warnings) == 1
    # one attempt at the start, one at the end; each asks twice, and waits as long as the setting says
    assert len(taken) <= 4
    assert 2 * 2 * int(ENVIRONMENT["MLFLOW_HTTP_REQUEST_TIMEOUT"]) < 15 > PATIENCE


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("konomi.runs.mlflow.PATIENCE", 0.0)
    sink = started(tmp_path, lambda _: None)
    for update in range(5):
        sink.log(update, {"m": 1.0})
    assert sink._waiting == []  # given up: nothing is kept for later


ADDRESSES = (
    "http://me:secret@127.0.0.1:9",  # nobody listens
    "sqlite:///{folder}/file/x.db",  # a file where a directory has to be
    "sqlite:///{folder}",  # a directory where the file has to be
    "sqlite:///{folder}/file",  # not a database
    "postgresql://127.0.0.1:9/x",
    "postgresql://no-port/x",  # no driver
    "{folder}/mlruns",  # the old file store
    "nonsense://x",
    "sqlite:///{folder}/newer.db",
)


def test_an_address_that_cannot_be_a_store_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], store: Path
) -> None:
    (tmp_path / "file").write_text("no database" * 100, encoding="utf-8")
    started(store).end("FINISHED")
    with sqlite3.connect(store / "mlflow.db") as old, sqlite3.connect(tmp_path / "newer.db") as new:
        old.backup(new)
        new.execute("UPDATE alembic_version SET version_num = 'of the future'")
    old.close()
    new.close()
    for address in ADDRESSES:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(folder=tmp_path))
        warnings: list[str] = []
        use_a_dead_sink(started(tmp_path, warnings.append), tmp_path)
        (warning,) = warnings
        assert warning.startswith("MLflow at ") and "secret" not in warning, warning
        assert "cannot be used (" in warning and "metrics.jsonl" in warning and "MLFLOW_TRACKING_URI" in warning, warning
        assert capfd.readouterr() == ("", ""), address


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "log.txt", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                try:
                    with urllib.request.urlopen(f"{address}/health", timeout=1):
                        break
                except OSError:
                    assert process.poll() is None, (folder / "log.txt").read_text(encoding="utf-8")
                    time.sleep(0.1)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_a_real_server_holds_everything(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    sink = started(tmp_path, params=PARAMS | {"empty": ""}, run_id="0" * 32)
    log_a_run(sink, tmp_path)
    sink.end("FAILED")
    check_the_run(sink)
    run = read(sink)[1]
    assert run.info.status == "FAILED" and len(run.data.params) == 235 and run.data.params["long"] == "あ" * 6000
    again = started(tmp_path, params=PARAMS, run_id=sink.run_id)
    assert again.run_id == sink.run_id
    again.end("FINISHED")
    assert read(again)[1].info.status == "FINISHED"


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_what_could_not_be_sent_is_sent_when_the_server_is_back(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    warnings: list[str] = []
    sink = started(tmp_path, warnings.append, params={"a": 1})
    sink.log(1, {"m": 1.0})
    sink._uri = server  # the same address, as it were, now with a server behind it
    sink.log(2, {"m": 2.0})
    assert not sink.complete and len(warnings) == 1  # too soon after the failure
    sink.end("FINISHED")
    client, run = read(sink)
    assert history(client, sink.run_id, "m") == [(1, 1.0), (2, 2.0)]
    assert run.data.params == {"a": "1"} and run.info.status == "FINISHED"
    assert capfd.readouterr() == ("", "")


# the other sinks


def test_the_sinks_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sink_names(StageConfig()) == ["mlflow"]
    assert sink_names(StageConfig(mlflow=False)) == sink_names(StageConfig(sinks=())) == []
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # not installed
        with pytest.raises(ConfigError, match=rf'{name} is not installed; pip install "konomi\[{name}\]"'):
            sink_names(StageConfig(sinks=("mlflow", name)))
        monkeypatch.delitem(sys.modules, name)
        (tmp_path / name).mkdir()  # where one of them wrote before
        if not any(metadata.distributions(name=name)):
            with pytest.raises(ConfigError, match="is not installed"):
                sink_names(StageConfig(sinks=(name,)))


def test_tensorboard_has_every_metric(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunDir.create(tmp_path, "r", {"ppo": {"lam": 0.95}}, seed=0)
    for update in (1, 2):  # the second time as a run that is resumed
        sinks = open_sinks(StageConfig(mlflow=False, sinks=("tensorboard",)), run, pytest.fail, "prompts")
        assert sinks.address is None
        sinks.log(update, {"objective/kl": update / 4, "nan": math.nan, "none": None, "time": 5.0, "update": update})
        sinks.artifacts(run.path / "config.json")
        sinks.end("FINISHED")
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["objective/kl"]
    assert [(event.step, event.value) for event in events.Scalars("objective/kl")] == [(1, 0.25), (2, 0.5)]
