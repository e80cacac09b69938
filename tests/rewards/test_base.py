"""Calling a reward: what it gets, what it may return, what stops the run; sums of rewards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from konomi.config import PPOJob, build
from konomi.data.records import Prompt
from konomi.errors import ConfigError, RunError
from konomi.jobs.prepare import as_read, find_prompts
from konomi.rewards import build_reward, score
from konomi.rewards.base import WeightedSum, ask, check_scores, columns_of, columns_read, evaluate, total

PROMPTS, RESPONSES = ["今日の", "a\n"], ["天気", "b"]


class Made:
    name = "made"

    def __init__(self, result: Callable[[Sequence[str]], Any]) -> None:
        self.result = result

    def __call__(self, texts: Sequence[str], **others: Any) -> Any:
        return self.result(texts)


def scored(result: Callable[[Sequence[str]], Any], save_to: Path | None = None) -> list[float]:
    return score(Made(result), PROMPTS, RESPONSES, {}, save_to=save_to)


@pytest.mark.parametrize(
    "result",
    [
        (1, 2.5),
        np.array([1, 2.5]),
        np.array([1, 2.5], dtype=np.float32),
        [np.float32(1), np.float64(2.5)],
        torch.tensor([1, 2.5], requires_grad=True),
        torch.tensor([1, 2.5], dtype=torch.bfloat16),
        [torch.tensor(1), torch.tensor(2.5)],
    ],
)
def test_numbers_of_any_library_become_floats(result: Any) -> None:
    seen: list[str] = []
    floats = scored(lambda texts: seen.extend(texts) or result)
    assert floats == [1.0, 2.5]
    assert {type(each) for each in floats} == {float}
    assert seen == ["今日の天気", "a\nb"]


@pytest.mark.parametrize(
    ("result", "part"),
    [
        ([1.0], "returned 1 numbers for 2 texts"),
        ([1.0, 2.0, 3.0], "returned 3 numbers for 2 texts"),
        (None, "returned a NoneType; a list of 2 numbers is needed"),
        (1.0, "returned a float"),
        ("12", "returned a str"),
        ({"a": 1, "b": 2}, "returned a dict"),
        (torch.tensor(1.0), "returned a Tensor"),
        ([1.0, float("nan")], r"returned nan for text 1 \('a\\nb'\)"),
        ([float("-inf"), 1.0], "returned -inf for text 0"),
        (np.array([1.0, np.nan]), "returned nan for text 1"),
        ([10**400, 1], "returned 1000"),
        ([True, 1.0], "returned True for text 0"),
        (np.array([True, False]), "returned True for text 0"),
        (["1", 2.0], "returned '1' for text 0"),
        ([None, 2.0], "returned None for text 0"),
        ([[1.0], [2.0]], r"returned \[1.0\] for text 0"),
        (torch.zeros(2, 1), r"returned \[0.0\] for text 0"),
        ([1j, 2.0], "returned 1j for text 0"),
    ],
    ids=str,
)
def test_what_is_not_one_finite_number_a_text_stops_and_saves(tmp_path: Path, result: Any, part: str) -> None:
    saved = tmp_path / "run" / "failed.jsonl"
    with pytest.raises(RunError, match=part) as caught:
        scored(lambda texts: result, saved)
    assert str(caught.value).startswith("reward made: returned")
    assert str(caught.value).endswith(f"The texts are in {saved}")
    rows = [json.loads(line) for line in saved.read_text(encoding="utf-8").splitlines()]
    assert rows == [{"index": i, "prompt": p, "response": r} for i, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True))]


def test_an_exception_keeps_its_traceback_and_an_interruption_passes(tmp_path: Path) -> None:
    def raises(error: BaseException) -> Callable[[Sequence[str]], Any]:
        def result(texts: Sequence[str]) -> Any:
            raise error

        return result

    with pytest.raises(KeyboardInterrupt):
        scored(raises(KeyboardInterrupt()), tmp_path / "failed.jsonl")
    assert not (tmp_path / "failed.jsonl").exists()
    with pytest.raises(RunError, match="reward made: ZeroDivisionError: gone") as caught:
        scored(raises(ZeroDivisionError("gone")), tmp_path / "failed.jsonl")
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError) and cause.__traceback__ is not None
    assert (tmp_path / "failed.jsonl").exists()


def test_the_failure_is_told_even_if_the_texts_cannot_be_saved(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    could_not = "The texts could not be saved"
    for path, message in ((tmp_path / "file" / "x.jsonl", could_not), (tmp_path, could_not), (None, "The texts were not saved")):
        with pytest.raises(RunError, match=f"returned nan.*{message}"):
            scored(lambda texts: [float("nan"), 0.0], path)


def test_no_texts_and_long_ones() -> None:
    assert check_scores([], [], "none", []) == []
    with pytest.raises(RunError, match=r"\('x{30}\.\.\.'\)"):
        check_scores([None], ["x" * 1000], "made", ["x" * 1000])


@pytest.mark.parametrize(
    "result",
    [
        [[(1, 0.5), (2, 2.0)], 3],
        ([[2, 2.0], [1, 0.5]], 3.0),
        [np.array([[1, 0.5], [2, 2.0]]), np.float32(3)],
        [torch.tensor([[1.0, 0.5], [2.0, 2.0]]), torch.tensor(3)],
        [[(np.int64(1), np.float64(0.5)), (2, np.float32(2.0))], 3.0],
    ],
    ids=str,
)
def test_pairs_of_any_library(result: Any) -> None:
    said = evaluate(Made(lambda texts: result), PROMPTS, RESPONSES, {}, save_to=None)
    assert said.totals == [2.5, 3.0] and said.token_rewards is not None
    assert (sorted(said.token_rewards[0]), said.token_rewards[1]) == ([(1, 0.5), (2, 2.0)], [])
    assert all(type(end) is int and type(score) is float for end, score in said.token_rewards[0])
    none = evaluate(Made(lambda texts: [[], []]), PROMPTS, RESPONSES, {}, save_to=None)
    assert none.totals == [0.0, 0.0] and none.token_rewards is None and total([]) == 0.0


@pytest.mark.parametrize(
    "value",
    [
        [(3, 1.0)], [(-1, 1.0)], [(1.5, 1.0)], [(True, 1.0)], [("1", 1.0)], [(1, float("nan"))], [(1, "2")], [(1, True)],
        [(1, 1.0, 1.0)], [1.0, 2.0], [None], [(1, None)], [(1, 1.0), 2], [(1, 1e308), (1, 1e308)], [(10**400, 1.0)],
    ],
    ids=str,
)  # fmt: skip
def test_pairs_that_are_none(value: Any) -> None:
    needed = r"; a finite number is needed, or pairs \(end, score\) with ends from 0 to the 2 characters of the response\."
    with pytest.raises(RunError, match=r"reward made: returned .* for text 0 \('今日の天気'\)" + needed):
        scored(lambda texts: [value, 1.0])


def test_columns_of_prompts() -> None:
    prompts = [Prompt("a", {"x": 1, "y": None}), Prompt("b", {"x": 2})]
    assert columns_of(prompts) == {"x": [1, 2], "y": [None, None]}


# -- sums ----------------------------------------------------------------------------------------------------------------

CODE = """
def length(responses): return [len(text) for text in responses]
def topic(responses, topic): return [float(name == "x") for name in topic]
def letters(responses): return [[(i + 1, float(c == "a")) for i, c in enumerate(text)] for text in responses]
def anything(responses, **columns): return [0.0 for _ in responses]
def broken(texts): raise KeyError("gone")
def short(texts): return [1.0]
"""
SUMMED: dict[str, Any] = {"prompts": ["p", "q"], "responses": ["abca", "b"], "columns": {"topic": ["x", "y"]}}


def summed(tmp_path: Path, weights: dict[str, float], columns: Any = ("topic",), **parts: str) -> Any:
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
        reward, said = summed(tmp_path, {}, columns=("topic", "id"), **parts), list[str]()
        assert reward.reads == reads
        found = as_read(sides, [reward], "p", said.append)
        assert "".join(str(p.columns["id"]) for p in sorted(found[0] + found[1], key=lambda p: p.columns["id"])) == kept
        assert len(said) == (len(kept) < 6)
        assert not {p.key for p in found[0]} & {p.key for p in found[1]}
    assert columns_read([reward, summed(tmp_path, {}, a="length")]) is None


def test_numbers_are_added_with_their_weights(tmp_path: Path) -> None:
    reward = summed(tmp_path, {"long": -0.5, "on": 3.0}, long="length", on="topic")
    said = evaluate(reward, **SUMMED, save_to=None)
    assert said.totals == [-2.0 + 3.0, -0.5]
    assert said.parts == {"long": [4.0, 1.0], "on": [1.0, 0.0]}
    assert said.token_rewards is None
    assert reward.name == "-0.5 long +3 on"


def test_pairs_stay_where_they_are_and_numbers_come_at_the_end(tmp_path: Path) -> None:
    reward = summed(tmp_path, {"a": 2.0, "long": 10.0}, a="letters", long="length")
    said = evaluate(reward, **SUMMED, save_to=None)
    assert said.totals == [4.0 + 40.0, 10.0]
    assert said.token_rewards is not None
    assert said.token_rewards[0] == [(1, 2.0), (2, 0.0), (3, 0.0), (4, 2.0), (4, 40.0)]
    assert said.parts == {"a": [2.0, 0.0], "long": [4.0, 1.0]}


def test_a_part_that_fails_is_named_and_the_texts_are_saved(tmp_path: Path) -> None:
    for function, message in (("broken", "KeyError: 'gone'"), ("short", "returned 1 numbers for 2 texts; one a text is needed")):
        reward = summed(tmp_path, {}, good="length", bad=function)
        with pytest.raises(RunError) as caught:
            evaluate(reward, **SUMMED, save_to=tmp_path / "failed.jsonl")
        path = tmp_path / "own.py"
        assert str(caught.value) == f"reward {path}:{function}: {message}. The texts are in {tmp_path / 'failed.jsonl'}"
        assert (tmp_path / "failed.jsonl").is_file()


def test_a_part_that_cannot_be_made_is_named_by_its_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^reward\.parts\.bad\.name: .*own\.py has no 'gone'"):
        summed(tmp_path, {}, good="length", bad="gone")
    with pytest.raises(ConfigError, match=r"^reward\.parts\.on\.name: .* needs 'topic', which is not a column"):
        summed(tmp_path, {}, columns=(), on="topic")
    config = build(PPOJob, {"reward": {"kind": "sum", "parts": {"x": {"kind": "classifier", "name": "embedded:no"}}}}).reward
    with pytest.raises(ConfigError, match=r"^reward\.parts\.x\.name: embedded:no: no such embedded classifier"):
        build_reward(config)


def test_a_sum_may_be_called_from_python_and_a_weight_is_1_unless_given() -> None:
    one = Made(lambda texts: [1.0] * len(texts))
    reward = WeightedSum({"a": one, "b": one}, {"b": 0.25})
    assert reward(["x"], prompts=["x"], responses=[""], columns={}) == [1.25]
    assert reward.last_parts == {"a": [1.0], "b": [1.0]}


def test_that_another_process_has_ended_is_no_failure_of_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exchanged(WeightedSum):
        def __call__(self, *_: Any, **__: Any) -> list[Any]:
            raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="closed by peer"):
        ask(Exchanged({}, {}), ["ab"], prompts=["a"], responses=["b"], columns={})
