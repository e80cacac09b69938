"""Processes that a test starts; none of them outlives it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process with text streams, killed at the end of the block if it still runs."""
    with subprocess.Popen(command, **{"text": True, "encoding": "utf-8", **options}) as process:
        try:
            yield process
        finally:
            process.kill()
