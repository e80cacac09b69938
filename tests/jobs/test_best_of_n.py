"""Best of n: exact expectations against all subsets, written out."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from konomi.config import CompareConfig, RolloutConfig
from konomi.data.tokens import Tokens
from konomi.engine.sampler import make_draws, sample
from konomi.jobs.best_of_n import chosen, kl, sizes
from konomi.jobs.compare import compare_models
from konomi.rewards import as_reward
from oracles import quick
from tiny import tiny_tokenizer
from tiny_run import PROMPTS, Constant, CountA, sharp_model

ROLLOUT = RolloutConfig(response_tokens=(1, 9), temperature=0.8)


def brute_force(scores: list[float], values: list[float], n: int) -> float:
    """The mean over all subsets of n of the value at the highest score; where several are highest, of their mean value."""
    found = []
    for subset in combinations(range(len(scores)), n):
        top = max(scores[i] for i in subset)
        best = [values[i] for i in subset if scores[i] == top]
        found.append(math.fsum(best) / len(best))
    return math.fsum(found) / len(found)


@quick
@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-5, 5)), min_size=1, max_size=8), st.data())
def test_the_expectation_is_that_over_all_subsets(rows: list[tuple[int, float]], data: Any) -> None:
    scores, values = [float(score) for score, _ in rows], [value for _, value in rows]
    n = data.draw(st.integers(1, len(rows)))
    chances = chosen(np.asarray([scores]), n)[0]
    assert chances.sum() == pytest.approx(1.0)
    assert float(chances @ np.asarray(values)) == pytest.approx(brute_force(scores, values, n), abs=1e-9)
    assert float(chances @ np.asarray(scores)) == pytest.approx(brute_force(scores, scores, n), abs=1e-9)


def test_rows_do_not_touch_each_other() -> None:
    both = chosen(np.asarray([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]), 2)
    assert both.tolist() == pytest.approx(np.asarray([[0, 1 / 3, 2 / 3], [1 / 3] * 3]))


def test_the_best_of_one_is_the_mean_and_of_all_the_best() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 16))
    assert (chosen(scores, 1) == 1 / 16).all()
    assert ((chosen(scores, 16) * scores).sum(1) == scores.max(1)).all()


def test_the_estimate_is_unbiased() -> None:
    """Of 16 draws of a uniform number the best of n has the mean n / (n + 1)."""
    scores = np.random.default_rng(1).uniform(size=(4000, 16))
    for n in (1, 2, 4, 8, 16):
        estimates = (chosen(scores, n) * scores).sum(1)
        error = estimates.std() / math.sqrt(len(estimates))
        assert abs(estimates.mean() - n / (n + 1)) < 4 * error


def test_distance_in_closed_form() -> None:
    """Against the integral of p log p for the density n u^(n-1) of the best of n uniform numbers, which is the same for all."""
    grid = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 4, 16):
        density = n * grid ** (n - 1)
        assert kl(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-3)
    assert kl(1) == 0.0 and kl(2) == pytest.approx(math.log(2) - 0.5)


def test_sizes() -> None:
    assert [sizes(n) for n in (1, 2, 3, 16, 20)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8, 16], [1, 2, 4, 8, 16, 20]]


def early(responses: list[str]) -> list[int]:
    """The letters a to m."""
    return [sum("a" <= letter <= "m" for letter in response) for response in responses]


def test_rows_are_those_of_a_plain_loop() -> None:
    model, tokens, config = sharp_model("llama"), Tokens(tiny_tokenizer()), CompareConfig(best_of=6, seed=5)
    prompts = PROMPTS[:3]
    queries = [tokens.encode(prompt.text) for prompt in prompts]
    judges = {"b": as_reward(lambda responses: [text.count("b") + len(text) for text in responses])}
    result = compare_models(model, model, tokens, prompts, early, rollout=ROLLOUT, config=config, judges=judges)
    rows = result["best_of_n"]
    assert [row["n"] for row in rows] == [1, 2, 4, 6]
    scores, judged = [], []
    for prompt, query in zip(prompts, queries, strict=True):
        draws = make_draws(ROLLOUT, 5, [("best of", prompt.key, i) for i in range(6)])
        drawn = sample(model, tokens, [query] * 6, draws, ROLLOUT).response_ids()
        texts = [tokens.split(prompt, query, ids)[1] for ids in drawn]
        scores.append([float(score) for score in early(texts)])
        judged.append([float(text.count("b") + len(text)) for text in texts])
    for row in rows:
        n = row["n"]
        assert row["score"] == pytest.approx(np.mean([brute_force(s, s, n) for s in scores]))
        assert row["judges"] == {"b": pytest.approx(np.mean([brute_force(s, j, n) for s, j in zip(scores, judged, strict=True)]))}
        assert row["kl"] == kl(n)
    assert rows[0]["score"] == pytest.approx(np.mean(scores)) and rows[-1]["score"] > rows[0]["score"]


def test_batches_change_nothing_and_it_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = sharp_model("gpt2"), Tokens(tiny_tokenizer())

    def rows(**config: Any) -> list[dict[str, Any]]:
        result = compare_models(
            model, model, tokens, PROMPTS, CountA(), rollout=ROLLOUT, config=CompareConfig(prompts=4, **config),
            judges={"same": Constant(2.0)},
        )  # fmt: skip
        found: list[dict[str, Any]] = result["best_of_n"]
        return found

    wanted = rows(best_of=4)
    monkeypatch.setattr("konomi.jobs.compare.BATCH", 3)
    assert rows(best_of=4, extra=("zebra",)) == wanted
    assert [row["judges"] for row in wanted] == [{"same": pytest.approx(2.0)}] * 3
    assert rows() == []
