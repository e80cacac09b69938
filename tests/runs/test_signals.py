"""Stopping by signal: waited for, at once, in the middle of a line."""

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_collected_and_a_second_one_stops(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    heard = threading.Event()
    with pytest.raises(KeyboardInterrupt), stop_on_signal(heard.set) as stop, stop.patience():
        os.kill(os.getpid(), number)
        assert stop.signal == number.name and heard.wait(20)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal was ignored")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_hides_no_error() -> None:
    """Where one of several processes has ended, the launcher's signal comes while the others record why they end."""
    with pytest.raises(ZeroDivisionError), stop_on_signal(lambda: None) as stop:
        try:
            with stop.patience():
                raise ZeroDivisionError
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == "SIGTERM"


def test_a_signal_outside_of_the_updates_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), stop_on_signal(lambda: None):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was ignored")


def test_in_a_thread_signals_stay_as_they_are() -> None:
    seen: list[bool] = []

    def work() -> None:
        before = signal.getsignal(signal.SIGINT)
        with stop_on_signal(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT) == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
