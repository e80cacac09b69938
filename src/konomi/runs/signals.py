"""Stop by signal: at once, or at the next safe point."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from konomi.runs import processes


class Stop:
    """Whether a signal asked the job to stop. Within :meth:`patience` the first one is only recorded."""

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self.signal: str | None = None
        self.agreed = False
        """All processes of the job know of the signal."""
        self._patient, self._on_signal = False, on_signal

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Finish what is under way at a first signal; where an error ends it, what the error leads to."""
        self._patient = True
        yield
        self._patient = False

    def agree(self) -> None:
        """Let all processes of the job know of a signal that one of them got; each calls this at the same place of its work."""
        self.signal = next(filter(None, processes.gather(self.signal)), None)
        self.agreed = self.signal is not None

    def handle(self, number: int, _: FrameType | None) -> None:
        """The signal handler."""
        name = signal.Signals(number).name
        if self.signal or not self._patient:
            raise KeyboardInterrupt(f"stopped at once by {name}")
        self.signal = name
        # not here: the main thread may be halfway through a print, whose stream takes no second one from the same thread
        _thread.start_new_thread(self._on_signal, ())


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a command to end: SIGINT, SIGTERM, and SIGHUP (the terminal was closed) but under nohup."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


@contextmanager
def stop_on_signal(on_signal: Callable[[], None]) -> Iterator[Stop]:
    """Handle :func:`ending_signals`. A first one in patience calls ``on_signal``, in a thread of its own. Only the main thread
    can handle signals: in others this does nothing."""
    stop = Stop(on_signal)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.signal(number, stop.handle) for number in ending_signals()}
    try:
        yield stop
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
