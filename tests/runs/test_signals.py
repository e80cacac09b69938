"""Signals that come at an awkward moment."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from typing import Any

import pytest

from konomi.runs.console import PlainObserver
from konomi.runs.signals import stop_on_signal


class Interrupted(io.RawIOBase):
    """A stream during whose first write a signal comes; ``all_told`` is set once the answer to it is written."""

    def __init__(self) -> None:
        self.text, self.all_told = b"", threading.Event()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.text += bytes(data)
        if len(self.text) == len(bytes(data)):
            os.kill(os.getpid(), signal.SIGTERM)
        if b"Ctrl-C again" in self.text:
            self.all_told.set()
        return len(bytes(data))


def test_a_signal_in_the_middle_of_a_line_is_answered_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Interrupted()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", line_buffering=True))
    observer = PlainObserver()
    with stop_on_signal(observer.stopping) as stop, stop.patience():
        observer.say("update 1/7")
        assert raw.all_told.wait(20)
    assert stop.signal == "SIGTERM"
    assert raw.text.startswith(b"update 1/7\n")
