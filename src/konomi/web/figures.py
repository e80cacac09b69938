"""Agreement, and how far the data goes: figures that take seconds once there are many answers.

They are computed in a process of their own, now and then, so that no answer waits for them:
``python -m konomi.web.figures PROJECT`` prints them as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from konomi.web.words import say

NEEDED_VOTES = 210
"""Decided votes from which on the exact sign test shows a true win rate of 60 % four times out of five."""


@dataclass(frozen=True)
class Found:
    """What was found at one moment.

    Attributes:
        comparison: people compare before and after; else they rank.
        comparisons: two texts and one person each, ties left out.
        needed: with how many of these the data begins to be enough.
        share, low, high, couples: of the agreement between people; None where no two have judged the same.
        people: by pseudonym: ``records``, ``others`` and ``oneself``: shares of pairs on which they agree. For the owner alone.
    """

    comparison: bool
    comparisons: int
    needed: int
    share: float | None = None
    low: float | None = None
    high: float | None = None
    couples: int = 0
    people: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def told(self, lang: str) -> dict[str, object]:
        """As the pages get it: ``agreement``, and ``enough`` with a sentence in the reader's language."""
        known = {name: getattr(self, name) for name in ("share", "low", "high", "couples")}
        key = "enough_votes" if self.comparison else "enough_some" if self.comparisons else "enough_none"
        if self.comparisons >= self.needed:
            key = "enough_votes_yes" if self.comparison else "enough_yes"
        sentence = say(key, lang, comparisons=f"{self.comparisons:,}", needed=f"{self.needed:,}")
        return {
            "agreement": None if self.share is None else known,
            "enough": {"comparisons": self.comparisons, "needed": self.needed, "sentence": sentence},
        }


def find(project: Path) -> Found:
    """The figures of a project as they are now. Its errors are those of the store."""
    from konomi.feedback.agreement import enough_comparisons, people
    from konomi.feedback.before_after import is_comparison
    from konomi.feedback.export import rankings
    from konomi.feedback.project import open_project

    with open_project(project).store() as store:
        exported = store.export()
    found, comparison = enough_comparisons(rankings(exported)), is_comparison(exported)
    each = {own["rater"]: _of_one(own) for own in people(rankings(exported, repeats=True))}
    needed = NEEDED_VOTES if comparison else found["needed"]
    said = found["agreement"]
    share = {"value": None, "low": None, "high": None} if said is None else said["share"]
    couples = 0 if said is None else said["couples"]
    return Found(comparison, found["comparisons"], needed, share["value"], share["low"], share["high"], couples, each)


def _of_one(own: Mapping[str, Any]) -> dict[str, Any]:
    shares = {name: None if own[name] is None else own[name]["share"]["value"] for name in ("others", "oneself")}
    return {"records": own["records"], **shares}


class Figures:
    """The latest figures of a project. They are found again when answers have come in, and not all the time."""

    def __init__(self, project: Path, every: float = 20.0) -> None:
        self.project = project
        self.every = every
        """Seconds between two rounds at least; also twenty times as long as a round takes."""
        self.latest: Found | None = None
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._at, self._answers, self._closed = 0.0, -1, False

    def get(self, answers: int) -> Found | None:
        """The latest; None before the first. ``answers``: how many there are now: with more than before a new round starts."""
        with self._lock:
            due = not self._closed and self._process is None and answers != self._answers and time.monotonic() >= self._at
            if due:
                self._answers = answers
                command = [sys.executable, "-m", "konomi.web.figures", str(self.project)]
                self._process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, encoding="utf-8"
                )
                threading.Thread(target=self._wait, args=(self._process, time.monotonic()), daemon=True).start()
        return self.latest

    def _wait(self, process: subprocess.Popen[str], began: float) -> None:
        text = process.communicate()[0]
        with self._lock:
            if process.returncode == 0:
                self.latest = Found(**json.loads(text))
            else:
                self._answers = -1  # the file was busy, or is being mended: later again
            self._process = None
            self._at = time.monotonic() + max(self.every, 20 * (time.monotonic() - began))

    def close(self) -> None:
        """End a round that is under way."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()


if __name__ == "__main__":
    print(json.dumps(asdict(find(Path(sys.argv[1])))))
