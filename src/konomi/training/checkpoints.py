"""The checkpoints of a run: which are kept, which is loaded. What is in one: `konomi.training.checkpoint_files`."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from konomi.errors import RunError
from konomi.files import remove_drafts, writing
from konomi.runs.processes import is_main, wait
from konomi.training.checkpoint_files import STATE_FILE


class Checkpoints:
    """The checkpoints of a run. One is *good* once the KL of its policy was measured to be under the cap."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep

    def all(self) -> list[tuple[int, Path]]:
        """(update, path), oldest first."""
        paths = self.directory.glob("update-*") if self.directory.is_dir() else iter(())
        numbered = ((path.name.removeprefix("update-"), path) for path in paths)
        return sorted((int(number), path) for number, path in numbered if re.fullmatch("[0-9]+", number))

    def load_newest(self, load: Callable[[Path], None], warn: Callable[[str], None]) -> int | None:
        """Load the newest complete checkpoint and return its update; None: there are no checkpoints.

        Raises:
            RunError: there are some, and none is complete.
        """
        saved = self.all()
        for left, (update, path) in zip(reversed(range(len(saved))), reversed(saved), strict=True):
            try:
                load(path)
                return update
            except RunError as error:
                if left == 0:
                    raise RunError(f"{error}. No complete checkpoint is left in {self.directory}") from error
                warn(f"{error}. The one before it is tried")
        return None

    def save(self, update: int, save: Callable[[Path], None]) -> None:
        """Have ``save``, which all processes call, write the checkpoint of an update."""
        self.make()
        save(self.directory / f"update-{update:05d}")  # replaces a damaged one

    def save_best(self, save: Callable[[Path], None]) -> None:
        """Have ``save`` write the best checkpoint so far: it stays until there is a better one."""
        self.make()
        save(self.best)

    @property
    def best(self) -> Path:
        """Where `save_best` writes."""
        return self.directory / "best"

    def make(self) -> None:
        """Make the directory, and remove what a save that was killed has left there; a best one that it had moved comes back."""
        if not is_main():
            return
        with writing(self.directory):
            self.directory.mkdir(exist_ok=True)
            remove_drafts(self.directory)

    def prune(self, measured: int) -> None:
        """Keep the newest good ones and all that are newer; the policy after update ``measured`` - 1 is good."""
        if not is_main():
            return
        good = [path for update, path in self.all() if update < measured]
        for path in good[: -self.keep]:
            shutil.rmtree(path)

    def clear(self) -> None:
        """Remove them all: a training that is finished needs none."""
        if not is_main():
            return
        shutil.rmtree(self.directory, ignore_errors=True)

    def drop_from(self, update: int) -> None:
        """Remove the checkpoints of ``update`` and later: their policy is over the KL cap. Afterwards no process finds them."""
        if is_main():
            for number, path in self.all():
                if number >= update:
                    shutil.rmtree(path)
            if self.best.is_dir() and _update_of(self.best) >= update:
                shutil.rmtree(self.best)
        wait()


def _update_of(checkpoint: Path) -> float:
    """The update of a PPO checkpoint; infinity if it is damaged."""
    try:
        return float(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["update"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
