"""What tests of input share: files of rows, and calls that have to be refused with certain words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from konomi.errors import DataError


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(call: Callable[[], object], *parts: str, error: type[Exception] = DataError) -> str:
    """The message of the error, which has all ``parts`` in it."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert not [part for part in parts if part not in message], message
    return message


def scores_of(reward: Any, texts: list[str], responses: list[str] | None = None) -> list[float]:
    scores = reward(texts, prompts=[""] * len(texts), responses=responses or texts, columns={})
    assert {type(each) for each in scores} <= {float}
    return list(scores)
