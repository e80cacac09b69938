from __future__ import annotations

import pytest

from konomi.data.records import Prompt


def test_key_is_of_the_text_alone() -> None:
    assert Prompt("今日は", {"topic": "weather"}).key == Prompt("今日は").key
    assert Prompt("今日は").key != Prompt("今日も").key
    assert len(Prompt("a").key) == 32


@pytest.mark.parametrize(("one", "other"), [("が", "が"), (" a\n", "a"), ("　今日", "今日")])
def test_key_ignores_encoding_and_surrounding_space(one: str, other: str) -> None:
    assert Prompt(one).key == Prompt(other).key


def test_key_is_stable() -> None:
    # held-out sets and query cuts of runs already made depend on it: typed here, not computed
    assert Prompt("今日の天気は").key == "dd75a5200332089209eb8848e30bfe9f"
