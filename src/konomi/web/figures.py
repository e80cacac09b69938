"""Agreement and data sufficiency: figures that take seconds with many answers.

A child process computes them from time to time, so that no request waits. It is started by the path of this file, which keeps
the working directory off its import path: a ``random.py`` there must not shadow the standard library's.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started by its path: this folder goes, and the one that holds konomi comes after the library's
    _here = Path(__file__).resolve().parent
    sys.path[:] = [each for each in sys.path if Path(each).resolve() != _here] + [str(_here.parents[1])]


NEEDED_COMPARISONS = 2_000
"""As in the statistics, which are slow to import."""
NEEDED_VOTES = 210
"""Decided prompts with which the exact sign test has 80 % power for a true win rate of 60 %."""
FEWEST_COUPLES, FEWEST_PROMPTS = 20, 5
"""Below these the agreement is not shown to people."""
NICENESS = 10
"""Of the child process: requests go first."""
ASKED = 300.0
"""Seconds for which figures per person are computed after the owner has asked for them."""


@dataclass(frozen=True)
class Found:
    """The figures at one moment.

    Attributes:
        comparison: people compare before and after instead of ranking.
        comparisons: pairs of texts judged by a person, without ties; or decided prompts of a before/after.
        needed: how many of these are enough.
        share, low, high, couples, prompts: agreement between people; None if no two judged the same.
        people: by pseudonym: ``records``, ``others`` and ``oneself``: shares of pairs on which they agree. For the owner;
            None: not requested.
    """

    comparison: bool
    comparisons: int
    needed: int
    share: float | None = None
    low: float | None = None
    high: float | None = None
    couples: int = 0
    prompts: int = 0
    people: Mapping[str, Mapping[str, Any]] | None = None

    def shown(self) -> dict[str, Any]:
        """For the pages: ``agreement``, and ``enough`` with the key of its words.

        The agreement of few answers would reveal another person's answer, so it is withheld at first, and rounded.
        """
        shares = {name: getattr(self, name) for name in ("share", "low", "high")}
        known = {name: None if value is None else round(value, 2) for name, value in shares.items()}
        hidden = self.share is None or self.couples < FEWEST_COUPLES or self.prompts < FEWEST_PROMPTS
        key = "enough_votes" if self.comparison else "enough_some" if self.comparisons else "enough_none"
        if self.comparisons >= self.needed:
            key = "enough_votes_yes" if self.comparison else "enough_yes"
        return {
            "agreement": None if hidden else {**known, "couples": self.couples},
            "enough": {"comparisons": self.comparisons, "needed": self.needed, "words": key},
        }


def find(project: Path, each_person: bool = False) -> Found:
    """Compute the figures of a project, per person too if wanted. Raises the errors of the store."""
    from konomi.labelling.answers import collect
    from konomi.labelling.blind import decided_prompts, is_comparison
    from konomi.labelling.export import rankings, repeated
    from konomi.labelling.project import open_project
    from konomi.statistics.agreement import enough_comparisons, people

    with open_project(project).store() as store:
        exported = collect(store)
    comparison = is_comparison(exported)
    records = rankings(exported, "compare") if comparison else rankings(exported)
    enough, by_person = enough_comparisons(records), None
    if each_person:
        by_person = {own["rater"]: _of_one(own) for own in people(records, repeated(exported))}
    count, needed = (decided_prompts(exported), NEEDED_VOTES) if comparison else (enough["comparisons"], enough["needed"])
    agreed = enough["agreement"]
    if agreed is None:
        return Found(comparison, count, needed, people=by_person)
    share = agreed["share"]
    return Found(
        comparison, count, needed, share["value"], share["low"], share["high"], agreed["couples"], agreed["prompts"], by_person
    )


def _of_one(own: Mapping[str, Any]) -> dict[str, Any]:
    shares = {name: None if own[name] is None else own[name]["share"]["value"] for name in ("others", "oneself")}
    return {"records": own["records"], **shares}


class Figures:
    """The latest figures of a project, recomputed now and then after new answers."""

    def __init__(self, project: Path, every: float = 20.0) -> None:
        self.project = project
        self.every = every
        """Minimum seconds between rounds; also twenty times the duration of a round."""
        self.latest: Found | None = None
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._at, self._answers, self._closed = 0.0, -1, False
        self._people_until = -math.inf

    def get(self, answers: int, people: bool = False) -> Found | None:
        """The latest; None before the first.

        Args:
            answers: :func:`konomi.labelling.answers.changes`: when it is another than before a new round starts.
            people: whether the figures of each person are wanted.
        """
        with self._lock:
            now = time.monotonic()
            if people:
                self._people_until = now + ASKED
            new = answers != self._answers or (people and self.latest is not None and self.latest.people is None)
            if new and not self._closed and self._process is None and now >= self._at:
                self._answers = answers
                command = [sys.executable, __file__, str(self.project), str(NICENESS)]
                command += ["people"] if now < self._people_until else []
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
                self._answers = -1  # the file was busy or is being repaired: retry later
            self._process = None
            self._at = time.monotonic() + max(self.every, 20 * (time.monotonic() - began))

    def close(self) -> None:
        """Stop a running round."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()


def main() -> None:
    """Print as JSON the figures of the project that the command line names."""
    project, niceness, *which = sys.argv[1:]
    if hasattr(os, "nice"):
        os.nice(int(niceness))
    print(json.dumps(asdict(find(Path(project), "people" in which))))


if __name__ == "__main__":
    main()
