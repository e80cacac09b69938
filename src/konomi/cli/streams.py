"""The standard streams, and the signals that end a command."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any, TextIO

from konomi.errors import RunError
from konomi.runs.signals import ending_signals


class _Output(io.RawIOBase):
    """A standard stream whose reader may go away or whose disk may fill: stderr then drops its output, and a command that writes
    its result to stdout fails."""

    def __init__(self, fd: int, dropped: bool) -> None:
        self._fd, self._dropped = fd, dropped

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: Any) -> int:
        try:
            return os.write(self._fd, data)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                _to_nowhere(self._fd)  # later writes and the final flush no longer fail
            if self._dropped:
                return len(data)
            if isinstance(error, (BlockingIOError, BrokenPipeError)):
                raise
            raise RunError(f"standard output: cannot be written: {error.strerror}") from None


def set_streams() -> None:
    """Let stdout and stderr take any character, and survive a failure of stderr."""
    sys.stdout, sys.stderr = (_robust(stream, dropped) for stream, dropped in ((sys.stdout, False), (sys.stderr, True)))


def _robust(stream: TextIO, dropped: bool) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):  # closed, or replaced
        return stream
    stream.flush()
    if sys.platform != "win32":  # its consoles take no bytes
        raw = _Output(stream.fileno(), dropped)
        lines = stream.line_buffering or stream.write_through  # python -u: nothing waits in a buffer
        stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding=stream.encoding, line_buffering=lines)
    stream.reconfigure(errors="backslashreplace")  # Japanese on a console of another encoding must not end the run
    return stream


def stdin_lines() -> Iterable[str]:
    """What is typed or piped in; bytes that are no text of the terminal's encoding are replaced."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    return sys.stdin or ()


def _to_nowhere(fd: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def end_on_signals() -> None:
    """Let other signals end a command as Ctrl-C does, which removes half-written files."""
    for number in ending_signals():
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(f"stopped at once by {signal.Signals(number).name}")
