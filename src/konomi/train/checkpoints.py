"""Which checkpoints of a run are kept."""

from __future__ import annotations

import shutil
from pathlib import Path

from konomi.train.ppo import PPOTrainer


class Checkpoints:
    """The checkpoints of a run. One is *good* once the KL of its policy was measured and found under the cap."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep

    def all(self) -> list[tuple[int, Path]]:
        """(update, path), oldest first."""
        found = self.directory.glob("update-*") if self.directory.is_dir() else iter(())
        return sorted((int(path.name.removeprefix("update-")), path) for path in found)

    def save(self, trainer: PPOTrainer) -> None:
        """Write the trainer's state."""
        self.directory.mkdir(exist_ok=True)
        for left in self.directory.glob(".update-*"):  # of a save that was killed
            shutil.rmtree(left)
        path = self.directory / f"update-{trainer.update:05d}"
        if not path.exists():
            trainer.save(path)

    def prune(self, measured: int) -> None:
        """Keep the newest good ones and all that are newer; the policy after update ``measured`` - 1 was found good."""
        good = [path for update, path in self.all() if update < measured]
        for path in good[: -self.keep]:
            shutil.rmtree(path)

    def drop_from(self, update: int) -> None:
        """Remove the checkpoints of ``update`` and later: their policy is over the KL cap."""
        for number, path in self.all():
            if number >= update:
                shutil.rmtree(path)
