"""The command line. Each verb imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import sys

from konomi.cli import config, convert, judge, label, models, ppo, reward, run, sample, sft
from konomi.cli.common import app
from konomi.environment import manage_memory

__all__ = ["app", "config", "convert", "judge", "label", "main", "models", "ppo", "reward", "run", "sample", "sft"]


def main() -> None:
    """Entry point of the ``konomi`` command."""
    manage_memory()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # Japanese on a console of another encoding must not end the run
            stream.reconfigure(errors="backslashreplace")
    app()
