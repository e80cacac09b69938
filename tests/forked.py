"""Processes that begin as forks of one that has everything loaded: Python, torch and transformers take seven seconds each time.

A fork is a process like any other, with its own signals, streams and exit code, and whoever asks for it is its parent: Linux
hands a process whose parent is gone to the nearest ancestor that asks for such. Elsewhere processes are started as usual.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
from typing import Any

LOADED = (
    "konomi.cli", "konomi.jobs.ppo", "konomi.jobs.sft", "konomi.jobs.pipeline", "konomi.training.sft", "konomi.models.load",
    "transformers.trainer", "transformers.models.gpt2.modeling_gpt2", "konomi.web.serve",
)  # fmt: skip
SET_CHILD_SUBREAPER = 36
ONE_AT_A_TIME = threading.Lock()


class Forked(subprocess.Popen[str]):
    """``python -m MODULE ...`` or ``python -c CODE ...`` with the directory and the variables of this process."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        streams = rest[9:15]  # ends for the process and for us: of its input, its output, its errors
        own = [given if given != -1 else place for place, given in enumerate((streams[0], streams[3], streams[5]))]
        request = {"command": args[1:], "where": os.getcwd(), "variables": dict(os.environ)}
        libc = ctypes.CDLL(None)
        with ONE_AT_A_TIME:
            libc.prctl(SET_CHILD_SUBREAPER, 1)
            try:
                socket.send_fds(_parent(), [json.dumps(request).encode()], own)
                self.pid = int(_parent().recv(99))
            finally:
                libc.prctl(SET_CHILD_SUBREAPER, 0)
        self._child_created = True
        self._close_pipe_fds(*streams)  # type: ignore[attr-defined]


@functools.cache
def _parent() -> socket.socket:
    """A socket to the process that forks, which is started once."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(wire: socket.socket) -> tuple[str, str]:
    """Fork for each request. In the fork, return what it is to run."""
    for name in LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    while True:
        request, streams, *_ = socket.recv_fds(wire, 2**20, 3)
        if not request:
            os._exit(0)
        told, tells = os.pipe()
        if child := os.fork():
            os.close(tells)
            os.waitpid(child, 0)
            wire.send(os.read(told, 99))
            for each in (told, *streams):
                os.close(each)
        elif pid := os.fork():
            os.write(tells, str(pid).encode())
            os._exit(0)
        else:
            wire.close()
            os.close(told), os.close(tells)
            return _become(json.loads(request), streams)


def _become(request: dict[str, Any], streams: list[int]) -> tuple[str, str]:
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    os.chdir(request["where"])
    os.environ.clear()
    os.environ.update(request["variables"])
    kind, what, *arguments = request["command"]
    sys.path[0], sys.argv = request["where"], [kind, *arguments]
    return kind, what


if __name__ == "__main__":
    kind, what = _serve(socket.socket(fileno=int(sys.argv[1])))
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})
