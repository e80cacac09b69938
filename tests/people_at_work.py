"""Tasks, and people who work through them, for the tests of the store."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from konomi.data.records import Candidate
from konomi.labelling.answers import save
from konomi.labelling.assignments import next_task
from konomi.labelling.database import Store
from konomi.labelling.import_tasks import create_store
from konomi.labelling.queue import Settings
from konomi.labelling.records import Answer, NewTask, Person, Refused, Shown

NOW = 1_800_000_000.0


def tasks(count: int, k: int = 3) -> list[NewTask]:
    """Tasks of ``k`` candidates, each from a model of its own that no text names."""
    return [
        NewTask(
            f"prompt {n}",
            tuple(Candidate(f"text {n}.{i}", {"model": f"lab/secret-model-{i}", "seed": n}) for i in range(k)),
            columns={"topic": f"hidden column {n}"},
        )
        for n in range(count)
    ]


def store_of(path: Path, count: int = 4, k: int = 3, **settings: Any) -> Store:
    """A new store with tasks."""
    return create_store(path / "labels.sqlite3", tasks(count, k), Settings(**settings))[0]


def answer_to(showing: Shown, places: Sequence[int] = (), **said: Any) -> Answer:
    """An answer: ranks by the order shown, or 1, 2, 3... of the sorted texts."""
    keys = [text.key for text in showing.texts]
    by_text = sorted(keys, key=lambda key: showing.texts[keys.index(key)].text)
    given = dict(zip(keys, places, strict=True)) if places else {key: 1 + by_text.index(key) for key in keys}
    said = {"id": str(uuid.uuid4()), "kind": "ranked", "ranks": given, "seconds": 10.0, "shown": showing.id} | said
    return Answer(**said)


def skip(shown: Shown, **said: Any) -> Answer:
    """A skipped task."""
    return answer_to(shown, **{"kind": "skipped", "ranks": {}, "reason": "not my language"} | said)


def work(store: Store, person: Person, limit: int = 10_000, skips: float = 0.0, seed: int = 0) -> list[Shown]:
    """Let a person answer what they get until there is no more, or ``limit`` times; return what was shown."""
    drawn = random.Random(seed)
    seen: list[Shown] = []
    while len(seen) < limit and (shown := next_task(store, person, NOW + len(seen))) is not None:
        save(store, person, skip(shown) if drawn.random() < skips else answer_to(shown), NOW + len(seen))
        seen.append(shown)
    return seen


def take(store: Store, person: Person, now: float = NOW) -> Shown:
    """The next task of a person, who has one."""
    shown = next_task(store, person, now)
    assert shown is not None
    return shown


def refused(code: str, message: str) -> Any:
    """A context in which an input has to be refused, with this message from beginning to end."""
    return pytest.raises(Refused, match=f"^{message}$", check=lambda error: error.code == code)
