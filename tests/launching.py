"""Starting a test file or the command line in several processes, as a launcher does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from command_line import child

TESTS = Path(__file__).resolve().parent


def launched(count: int, *arguments: str) -> list[str]:
    """The command that starts a Python file, or ``-m`` and a module, in several processes on the processor."""
    # `accelerate launch --cpu` starts one process only where there is no MPI
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), *arguments]


def environment() -> dict[str, str]:
    """The variables for it."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}


def run_in_processes(count: int, file: str, argument: str) -> None:
    """Run a test file in several processes as torchrun does, but that they are forks, which have everything loaded."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = f"import runpy, sys; sys.path[:0] = {sys.path!r}; sys.argv = [{file!r}, {argument!r}]; "
    code += f"runpy.run_path({file!r}, run_name='__main__')"
    with ExitStack() as stack:
        started = []
        for rank in range(count):
            with pytest.MonkeyPatch.context() as patch:
                for name, value in {
                    "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port,
                    "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1, "ACCELERATE_USE_CPU": "true",
                }.items():  # fmt: skip
                    patch.setenv(name, str(value))
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
                started.append(stack.enter_context(child([sys.executable, "-c", code], fork=True, **pipes)))
        printed = [process.communicate(timeout=200)[0] for process in started]
        assert [process.returncode for process in started] == [0] * count, "\n".join(each[-3000:] for each in printed)
