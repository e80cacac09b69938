"""What a machine does to a run: directories that cannot be written, locks, a clock that jumps, sleep, services that go away."""

from __future__ import annotations

import ast
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import konomi as package
from command_line import konomi, lines_of, sets, started
from furnished import JOBS
from test_outside import save_bpe

SOURCES = Path(package.__file__).parent


def without_clock(run: Path | str) -> list[dict[str, Any]]:
    clock = ("time", "memory/", "episodes/per_second", "tokens/per_second")
    return [{k: v for k, v in row.items() if not k.startswith(clock)} for row in lines_of(Path(run) / "metrics.jsonl")]


def status(run: Path | str) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(Path(run, "run.json").read_text("utf-8"))
    return info


# -- directories that cannot be written --------------------------------------------------------------------------------


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def permissions_bind() -> Iterator[None]:
    """Within, this thread may no more than the permissions of files say, even where root runs the tests."""
    if os.geteuid() != 0:
        yield
        return
    libc, header, sets_ = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0), (_Capabilities * 2)()
    if libc.capget(ctypes.byref(header), sets_):
        pytest.skip("root, and capabilities cannot be read")
    before = sets_[0].effective
    sets_[0].effective &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(ctypes.byref(header), sets_):
        pytest.skip("root, and capabilities cannot be laid down")
    try:
        yield
    finally:
        sets_[0].effective = before
        assert libc.capset(ctypes.byref(header), sets_) == 0


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """All directories under ``directory`` take no new file and lose none; files in them cannot be changed."""
    places = [directory, *directory.rglob("*")]
    modes = {place: place.stat().st_mode for place in places}
    for place in places:
        place.chmod(modes[place] & ~0o222)
    try:
        with permissions_bind():
            yield
    finally:
        for place in places:
            place.chmod(modes[place])


def files_in(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if "__pycache__" not in path.parts)


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities of Linux")
def test_a_directory_that_cannot_be_written_is_one_message(world: Path) -> None:
    konomi("ppo", "ppo.toml", *sets("run.name=made"), code=0)
    save_bpe(world / "bpe")
    stopped = world / "runs" / "made" / "run.json"
    stopped.write_text(json.dumps({**status("runs/made"), "status": "stopped"}), encoding="utf-8")
    (world / "closed").mkdir()
    (world / "closed" / "file").write_text("", encoding="utf-8")
    commands = {
        **{f"{verb} {verb}.toml --out closed": "closed" for verb in ("ppo", "sft", "reward", "sample", "pick", "judge")},
        "ppo ppo.toml --out closed/deeper": "closed/deeper",
        "run pipe.toml --out closed": "closed/tiny",
        "ppo --resume runs/made": "runs/made",
        "compare runs/made": "runs/made",
        "report runs/made": "runs/made",
        "trim bpe --scripts ja --out closed/trimmed": "closed/trimmed",
        "convert pairs.jsonl closed/out.jsonl --to rankings": "closed/out.jsonl",
        "label closed/project --candidates candidates.jsonl": "closed/project",
    }
    before = files_in(world)
    with read_only(world / "closed"), read_only(world / "runs"):
        for command, place in commands.items():
            result = konomi(*command.split())
            (last,) = [line for line in result.stderr.splitlines() if line.startswith("konomi: ")] or [""]
            assert result.exit_code in (1, 2), (command, result.output, result.exception)
            assert place in last and "Permission denied" in last, (command, last)
            assert "Traceback" not in result.stderr, command
            assert files_in(world) == before, command
    konomi("report", "runs/made", code=0)


# -- locks -------------------------------------------------------------------------------------------------------------


def test_a_lock_that_nobody_holds_holds_nobody_up(world: Path) -> None:
    """What a dead process, or one of another host, has left behind: a file, the number of a process that is another's now."""
    konomi("ppo", "ppo.toml", *sets("run.name=left", "ppo.episodes=32"), code=0)
    run = world / "runs" / "left"
    info = status(run)
    (run / "run.json").write_text(json.dumps({**info, "status": "running", "pid": os.getppid()}), encoding="utf-8")
    (run / ".lock").write_text(f"{os.getppid()}\nanother-host\n", encoding="utf-8")
    konomi("ppo", "--resume", "runs/left", code=0)
    assert status(run)["status"] == "finished"


