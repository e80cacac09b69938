"""Before/after as tasks, and the answers to them as votes: which side won must not get lost on the way."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from konomi.cli import app
from konomi.errors import DataError
from konomi.feedback.before_after import is_comparison, tasks_of_comparison, verdict, votes_of
from konomi.feedback.project import create_project, open_project
from konomi.feedback.records import Answer, Exported
from konomi.feedback.store import Store
from konomi.runs import RunDir


def comparison(prompts: int = 20, samples: int = 1) -> dict[str, Any]:
    texts = [
        {
            "prompt": f"今日は{number}",
            "before": f"古い文 {number} {sample}",
            "after": f"新しい文です {number} {sample}",
            "score_before": 0.0,
            "score_after": 1.0 if number % 4 else -1.0,
            "held_out": True,
        }
        for number in range(prompts)
        for sample in range(samples)
    ]
    return {"version": 1, "texts": [*texts, {**texts[0], "prompt": "extra", "held_out": False}]}


def answered(store: Store, name: str, prefer: str) -> None:
    """Somebody likes the text better in which ``prefer`` stands."""
    person, _ = store.add_person(name)
    now = 0.0
    while (shown := store.next_task(person, now)) is not None:
        liked = {each.key: prefer in each.text for each in shown.texts}
        even = len(set(liked.values())) == 1
        ranks = {key: 1 if even or is_liked else 2 for key, is_liked in liked.items()}
        store.answer(person, Answer(str(uuid.uuid4()), shown.id, "ranked", ranks), now)
        now += 1


def test_the_held_out_prompts_become_tasks() -> None:
    tasks = tasks_of_comparison(comparison(), "run-1")
    assert len(tasks) == 20
    assert {task.kind for task in tasks} == {"compare"}
    assert [each.source for each in tasks[1].candidates] == [
        {"model": "before", "run": "run-1", "score": 0.0},
        {"model": "after", "run": "run-1", "score": 1.0},
    ]


def test_two_texts_of_one_model_where_there_are_two() -> None:
    tasks = tasks_of_comparison(comparison(20, samples=2), "run-1")
    same = [task for task in tasks if task.kind == "same"]
    assert (len(tasks) - len(same), len(same)) == (40, 4)
    for number, task in enumerate(same):
        assert [each.source["model"] for each in task.candidates] == [("before", "after")[number % 2]] * 2
        assert task.candidates[0].text != task.candidates[1].text


@pytest.mark.parametrize("texts", [[], [{**comparison()["texts"][0], "after": "古い文 0 0 "}], comparison()["texts"][-1:]])
def test_nothing_to_compare(texts: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match="no held-out prompt with two different texts: there is nothing to compare blind"):
        tasks_of_comparison({"texts": texts}, "run-1")


def made(path: Path, samples: int = 1) -> Exported:
    project, _ = create_project(path, tasks_of_comparison(comparison(20, samples), "run-1"))
    with project.store() as store:
        answered(store, "one", "新しい")
        answered(store, "other", "文")  # finds all the same: it stands in every text
        return store.export()


def test_votes_know_which_side_won(tmp_path: Path) -> None:
    exported = made(tmp_path / "P", samples=2)
    assert is_comparison(exported)
    votes = votes_of(exported)
    one = exported.judgements[0].rater
    said = {vote.rater for vote in votes}
    assert len(said) == 2
    for vote in votes:
        if vote.same:
            assert vote.gap is None and vote.share == 0.5
            continue
        assert "古い" in vote.before and "新しい" in vote.after
        assert vote.gap == (1.0 if int(vote.prompt.removeprefix("今日は")) % 4 else -1.0)
    # the one who likes what is new says so wherever it stood
    likes_new = next(rater for rater in said if all(v.share == 1.0 for v in votes if v.rater == rater and not v.same))
    firsts = {vote.after_first for vote in votes if vote.rater == likes_new and not vote.same}
    assert firsts == {True, False}
    for vote, judgement in zip(votes, exported.judgements, strict=True):
        item = exported.items[judgement.task]
        assert vote.after_first == (item.candidates[judgement.order[0]].text == vote.after)
    assert one in said


def test_the_verdict(tmp_path: Path) -> None:
    found = verdict(made(tmp_path / "P"))
    # one person likes all that is new, the other finds no difference
    assert (found["wins"], found["ties"], found["losses"], found["people"]) == (20, 20, 0, 2)
    assert found["win_rate"]["value"] == pytest.approx(0.75)
    assert found["sign_test"]["for"] == 20
    assert found["enough"]["planned"] == 20
    assert found["reward_model"]["agreement"]["value"] == pytest.approx((20 * 0.5 + 15) / 40)


def test_from_a_run_to_win_rates(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "runs", "tuned", {}, seed=0)
    invoke = CliRunner().invoke
    project = tmp_path / "P"
    said = invoke(app, ["compare", str(run.path), "--people", str(project)])
    assert said.exit_code == 2
    assert "there is no before/after yet; konomi compare" in said.output
    run.write_json("compare.json", comparison())
    said = invoke(app, ["compare", str(run.path), "--people", str(project), "--seed", "1"])
    assert said.exit_code == 2 and "leave the other options out" in said.output
    said = invoke(app, ["compare", str(run.path), "--people", str(project)])
    assert said.exit_code == 0, said.output
    assert f"konomi label {project}" in said.output
    assert "20 prompts: enough to show a true win rate of " in said.output
    with open_project(project).store() as store:
        answered(store, "one", "新しい")
    said = invoke(app, ["export", str(project), "--out", str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    assert "after wins 100.0 % (" in said.output and "20 wins, 0 ties, 0 losses in 20 votes" in said.output
    found = json.loads((tmp_path / "out" / "verdict.json").read_text("utf-8"))
    assert found["win_rate"]["value"] == 1.0
    assert json.loads(invoke(app, ["export", str(project), "--out", str(tmp_path / "2"), "--json"]).stdout)["verdict"] == found


def test_nobody_has_compared_yet(tmp_path: Path) -> None:
    project, _ = create_project(tmp_path / "P", tasks_of_comparison(comparison(), "run-1"))
    with project.store() as store:
        person, _ = store.add_person("one")
        shown = store.next_task(person, 0.0)
        assert shown is not None
        store.answer(person, Answer(str(uuid.uuid4()), shown.id, "skipped", reason="?"), 0.0)
    said = CliRunner().invoke(app, ["export", str(project.path), "--out", str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    assert "nobody has compared before and after yet" in said.output
