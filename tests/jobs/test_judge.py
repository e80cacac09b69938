"""`konomi judge`: a simulated rater that is called one; its mathematics: closed forms against draws, and relations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import konomi, sets
from konomi.data.formats import read_comparisons, read_scores, read_tasks, write_records
from konomi.data.records import Candidate, Prompt, Ranking, Task
from konomi.errors import DataError
from konomi.jobs.judge import gumbel, noise_scale, pairs_alike, ranks, rightly_ordered, score_gaps, self_agreement
from tiny import ALPHABET, tiny_config, tiny_tokenizer


def judged(name: str, *settings: str) -> tuple[list[Ranking], dict[str, Any]]:
    """The rankings of a run and its manifest."""
    konomi("judge", "judge.toml", "--json", *sets(f"run.name={name}", *settings), code=0)
    run = Path("runs") / name
    rankings = [each for each in read_comparisons(run / "rankings.jsonl") if isinstance(each, Ranking)]
    return rankings, json.loads((run / "manifest.json").read_text(encoding="utf-8"))


def test_rankings_of_a_simulated_rater_and_the_truth(world: Path) -> None:
    rankings, manifest = judged("one")
    tasks = read_tasks("candidates.jsonl")
    first = [each for each in rankings if each.rater == "simulated"]
    second = {each.prompt: each for each in rankings if each.rater == "simulated-2"}
    assert [each.prompt for each in first] == [task.prompt for task in tasks]
    assert [each.responses for each in first] == [tuple(c.text for c in task.candidates) for task in tasks]
    assert {each.source for each in rankings} == {"a, b"}
    assert len(rankings) == len(first) + len(second) and 10 < len(second) < 40
    assert any(each.ranks != second[each.prompt].ranks for each in first if each.prompt in second)
    truth = {(each.prompt, each.response): each for each in read_scores("runs/one/truth.jsonl")}
    assert len(truth) == 480
    assert all(each.score == len(text) and each.rater == "simulated-without-noise" for (_, text), each in truth.items())
    alike = [pairs_alike(each.ranks, ranks([len(text) for text in each.responses])) for each in first]
    agreed = sum(same for same, _ in alike) / sum(pairs for _, pairs in alike)
    assert agreed == pytest.approx(manifest["agreement_with_truth_expected"], abs=0.05)
    assert manifest["self_agreement_expected"] == pytest.approx(0.75)
    assert manifest["self_agreement"] == pytest.approx(0.75, abs=0.05)
    assert (manifest["pairs"], manifest["tasks_ranked_twice"], manifest["people"]) == (720, len(second), False)
    assert manifest["noise_scale"] > 0


def test_it_is_called_simulated_everywhere(world: Path) -> None:
    result = konomi("judge", "judge.toml")
    assert "simulated rater (no person is asked)" in result.stderr
    assert "A simulated rater ranked" in result.stdout and "No person was asked" in result.stdout
    assert "SIMULATED RATER" in konomi("judge", "--help").stdout


def test_without_noise_it_says_the_truth(world: Path) -> None:
    rankings, manifest = judged("sure", "judge.agreement=1", "judge.overlap=1")
    assert len(rankings) == 240
    assert all(each.ranks == ranks([len(text) for text in each.responses]) for each in rankings)
    assert (manifest["noise_scale"], manifest["self_agreement"], manifest["self_agreement_expected"]) == (0, 1, 1)


def test_order_of_tasks_and_candidates_changes_nothing(world: Path) -> None:
    before = {each.prompt: dict(zip(each.responses, each.ranks, strict=True)) for each in judged("one", "judge.overlap=0")[0]}
    tasks = [Task(task.prompt, task.candidates[::-1], task.columns) for task in read_tasks("candidates.jsonl")[::-1]]
    write_records(world / "turned.jsonl", tasks)
    after = judged("two", "candidates=turned.jsonl", "judge.overlap=0")[0]
    assert before == {each.prompt: dict(zip(each.responses, each.ranks, strict=True)) for each in after}
    other = {each.prompt: dict(zip(each.responses, each.ranks, strict=True)) for each in judged("three", "run.seed=1")[0]}
    assert before != other


def test_overlap_is_by_prompt(world: Path) -> None:
    few = {each.prompt for each in judged("few", "judge.overlap=0.1")[0] if each.rater == "simulated-2"}
    many = {each.prompt for each in judged("many", "judge.overlap=0.5")[0] if each.rater == "simulated-2"}
    assert few < many < {task.prompt for task in read_tasks("candidates.jsonl")}
    assert not [each for each in judged("none", "judge.overlap=0")[0] if each.rater == "simulated-2"]
    assert len({Prompt(text).key for text in many}) == len(many)


def test_columns_reach_the_reward(world: Path) -> None:
    judged("weighted", "reward.name=taste.py:weighted")
    assert all(each.score == 2 * len(each.response) for each in read_scores("runs/weighted/truth.jsonl"))


def test_a_reward_that_cuts_texts_says_how_many_before_it_begins(world: Path) -> None:
    import transformers

    letters = ALPHABET[:26]
    tasks = [Task(a + b, (Candidate(b), Candidate(a * 5)), {}) for a, b in zip(letters, letters[::-1], strict=True)]
    write_records(world / "candidates.jsonl", tasks)
    transformers.GPT2ForSequenceClassification(tiny_config("gpt2", num_labels=2)).save_pretrained(world / "labels")
    tiny_tokenizer().save_pretrained(world / "labels")
    job = (world / "judge.toml").read_text("utf-8").replace('kind = "function"', 'kind = "classifier"\nlabel = 1\nmax_length = 7')
    (world / "judge.toml").write_text(job.replace("taste.py:length", "labels"), encoding="utf-8")
    result = konomi("judge", "judge.toml", "--set", "reward.max_length=3")
    assert (result.exit_code, (world / "runs").exists()) == (2, False)
    assert f"{len(tasks)} of {len(tasks)} prompts are that long by themselves" in result.stderr
    result = konomi("judge", "judge.toml", code=0)
    assert f"{len(tasks)} of {2 * len(tasks)} texts are cut, the longest has 8 tokens" in result.stderr


def test_an_agreement_that_cannot_be_reached_and_a_reward_that_fails(world: Path) -> None:
    flat = konomi("judge", "judge.toml", "--set", "reward.name=taste.py:flat", code=2)
    assert "720 of the 720 pairs of candidates have equal scores" in flat.stderr
    konomi("judge", "judge.toml", *sets("reward.name=taste.py:broken", "run.name=broken"), code=1)
    assert len(Path("runs/broken/failed_texts.jsonl").read_text(encoding="utf-8").splitlines()) == 128
    assert json.loads(Path("runs/broken/run.json").read_text(encoding="utf-8"))["status"] == "failed"


# -- the mathematics ---------------------------------------------------------------------------------------------------


TASKS = [[0.3, -1.2, 2.5, 0.9], [4.0, 3.8, 3.7], [-2.0, 0.0], [1.0, 1.5, 1.5, -3.0]]
"""One of their 16 pairs is a tie."""
DRAWS = 4000


def drawn(scale: float, rater: str) -> list[list[tuple[int, ...]]]:
    """Many rankings of all tasks by one rater."""
    return [
        [
            ranks([score + scale * gumbel(0, rater, draw, number, place) for place, score in enumerate(scores)])
            for number, scores in enumerate(TASKS)
        ]
        for draw in range(DRAWS)
    ]


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_closed_forms_are_what_is_drawn(scale: float) -> None:
    one, other = drawn(scale, "one"), drawn(scale, "other")
    gaps = score_gaps(TASKS)
    alike = [sum(pairs_alike(a, b)[0] for a, b in zip(x, y, strict=True)) for x, y in zip(one, other, strict=True)]
    error = np.std(alike) / len(gaps) / math.sqrt(DRAWS)
    assert np.mean(alike) / len(gaps) == pytest.approx(self_agreement(gaps, scale), abs=4 * error)
    truth = [ranks(scores) for scores in TASKS]
    right = [sum(pairs_alike(a, b)[0] for a, b in zip(x, truth, strict=True)) for x in one]
    # where the truth is a tie, a ranking with noise never says so: it counts half there
    expected = rightly_ordered(gaps, scale) - 0.5 * float((gaps == 0).mean())
    assert np.mean(right) / len(gaps) == pytest.approx(expected, abs=4 * np.std(right) / len(gaps) / math.sqrt(DRAWS))


def test_one_pair_by_hand() -> None:
    gaps = np.array([math.log(4.0)])  # sigmoid(log 4) = 4/5
    assert rightly_ordered(gaps, 1.0) == pytest.approx(0.8)
    assert self_agreement(gaps, 1.0) == pytest.approx(0.8**2 + 0.2**2)
    assert rightly_ordered(2 * gaps, 2.0) == pytest.approx(0.8)  # only the ratio counts
    assert (rightly_ordered(gaps, 0.0), self_agreement(gaps, 0.0)) == (1.0, 1.0)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("agreement", [0.51, 0.63, 0.75, 0.95])
def test_the_scale_gives_the_agreement_in_any_unit(agreement: float, unit: float) -> None:
    gaps = unit * score_gaps(TASKS)
    assert self_agreement(gaps, noise_scale(gaps, agreement)) == pytest.approx(agreement, abs=1e-9)


def test_more_agreement_is_less_noise() -> None:
    gaps = score_gaps(TASKS)
    scales = [noise_scale(gaps, agreement) for agreement in (0.55, 0.7, 0.8, 0.9, 1.0)]
    assert scales == sorted(scales, reverse=True)
    assert scales[-1] == 0.0


def test_an_agreement_that_ties_forbid_is_refused_with_the_most_that_can_be() -> None:
    gaps = score_gaps([[1.0, 1.0, 1.0], [1.0, 2.0]])
    with pytest.raises(DataError, match=r"judge.agreement = 0.75 cannot be reached: 3 of the 4 pairs .* 0.62 of all pairs"):
        noise_scale(gaps, 0.75)
    assert noise_scale(gaps, 1.0) == 0.0  # without noise a tie is a tie, always
    assert self_agreement(gaps, noise_scale(gaps, 0.6)) == pytest.approx(0.6)


def test_noise_is_gumbel() -> None:
    numbers = np.array([gumbel(3, "noise", i) for i in range(20_000)])
    assert numbers.mean() == pytest.approx(np.euler_gamma, abs=0.04)
    assert numbers.var() == pytest.approx(math.pi**2 / 6, abs=0.08)
    assert gumbel(3, "noise", 5) == numbers[5]
    assert gumbel(4, "noise", 5) != numbers[5]


def test_pairs_alike_knows_ties() -> None:
    assert pairs_alike((1, 2), (2, 1)) == (0, 1)
    assert pairs_alike((1, 1), (2, 2)) == (1, 1)
    assert pairs_alike((1, 1), (1, 2)) == (0, 1)
    assert pairs_alike((1, 2, 3, 4), (1, 2, 4, 3)) == (5, 6)
