"""The command line in tests: a call, settings as options, and what all mistakes have in common."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from forked import Forked
from konomi.cli import app


def konomi(*arguments: str, code: int | None = None, stdin: str | bytes | None = None) -> Result:
    """Call the command line. ``code``: the exit code that it has to have; ``stdin``: what is typed."""
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert code is None or result.exit_code == code, f"{arguments}\n{result.output}\n{result.exception!r}"
    return result


FRESH = {"env", "cwd", "start_new_session", "preexec_fn", "pass_fds"}
"""Options that only a process of its own from the beginning can have."""


@contextmanager
def child(command: Sequence[str], *, fork: bool = False, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process with text streams, killed at the end of the block if it still runs. ``fork``: see forked.py."""
    make = Forked if fork and sys.platform == "linux" and not FRESH & options.keys() else subprocess.Popen
    with make(command, **{"text": True, "encoding": "utf-8", **options}) as process:
        try:
            yield process
        finally:
            process.kill()


def started(*arguments: str, **options: Any) -> AbstractContextManager[subprocess.Popen[str]]:
    """The same in a process of its own, with pipes for what it prints."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return child([sys.executable, "-m", "konomi", *arguments], fork=True, **pipes | options)


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for what a running process does."""
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def sets(*settings: str) -> list[str]:
    """Settings as options."""
    return [word for each in settings for word in ("--set", each)]


def lines_of(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def write_rows(path: Path | str, rows: Iterable[Any]) -> str:
    """Write a JSONL file; return its name."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def assert_mistakes(world: Path, cases: Iterable[tuple[Sequence[str], Sequence[str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command, called in ``world``, ends with exit code 2 and a message with all of its words; nothing is written."""
    monkeypatch.chdir(world)
    before = sorted(path for path in world.rglob("*") if "__pycache__" not in path.parts)
    for arguments, words in cases:
        result = konomi(*arguments, code=2)
        assert [word for word in words if word not in result.stderr] == [], (arguments, result.stderr)
        assert "Traceback" not in result.stderr, arguments
        assert sorted(path for path in world.rglob("*") if "__pycache__" not in path.parts) == before, arguments
