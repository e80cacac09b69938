"""`konomi judge`: a stand-in that is called one, and ranks as the mathematics says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import assert_mistakes, konomi, sets
from konomi.data.formats import read_comparisons, read_scores, read_tasks, write_records
from konomi.data.records import Candidate, Prompt, Ranking, Task
from konomi.jobs.judge import pairs_alike, ranks
from tiny import ALPHABET, tiny_config, tiny_tokenizer

REWARD = """
def length(responses):
    return [float(len(text)) for text in responses]

def weighted(responses, weight):
    return [len(text) * weight[i] for i, text in enumerate(responses)]

def flat(responses):
    return [1.0 for _ in responses]

def broken(responses):
    return [float("nan") for _ in responses]
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 120 tasks of four candidates, a reward and a job file; it is the current directory."""
    tasks = []
    for i in range(120):
        texts = ["x" * (1 + (7 * i + 3 * k) % 11) for k in range(4)]
        candidates = [Candidate(text, {"model": "ab"[k % 2]}) for k, text in enumerate(texts)]
        tasks.append(Task(f"prompt {i}", tuple(candidates), {"weight": 2}))
    write_records(tmp_path / "candidates.jsonl", tasks)
    (tmp_path / "taste.py").write_text(REWARD, encoding="utf-8")
    (tmp_path / "job.toml").write_text(
        """
        candidates = "candidates.jsonl"
        [reward]
        kind = "function"
        name = "taste.py:length"
        [run]
        mlflow = false
        """,
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judged(name: str, *settings: str) -> tuple[list[Ranking], dict[str, Any]]:
    """The rankings of a run and its manifest."""
    konomi("judge", "job.toml", "--json", *sets(f"run.name={name}", *settings), code=0)
    run = Path("runs") / name
    rankings = [each for each in read_comparisons(run / "rankings.jsonl") if isinstance(each, Ranking)]
    return rankings, json.loads((run / "manifest.json").read_text(encoding="utf-8"))


def test_rankings_of_a_stand_in_and_the_truth(world: Path) -> None:
    rankings, manifest = judged("one")
    tasks = read_tasks("candidates.jsonl")
    first = [each for each in rankings if each.rater == "stand-in"]
    second = {each.prompt: each for each in rankings if each.rater == "stand-in-2"}
    assert [each.prompt for each in first] == [task.prompt for task in tasks]
    assert [each.responses for each in first] == [tuple(c.text for c in task.candidates) for task in tasks]
    assert {each.source for each in rankings} == {"a, b"}
    assert len(rankings) == len(first) + len(second) and 10 < len(second) < 40
    assert any(each.ranks != second[each.prompt].ranks for each in first if each.prompt in second)
    truth = {(each.prompt, each.response): each for each in read_scores("runs/one/truth.jsonl")}
    assert len(truth) == 480
    assert all(each.score == len(text) and each.rater == "stand-in-without-noise" for (_, text), each in truth.items())
    alike = [pairs_alike(each.ranks, ranks([len(text) for text in each.responses])) for each in first]
    agreed = sum(same for same, _ in alike) / sum(pairs for _, pairs in alike)
    assert agreed == pytest.approx(manifest["agreement_with_truth_expected"], abs=0.05)
    assert manifest["self_agreement_expected"] == pytest.approx(0.75)
    assert manifest["self_agreement"] == pytest.approx(0.75, abs=0.05)
    assert (manifest["pairs"], manifest["tasks_ranked_twice"], manifest["people"]) == (720, len(second), False)
    assert manifest["noise_scale"] > 0


def test_it_is_called_a_stand_in_everywhere(world: Path) -> None:
    result = konomi("judge", "job.toml")
    assert "stand-in for people (no person is asked)" in result.stderr
    assert "stand-in for people" in result.stdout and "No person was asked" in result.stdout
    assert "STAND-IN FOR PEOPLE" in konomi("judge", "--help").stdout


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
    few = {each.prompt for each in judged("few", "judge.overlap=0.1")[0] if each.rater == "stand-in-2"}
    many = {each.prompt for each in judged("many", "judge.overlap=0.5")[0] if each.rater == "stand-in-2"}
    assert few < many < {task.prompt for task in read_tasks("candidates.jsonl")}
    assert not [each for each in judged("none", "judge.overlap=0")[0] if each.rater == "stand-in-2"]
    assert len({Prompt(text).key for text in many}) == len(many)


def test_columns_reach_the_reward(world: Path) -> None:
    judged("weighted", "reward.name=taste.py:weighted")
    assert all(each.score == 2 * len(each.response) for each in read_scores("runs/weighted/truth.jsonl"))


MISTAKES: list[tuple[list[str], list[str]]] = [
    (["candidates=none.jsonl"], ["none.jsonl"]),
    (["candidates=taste.py"], ["taste.py"]),
    (["judge.agreement=0.5"], ["judge.agreement", "greater than 0.5"]),
    (["judge.agreement=1.1"], ["judge.agreement", "less than or equal to 1"]),
    (["judge.overlap=2"], ["judge.overlap"]),
    (["reward.name=taste.py:nothing"], ["nothing"]),
    (["candidate=x"], ["section.key=value"]),
    (['run.sinks=["mlflow", "tensorboard"]'], ['tensorboard is not installed; pip install "konomi[tensorboard]"']),
]  # fmt: skip


def test_wrong_use_is_one_message_exit_2_and_nothing_written(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    (world / "empty.toml").write_text("[judge]\nagreement = 0.8\n", encoding="utf-8")
    assert "empty.toml: candidates: Field required" in konomi("judge", "empty.toml", code=2).stderr
    assert_mistakes(world, ((("judge", "job.toml", *sets(*settings)), words) for settings, words in MISTAKES), monkeypatch)


def test_a_reward_that_cuts_texts_says_how_many_before_it_begins(world: Path) -> None:
    import transformers

    letters = ALPHABET[:26]
    tasks = [Task(a + b, (Candidate(b), Candidate(a * 5)), {}) for a, b in zip(letters, letters[::-1], strict=True)]
    write_records(world / "candidates.jsonl", tasks)
    transformers.GPT2ForSequenceClassification(tiny_config("gpt2", num_labels=2)).save_pretrained(world / "labels")
    tiny_tokenizer().save_pretrained(world / "labels")
    (world / "job.toml").write_text(
        'candidates = "candidates.jsonl"\n[reward]\nkind = "classifier"\nname = "labels"\nlabel = 1\nmax_length = 7\n'
        "[run]\nmlflow = false\n",
        encoding="utf-8",
    )
    result = konomi("judge", "job.toml", "--set", "reward.max_length=3")
    assert (result.exit_code, (world / "runs").exists()) == (2, False)
    assert f"{len(tasks)} of {len(tasks)} prompts are that long by themselves" in result.stderr
    result = konomi("judge", "job.toml", code=0)
    assert f"{len(tasks)} of {2 * len(tasks)} texts are cut, the longest has 8 tokens" in result.stderr


def test_an_agreement_that_cannot_be_reached_and_a_reward_that_fails(world: Path) -> None:
    flat = konomi("judge", "job.toml", "--set", "reward.name=taste.py:flat", code=2)
    assert "720 of the 720 pairs of candidates have equal scores" in flat.stderr
    konomi("judge", "job.toml", *sets("reward.name=taste.py:broken", "run.name=broken"), code=1)
    assert len(Path("runs/broken/failed_texts.jsonl").read_text(encoding="utf-8").splitlines()) == 128
    assert json.loads(Path("runs/broken/run.json").read_text(encoding="utf-8"))["status"] == "failed"
