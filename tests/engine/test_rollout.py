"""Rollouts and their division into micro-batches."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from konomi.engine.rollout import Rollout, micro_batches
from oracles import quick

PAIRS = [(3, 2), (1, 4), (5, 1), (2, 2)]
"""Query and response lengths of the rollout below."""


def rollout(pad_id: int = 99) -> Rollout:
    rows = [[10 * i + t for t in range(q + r)] for i, (q, r) in enumerate(PAIRS)]
    ids = torch.tensor([row + [pad_id] * (6 - len(row)) for row in rows])
    q, r = torch.tensor(PAIRS).unbind(1)
    return Rollout(ids, q, r, torch.tensor([True, False, True, False]))


@quick
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 200),
    st.data(),
)
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True))
    parts = [part.tolist() for part in micro_batches(torch.tensor(lengths), torch.tensor(rows), budget)]
    assert sorted(row for part in parts for row in part) == sorted(rows)
    for part in parts:
        assert len(part) * max(lengths[row] for row in part) <= budget or len(part) == 1
    ordered = [lengths[row] for part in parts for row in part]
    assert ordered == sorted(ordered, reverse=True)  # like lengths stand together: little is padding
    for part in parts[:-1]:  # none could have taken one row more
        assert (len(part) + 1) * lengths[part[0]] > budget


def test_micro_batches_of_no_rows() -> None:
    assert micro_batches(torch.tensor([3, 4]), torch.tensor([], dtype=torch.int64), 10) == []


def test_select_takes_rows_and_drops_padding_that_they_do_not_need() -> None:
    chosen = rollout().select(torch.tensor([3, 1]))
    assert chosen.ids.tolist() == [[30, 31, 32, 33, 99], [10, 11, 12, 13, 14]]
    assert chosen.query_lengths.tolist() == [2, 1] and chosen.response_lengths.tolist() == [2, 4]
    assert chosen.ended.tolist() == [False, False]
    assert rollout().select(torch.tensor([3])).ids.tolist() == [[30, 31, 32, 33]]
    assert len(chosen) == 2


def test_masks_come_from_lengths() -> None:
    for pad_id in (99, 10, 31):  # also an id that stands in a response
        assert rollout(pad_id).mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert rollout().select(torch.tensor([2])).mask.tolist() == [[True]]
    assert rollout().lengths.tolist() == [5, 5, 6, 4]


def test_queries_and_responses_without_padding() -> None:
    assert rollout().query_ids() == [[0, 1, 2], [10], [20, 21, 22, 23, 24], [30, 31]]
    assert rollout().response_ids() == [[3, 4], [11, 12, 13, 14], [25], [32, 33]]