# -- clocks ------------------------------------------------------------------------------------------------------------

WALL_CLOCK = {
    "jobs/doctor/reward_models.py", "labelling/people.py", "labelling/project.py", "runs/directory.py", "runs/mlflow.py",
    "web/api.py", "web/chat.py", "web/decisions.py", "web/serve.py",
}  # fmt: skip
"""Files that record when something happened, or compare with such records; nothing else reads a clock that can be set."""


def test_durations_are_by_a_clock_that_cannot_be_set() -> None:
    readers = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"):
                readers.add(path.relative_to(SOURCES).as_posix())
    assert readers == WALL_CLOCK


def test_a_clock_that_jumps_by_hours_changes_nothing_but_the_times(world: Path) -> None:
    konomi("ppo", "ppo.toml", *sets("run.name=steady"), code=0)
    real, asked = time.time, [0]

    def jumping() -> float:
        asked[0] += 1
        return real() + (-5, 3, -20, 30)[asked[0] % 4] * 3600

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", jumping)
        result = json.loads(konomi("ppo", "ppo.toml", "--json", *sets("run.name=jumping"), code=0).stdout)
    assert asked[0] >= 4 and without_clock("runs/jumping") == without_clock("runs/steady")
    times = [row["time"] for row in lines_of("runs/jumping/metrics.jsonl")]
    assert times != sorted(times) and 0 < result["seconds"] < 3600
    assert all(0 <= row["time/ppo/total"] < 3600 for row in lines_of("runs/jumping/metrics.jsonl"))
    konomi("report", "runs/jumping", code=0)


# -- sleep, and a service that goes away -------------------------------------------------------------------------------


class Judge:
    """A service that counts letters. At its ``asleep``-th request the machine of who asks sleeps for longer than any patience;
    after its ``down``-th nothing answers at its address for a while, as when it is started again."""

    def __init__(self, asleep: int, down: int) -> None:
        self.requests, self.asleep, self.down, self.pid = 0, asleep, down, 0
        self.events: list[str] = []
        self.start(0)

    def start(self, port: int) -> None:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.requests += 1
                if judge.requests == judge.asleep:
                    judge.sleep()
                data = json.dumps({"scores": [text.count("a") for text in body["responses"]]}).encode()
                if judge.requests == judge.down:
                    threading.Thread(target=judge.restart).start()
                    data = data[:1]  # its last words are cut short
                self.send_response(200)
                self.send_header("Content-Length", "10000" if len(data) == 1 else str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def sleep(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        time.sleep(1.5)
        self.events.append("slept")
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        time.sleep(0.7)
        self.events.append("back")
        self.start(self.port)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_sleep_and_a_judge_that_is_away_for_a_while_change_nothing(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    konomi("ppo", "ppo.toml", *sets("run.name=calm"), code=0)
    judge = Judge(asleep=4, down=6)
    asks = f'kind = "http"\nurl = "http://127.0.0.1:{judge.port}/"\ntimeout = 1.0\nretries = 8\nbackoff = 0.1\n'
    own = 'kind = "function"\nname = "taste.py:count_a"\n'
    assert own in JOBS["ppo.toml"]
    (world / "asks.toml").write_text(f"{JOBS['ppo.toml'].replace(own, asks)}mlflow = false\n", encoding="utf-8")
    try:
        with started("ppo", "asks.toml", *sets("run.name=restless")) as process:
            judge.pid = process.pid
            _, said = process.communicate(timeout=120)
    finally:
        judge.stop()
    assert process.returncode == 0, said
    assert judge.events == ["slept", "back"] and status("runs/restless")["status"] == "finished"
    assert without_clock("runs/restless") == without_clock("runs/calm")
