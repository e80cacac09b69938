"""Starting a test file or the command line in several processes, as a launcher does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def launched(count: int, *arguments: str) -> list[str]:
    """The command that starts a Python file, or ``-m`` and a module, in several processes on the processor."""
    # `accelerate launch --cpu` starts one process only where there is no MPI
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), *arguments]


def environment() -> dict[str, str]:
    """The variables for it."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
