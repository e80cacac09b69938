"""The command line. Each verb imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import sys

from konomi.cli import doctor, jobs, label, models, ppo
from konomi.cli.common import app
from konomi.cli.streams import end_on_signals, set_streams
from konomi.engine.device import manage_memory
from konomi.errors import RunError

__all__ = ["app", "doctor", "jobs", "label", "main", "models", "ppo"]


def main() -> None:
    """Entry point of the ``konomi`` command."""
    manage_memory()
    set_streams()
    end_on_signals()
    try:
        app()
    except RunError as error:  # a verb reports its own: this is its help, which cannot be written
        sys.exit(f"konomi: {error}")
