"""The run directory: what is written, what a kill leaves, and what is refused."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from konomi import files
from konomi.cli import app
from konomi.config import SFTJob
from konomi.engine import device
from konomi.errors import ConfigError, DataError, RunError
from konomi.jobs.common import new_run
from konomi.runs import environment
from konomi.runs.directory import RunDir

CONFIG = {"model": {"name": "m"}, "ppo": {"kl_target": 6.0}}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "runs", "first", CONFIG, seed=7, extra={"precision": "fp32"})


def test_create_writes_what_the_run_is(run: RunDir) -> None:
    info = run.info
    assert run.config == CONFIG
    start = (info["version"], info["name"], info["status"], info["reason"], info["ended"])
    assert start == (1, "first", "running", None, None)
    assert (info["seed"], info["pid"], info["precision"]) == (7, os.getpid(), "fp32")
    assert {"konomi", "python", "torch", "transformers", "mlflow"} <= set(info["versions"])
    assert set(info["machine"]) == {"platform", "cpu", "cpus"} and info["machine"]["cpu"]
    assert info["started"].endswith("+00:00")
    names = [p.name for p in (run.checkpoints, run.model, run.compare, run.report, run.metrics, run.samples)]
    assert names == ["checkpoints", "model", "compare.json", "report.html", "metrics.jsonl", "samples.jsonl"]
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "run.json"]


def test_a_gpu_is_named_and_its_memory_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from konomi.report.names import machine_line

    assert "gpu" not in environment.machine(device.gpu_name()) and device.peak_memory_gb() > 0.01
    gpu = {"is_available": True, "is_initialized": False, "get_device_name": "NVIDIA H100", "max_memory_allocated": 3_000_000}
    for name, value in gpu.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert machine_line(environment.machine(device.gpu_name())).startswith("NVIDIA H100, ")
    assert device.peak_memory_gb() > 0.01  # nothing was done on it yet
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert device.peak_memory_gb() == 0.003


def test_the_memory_of_a_run_is_not_that_of_the_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    forgotten: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: forgotten.append("peak"))
    new_run(SFTJob(data={"texts": "texts.txt"}), tmp_path, {"inputs": {}})
    assert not forgotten  # no GPU
    for name in ("is_available", "is_initialized"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    new_run(SFTJob(data={"texts": "texts.txt"}), tmp_path, {"inputs": {}})
    assert forgotten == ["peak"]


def test_names_and_places(tmp_path: Path) -> None:
    for name in ("", ".", "..", "a/b", "a\\b", "C:", "a\nb", "a\0b"):
        with pytest.raises(ConfigError, match="one plain directory name"):
            RunDir.create(tmp_path, name, {}, seed=0)
    assert list(tmp_path.iterdir()) == []
    from_the_time = {RunDir.create(tmp_path, None, {}, seed=0).path.name for _ in range(4)}
    assert len(from_the_time) == 4 and all(name[8] == "-" for name in from_the_time)
    (tmp_path / "empty").mkdir()
    before = (tmp_path / "empty").stat().st_ino
    RunDir.create(tmp_path, "empty", {}, seed=0)
    assert (tmp_path / "empty").stat().st_ino == before  # a volume may be mounted there, or its rights be set
    RunDir.create(tmp_path, "好" * 80, {}, seed=0)
    known = r"is not empty; choose another run\.name, .* It holds a run; to see how to resume it: konomi doctor \S+/empty$"
    with pytest.raises(ConfigError, match=known):
        RunDir.create(tmp_path, "empty", {}, seed=0)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    assert RunDir.create(tmp_path, "link", {}, seed=0).info["name"] == "link" and (tmp_path / "elsewhere/run.json").is_file()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be made"):
        RunDir.create(tmp_path / "file", "run", {}, seed=0)
    with pytest.raises(ConfigError, match=r"file: exists and is not a directory; choose another run\.name"):
        RunDir.create(tmp_path, "file", {}, seed=0)


def test_of_a_run_that_ends_while_it_is_made_nothing_is_left(tmp_path: Path) -> None:
    """A kill cannot remove the draft, which is hidden; there too the name is free."""
    seen: list[list[str]] = []

    class Ends(dict[str, str]):
        def items(self) -> Any:
            seen.append([path.name for path in tmp_path.iterdir()])
            raise KeyboardInterrupt

    for name in ("one", None):
        with pytest.raises(KeyboardInterrupt):
            RunDir.create(tmp_path, name, {"ppo": Ends()}, seed=0)
    assert all(len(names) == 1 and names[0].startswith(".") for names in seen) and not list(tmp_path.iterdir())


def test_of_runs_that_begin_at_once_in_one_directory_one_is_made(tmp_path: Path) -> None:
    for number in range(5):
        together, made, refusals = threading.Barrier(6), list[int](), list[str]()

        def begin(seed: int, number: int = number, together: Any = together, made: Any = made, refusals: Any = refusals) -> None:
            together.wait()
            try:
                RunDir.create(tmp_path, f"run-{number}", {"seed": seed}, seed=seed)
                made.append(seed)
            except ConfigError as error:
                refusals.append(str(error))

        threads = [threading.Thread(target=begin, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(made), len(refusals)) == (1, 5)
        assert all("exists and is not empty" in each for each in refusals)
        run = RunDir.open(tmp_path / f"run-{number}")
        assert run.config == {"seed": made[0]} and run.info["seed"] == made[0]


def test_git_commit_and_dirty_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git() is None

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *arguments], check=True, capture_output=True)

    git("init")
    assert environment.git() is None  # no commit yet
    Path("a").write_text("1", encoding="utf-8")
    git("add", "a")
    git("commit", "-m", "first")
    info = RunDir.create(tmp_path / "runs", "r", {}, seed=0).info["git"]  # untracked files do not make it dirty
    assert len(info["commit"]) == 40 and info["dirty"] is False
    Path("a").write_text("2", encoding="utf-8")
    found = environment.git()
    assert found is not None and found["dirty"] is True
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git() is None  # no git at all


def test_open_reads_back(run: RunDir) -> None:
    before = {p: p.read_bytes() for p in run.path.iterdir()}
    again = RunDir.open(str(run.path))
    assert again.config == CONFIG and again.info == run.info
    assert again.read_metrics() == [] and again.read_samples() == [] and again.read_json("compare.json") is None
    assert {p: p.read_bytes() for p in run.path.iterdir()} == before
    (run.path / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json: missing"):
        _ = run.config


def test_open_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        RunDir.open(tmp_path / "none")
    with pytest.raises(DataError, match="not a run"):
        RunDir.open(tmp_path)
    for content, message in (
        ("{torn", "cannot be read as JSON"),
        ("[]", "no version number"),
        ('{"status": "running"}', "no version number"),
        ('{"version": 2}', r"newer konomi \(format 2, this one reads up to 1\); update konomi"),
    ):
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            RunDir.open(tmp_path)


def test_status(run: RunDir) -> None:
    run.set_status("failed", "the reward raised")
    assert (run.info["status"], run.info["reason"]) == ("failed", "the reward raised")
    assert run.info["ended"] >= run.info["started"]
    run.set_status("running")
    assert (run.info["status"], run.info["reason"], run.info["ended"]) == ("running", None, None)
    run.note(mlflow_run_id="abc")
    assert run.info["mlflow_run_id"] == "abc" and run.info["seed"] == 7


def test_files_are_valid_json_with_null_for_what_is_not_finite(run: RunDir) -> None:
    import numpy as np

    run.append_metrics(1, {"episodes": 64, "a": np.float32(1.5), "b": math.nan, "c": math.inf, "time": 5.0})
    run.append_metrics(2, {"a": 2.5})
    lines = run.metrics.read_text(encoding="utf-8").splitlines()
    strict = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert strict[0] == {"update": 1, "time": 5.0, "episodes": 64, "a": 1.5, "b": None, "c": None}
    assert strict[1]["update"] == 2 and strict[1]["time"] > 1e9
    assert run.read_metrics() == strict
    run.write_json("x.json", {"path": Path("a") / "b", "list": (1, None, True), 3: math.inf})
    assert run.read_json("x.json") == {"path": str(Path("a") / "b"), "list": [1, None, True], "3": None}


def test_samples_keep_every_text(run: RunDir) -> None:
    texts = ["好き\n二行目", "\u2028 \r \x00 \x85", "a\ud800b", '"quoted" \\ud83d', "😀"]
    run.append_samples(3, [{"prompt": t, "response": t, "score": 1.0, "kl": math.nan} for t in texts])
    assert run.samples.read_bytes().count(b"\n") == len(texts)
    run.samples.read_bytes().decode("utf-8", "strict")
    found = run.read_samples()
    assert [s["prompt"] for s in found] == [s["response"] for s in found] == texts
    assert [(s["update"], s["kl"]) for s in found] == [(3, None)] * 5


def test_a_torn_last_line_is_passed_over_and_cut_on_append(run: RunDir) -> None:
    run.append_samples(1, [{"prompt": "一"}])
    first = run.samples.read_bytes()
    run.append_samples(2, [{"prompt": "二"}])
    second = run.samples.read_bytes()[len(first) :]
    for cut in range(1, len(second)):
        torn = first + second[: len(second) - cut]
        run.samples.write_bytes(torn)
        again = RunDir.open(run.path)
        kept = [{"update": 1, "prompt": "一"}] + ([{"update": 2, "prompt": "二"}] if cut == 1 else [])
        assert again.read_samples() == kept
        assert run.samples.read_bytes() == torn  # reading mends nothing: the writer may still be at it
        again.append_samples(3, [{"prompt": "三"}])
        assert again.read_samples() == RunDir.open(run.path).read_samples() == [*kept, {"update": 3, "prompt": "三"}]
        assert run.samples.read_bytes().endswith(b"\n")


def test_a_damaged_line_in_the_middle_is_told(run: RunDir) -> None:
    run.metrics.write_text('{"update": 1}\nnonsense\n{"update": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: not a JSON object"):
        run.read_metrics()


def test_truncate_after(run: RunDir) -> None:
    for update in range(1, 6):
        run.append_metrics(update, {"a": update, "time": 0.0})
        run.append_samples(update, [{"prompt": "p"}, {"prompt": "q"}])
    again = RunDir.open(run.path)
    again.truncate_after(3)
    assert [m["update"] for m in again.read_metrics()] == [1, 2, 3]
    assert [s["update"] for s in again.read_samples()] == [1, 1, 2, 2, 3, 3]
    untouched = again.metrics.stat().st_mtime_ns
    again.truncate_after(3)
    assert again.metrics.stat().st_mtime_ns == untouched
    again.append_metrics(4, {"a": 40.0, "time": 0.0})
    assert [m["a"] for m in again.read_metrics()] == [1, 2, 3, 40]
    again.truncate_after(0)
    assert again.read_metrics() == [] == again.read_samples()


def test_writing_where_nothing_can_be_written_is_told(run: RunDir) -> None:
    run.metrics.mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be written"):
        run.append_metrics(1, {})
    (run.path / "x.json").mkdir()
    with pytest.raises(RunError, match=r"x\.json: cannot be written"):
        run.write_json("x.json", {})
    assert [p.name for p in run.path.iterdir() if p.name.endswith(".tmp")] == []
    with pytest.raises(RunError, match="cannot be written"):
        files.write_atomic(run.path / "run.json" / "below", b"")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_writer_leaves_files_that_can_be_read(tmp_path: Path) -> None:
    code = """
        import sys
        from konomi.runs.directory import RunDir
        run = RunDir.create(sys.argv[1], "r", {}, seed=0)
        for update in range(1, 10**9):
            run.append_metrics(update, {"x": 1 / 3} | {f"m{i}": 1 / 7 for i in range(200)})
            run.append_samples(update, [{"prompt": "長い" * 500}] * 4)
            run.note(update=update)
            print(update, flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 20:
            pass
        process.send_signal(signal.SIGKILL)
    run = RunDir.open(tmp_path / "r")
    updates = [m["update"] for m in run.read_metrics()]
    assert updates == list(range(1, len(updates) + 1)) and len(updates) >= 20
    assert run.info["update"] >= 20 and run.read_samples()
    run.truncate_after(10)
    run.append_metrics(11, {})
    assert [m["update"] for m in run.read_metrics()] == list(range(1, 12))


def test_a_run_of_another_verb_is_named(tmp_path: Path) -> None:
    for section, verb in (("sft", "sft"), ("train", "reward"), ("sample", "sample")):
        run = RunDir.create(tmp_path, verb, {section: {}}, seed=0)
        assert run.verb == verb
        for command in (["compare", str(run.path)], ["ppo", "--resume", str(run.path)]):
            answer = CliRunner().invoke(app, command)
            assert answer.exit_code == 2 and f"a run of `konomi {verb}`; give one of `konomi ppo`" in answer.stderr, answer.stderr
