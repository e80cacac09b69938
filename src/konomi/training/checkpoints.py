"""Which checkpoints of a run are kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from konomi.errors import RunError
from konomi.files import writing
from konomi.training.ppo import PPOTrainer


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
                    raise RunError(f"{error}. No whole checkpoint is left in {self.directory}") from error
                warn(f"{error}. The one before it is tried")
        return None

    def save(self, trainer: PPOTrainer) -> None:
        """Write the trainer's state."""
        with writing(self.directory):
            self.directory.mkdir(exist_ok=True)
            for left in self.directory.glob(".update-*"):  # of a save that was killed
                shutil.rmtree(left)
        trainer.save(self.directory / f"update-{trainer.update:05d}")  # replaces a damaged one

    def prune(self, measured: int) -> None:
        """Keep the newest good ones and all that are newer; the policy after update ``measured`` - 1 is good."""
        good = [path for update, path in self.all() if update < measured]
        for path in good[: -self.keep]:
            shutil.rmtree(path)

    def drop_from(self, update: int) -> None:
        """Remove the checkpoints of ``update`` and later: their policy is over the KL cap."""
        for number, path in self.all():
            if number >= update:
                shutil.rmtree(path)
