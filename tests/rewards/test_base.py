from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import konomi
from konomi.data.records import Prompt
from konomi.errors import RunError
from konomi.rewards import score
from konomi.rewards.base import check_scores, columns_of, evaluate, total

PROMPTS, RESPONSES = ["今日の", "a\n"], ["天気", "b"]


class Made:
    name = "made"

    def __init__(self, result: Callable[[Sequence[str]], Any]) -> None:
        self.result = result

    def __call__(self, texts: Sequence[str], **others: Any) -> Any:
        return self.result(texts)


def scored(result: Callable[[Sequence[str]], Any], save_to: Path | None = None) -> list[float]:
    return score(Made(result), PROMPTS, RESPONSES, {}, save_to=save_to)


def test_texts_are_prompt_and_response_together() -> None:
    seen: list[str] = []

    def result(texts: Sequence[str]) -> list[float]:
        seen.extend(texts)
        return [1, 2.5]

    assert scored(result) == [1.0, 2.5]
    assert seen == ["今日の天気", "a\nb"]


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
    floats = scored(lambda texts: result)
    assert floats == [1.0, 2.5]
    assert {type(each) for each in floats} == {float}


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


def test_an_exception_keeps_its_traceback_and_saves(tmp_path: Path) -> None:
    def broken(texts: Sequence[str]) -> list[float]:
        return [1 / 0 for _ in texts]

    with pytest.raises(RunError, match="reward made: ZeroDivisionError: division by zero") as caught:
        scored(broken, tmp_path / "failed.jsonl")
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError)
    assert cause.__traceback__ is not None
    assert (tmp_path / "failed.jsonl").exists()


def test_an_interruption_passes_through_untouched(tmp_path: Path) -> None:
    def interrupted(texts: Sequence[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(interrupted, tmp_path / "failed.jsonl")
    assert not (tmp_path / "failed.jsonl").exists()


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


def test_no_pairs_are_a_score_of_0() -> None:
    said = evaluate(Made(lambda texts: [[], []]), PROMPTS, RESPONSES, {}, save_to=None)
    assert said.totals == [0.0, 0.0] and said.token_rewards is None and total([]) == 0.0


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


def test_protocol_module_needs_no_torch() -> None:
    code = "import sys, konomi.rewards, konomi.data.sources; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    environ = {**os.environ, "PYTHONPATH": str(Path(konomi.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environ, check=False).returncode == 0
