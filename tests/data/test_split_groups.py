"""Comparisons held out by prompt."""

from __future__ import annotations

import pytest

from konomi.data.records import Group, Pair, Prompt, groups, split_groups
from konomi.data.sources import split_held_out
from konomi.errors import DataError


def some(count: int) -> list[Group]:
    return groups(Pair(f"text {i}", "a", "b", source=source) for i in range(count) for source in ("web", "lab"))


def test_a_prompt_is_on_one_side_whatever_its_source() -> None:
    train, held_out = split_groups(some(500), 0.2)
    assert len(train) + len(held_out) == 1000
    assert not {g.key for g in train} & {g.key for g in held_out}
    assert abs(len(held_out) - 200) < 4 * 2 * (500 * 0.2 * 0.8) ** 0.5
    turned = [Group(f"  {g.prompt}\n", g.responses, g.comparisons) for g in reversed(some(500))]
    assert {g.key for g in split_groups(turned, 0.2)[1]} == {g.key for g in held_out}


def test_the_side_is_that_of_the_prompts_of_ppo() -> None:
    _, held_out = split_groups(some(200), 0.3)
    _, prompts = split_held_out([Prompt(f"text {i}") for i in range(200)], 0.3)
    assert {g.key for g in held_out} == {p.key for p in prompts}


def test_nothing_is_held_out_where_none_is_asked_for() -> None:
    assert split_groups(some(5), 0.0) == (some(5), [])


def test_an_empty_side_is_told() -> None:
    with pytest.raises(
        DataError, match=r"data.held_out = 1.0: the comparisons of all 3 prompts are held out .* lower it or add prompts"
    ):
        split_groups(some(3), 1.0)
    with pytest.raises(
        DataError, match=r"data.held_out = 1e-09: of 3 prompts none is held out, .* raise it or add prompts \(0: do"
    ):
        split_groups(some(3), 1e-9)
