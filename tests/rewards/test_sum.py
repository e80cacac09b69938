"""Sums of rewards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from konomi.config import PPOJob, build
from konomi.errors import ConfigError, RunError
from konomi.jobs.prepare import as_read, find_prompts
from konomi.rewards import build_reward
from konomi.rewards.base import WeightedSum, columns_read, evaluate

CODE = """
def length(responses): return [len(text) for text in responses]
def topic(responses, topic): return [float(name == "x") for name in topic]
def letters(responses): return [[(i + 1, float(c == "a")) for i, c in enumerate(text)] for text in responses]
def anything(responses, **columns): return [0.0 for _ in responses]
def broken(texts): raise KeyError("gone")
def short(texts): return [1.0]
"""
PROMPTS, RESPONSES, COLUMNS = ["p", "q"], ["abca", "b"], {"topic": ["x", "y"]}


def made(tmp_path: Path, weights: dict[str, float], columns: Any = ("topic",), **parts: str) -> Any:
    path = tmp_path / "own.py"
    path.write_text(CODE, encoding="utf-8")
    tables = {name: {"kind": "function", "name": f"{path}:{function}"} for name, function in parts.items()}
    job = build(PPOJob, {"reward": {"kind": "sum", "weights": weights, "parts": tables}})
    return build_reward(job.reward, columns=columns)


def test_prompts_that_differ_in_what_a_reward_reads_are_kept(tmp_path: Path) -> None:
    rows = [("a", "x", 1), ("b", "x", 2), ("c", "x", 3), ("d", "y", 4), ("a", "y", 5), ("b", "x", 6)]
    body = "".join(json.dumps({"text": text, "topic": topic, "id": number}) + "\n" for text, topic, number in rows)
    (tmp_path / "p.jsonl").write_text(body, encoding="utf-8")
    job = build(PPOJob, {"data": {"prompts": str(tmp_path / "p.jsonl"), "held_out": 0.5}, "compare": {"extra": []}})
    sides = find_prompts(job)
    assert [len(side) for side in sides] == [3, 3]
    for parts, reads, kept in (
        ({"long": "length"}, set(), "1234"),
        ({"long": "length", "on": "topic"}, {"topic"}, "12345"),
        ({"long": "length", "all": "anything"}, None, "123456"),
    ):
        reward, said = made(tmp_path, {}, columns=("topic", "id"), **parts), list[str]()
        assert reward.reads == reads
        found = as_read(sides, [reward], "p", said.append)
        assert "".join(str(p.columns["id"]) for p in sorted(found[0] + found[1], key=lambda p: p.columns["id"])) == kept
        assert len(said) == (len(kept) < 6)
        assert not {p.key for p in found[0]} & {p.key for p in found[1]}
    assert columns_read([reward, made(tmp_path, {}, a="length")]) is None


def test_numbers_are_added_with_their_weights(tmp_path: Path) -> None:
    reward = made(tmp_path, {"long": -0.5, "on": 3.0}, long="length", on="topic")
    said = evaluate(reward, PROMPTS, RESPONSES, COLUMNS, save_to=None)
    assert said.totals == [-2.0 + 3.0, -0.5]
    assert said.parts == {"long": [4.0, 1.0], "on": [1.0, 0.0]}
    assert said.token_rewards is None
    assert reward.name == "-0.5 long +3 on"


def test_a_weight_is_1_unless_given(tmp_path: Path) -> None:
    reward = made(tmp_path, {}, long="length", again="length")
    assert evaluate(reward, PROMPTS, RESPONSES, COLUMNS, save_to=None).totals == [8.0, 2.0]


def test_pairs_stay_where_they_are_and_numbers_come_at_the_end(tmp_path: Path) -> None:
    reward = made(tmp_path, {"a": 2.0, "long": 10.0}, a="letters", long="length")
    said = evaluate(reward, PROMPTS, RESPONSES, COLUMNS, save_to=None)
    assert said.totals == [4.0 + 40.0, 10.0]
    assert said.token_rewards is not None
    assert said.token_rewards[0] == [(1, 2.0), (2, 0.0), (3, 0.0), (4, 2.0), (4, 40.0)]
    assert said.parts == {"a": [2.0, 0.0], "long": [4.0, 1.0]}


def test_a_part_that_fails_is_named_and_the_texts_are_saved(tmp_path: Path) -> None:
    for function, message in (("broken", "KeyError: 'gone'"), ("short", "returned 1 numbers for 2 texts; one a text is needed")):
        reward = made(tmp_path, {}, good="length", bad=function)
        with pytest.raises(RunError) as caught:
            evaluate(reward, PROMPTS, RESPONSES, COLUMNS, save_to=tmp_path / "failed.jsonl")
        path = tmp_path / "own.py"
        assert str(caught.value) == f"reward {path}:{function}: {message}. The texts are in {tmp_path / 'failed.jsonl'}"
        assert (tmp_path / "failed.jsonl").is_file()


def test_a_part_that_cannot_be_made_is_named_by_its_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^reward\.parts\.bad\.name: .*own\.py has no 'gone'"):
        made(tmp_path, {}, good="length", bad="gone")
    with pytest.raises(ConfigError, match=r"^reward\.parts\.on\.name: .* needs 'topic', which is not a column"):
        made(tmp_path, {}, columns=(), on="topic")
    config = build(PPOJob, {"reward": {"kind": "sum", "parts": {"x": {"kind": "classifier", "name": "embedded:no"}}}}).reward
    with pytest.raises(ConfigError, match=r"^reward\.parts\.x\.name: embedded:no: no such embedded classifier"):
        build_reward(config)


def test_a_sum_may_be_called_from_python() -> None:
    class One:
        name = "one"

        def __call__(self, texts: list[str], **_: Any) -> list[float]:
            return [1.0] * len(texts)

    reward = WeightedSum({"a": One(), "b": One()}, {"b": 0.25})
    assert reward(["x"], prompts=["x"], responses=[""], columns={}) == [1.25]
    assert reward.last_parts == {"a": [1.0], "b": [1.0]}
