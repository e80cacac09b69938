"""Settings of the whole suite, before torch is imported."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

# the models here have some ten thousand weights: threads only wait for each other, and the machine may be shared
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a shell starts what runs in the background with SIGINT ignored, and so would be every process that a test starts and interrupts
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Let a test choose its precision: Accelerate keeps the first one of a process and refuses another."""
    from accelerate.state import AcceleratorState, GradientState

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield
    reset()
