"""The stream of queries."""

from __future__ import annotations

import pytest

from konomi.config import DataConfig
from konomi.data.records import Prompt
from konomi.data.tokens import Tokens
from konomi.training.queries import QueryStream
from tiny import tiny_tokenizer

PROMPTS = [Prompt(letter * 9) for letter in "abcdefg"]


def stream(seed: int = 0) -> QueryStream:
    return QueryStream(PROMPTS, Tokens(tiny_tokenizer()), DataConfig(query_tokens=(1, 8)), seed)


@pytest.mark.parametrize("size", [1, 3, 7, 10, 40])
def test_what_stands_at_a_position_does_not_depend_on_how_it_is_reached(size: int) -> None:
    prompts, queries = stream().take(0, 40)
    parts = [stream().take(start, min(size, 40 - start)) for start in range(0, 40, size)]
    assert [p for part, _ in parts for p in part] == prompts
    assert [q for _, part in parts for q in part] == queries


def test_each_epoch_has_every_prompt_once_in_a_new_order_and_cut_anew() -> None:
    prompts, queries = stream().take(0, 21)
    epochs = [prompts[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(p.text for p in epoch) == [p.text for p in PROMPTS] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    cuts = [{p.text: len(q) for p, q in list(zip(prompts, queries, strict=True))[i : i + 7]} for i in (0, 7, 14)]
    assert cuts[0] != cuts[1] != cuts[2]
    assert all(q[1:] == tokens[1 : len(q)] for q, p in zip(queries, prompts, strict=True) if (tokens := encode(p.text)))


def encode(text: str) -> list[int]:
    return Tokens(tiny_tokenizer()).encode(text)


def test_another_seed_gives_another_order() -> None:
    assert stream(1).take(0, 7)[0] != stream(0).take(0, 7)[0]
