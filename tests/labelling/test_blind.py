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
from konomi.labelling.answers import collect, save
from konomi.labelling.assignments import next_task
from konomi.labelling.blind import decided_prompts, is_comparison, tasks_of_comparison, verdict, votes_of
from konomi.labelling.database import Store
from konomi.labelling.import_tasks import add_tasks
from konomi.labelling.people import add_person
from konomi.labelling.project import create_project, open_project
from konomi.labelling.records import Answer, Exported
from konomi.runs.directory import RunDir
from konomi.web.figures import find
from people_at_work import take


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
    person, _ = add_person(store, name)
    now = 0.0
    while (shown := next_task(store, person, now)) is not None:
        liked = {each.key: prefer in each.text for each in shown.texts}
        even = len(set(liked.values())) == 1
        ranks = {key: 1 if even or is_liked else 2 for key, is_liked in liked.items()}
        save(store, person, Answer(id=str(uuid.uuid4()), shown=shown.id, kind="ranked", ranks=ranks), now)
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
        return collect(store)


def test_texts_that_training_did_not_change_are_told_and_count_as_ties(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "runs", "tuned", {}, seed=0)
    texts = comparison()["texts"][:20]
    run.write_json("compare.json", {"texts": [*texts[:10], *({**each, "after": each["before"]} for each in texts[10:])]})
    said = CliRunner().invoke(app, ["compare", str(run.path), "--people", str(tmp_path / "P")])
    assert said.exit_code == 0, said.output
    assert "10 prompts: enough to show a true win rate of " in said.output  # of those that are shown
    with open_project(tmp_path / "P").store() as store:
        assert add_tasks(
            store, tasks_of_comparison({"texts": [*texts[:1], {**texts[19], "after": texts[19]["before"]}]}, "x")
        ).known
        answered(store, "one", "新しい")
        found = verdict(collect(store))
    assert (found["votes"], found["win_rate"]["value"]) == (10, 1.0)
    unchanged = found["unchanged"]
    assert (unchanged["texts"], unchanged["of"], unchanged["win_rate"]["value"]) == (10, 20, pytest.approx(0.75))
    assert unchanged["win_rate"]["low"] == pytest.approx(0.65, abs=0.06)  # 20 prompts, resampled together
    assert unchanged["win_rate"]["high"] == pytest.approx(0.85, abs=0.06)
    told = "; 10 of 20 texts are the same before and after, and nobody was shown them: with these as ties 75.0 % ("
    assert told in CliRunner().invoke(app, ["export", str(tmp_path / "P"), "--out", str(tmp_path / "out")]).output


def test_what_is_planned_counts_prompts(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "runs", "tuned", {}, seed=0)
    twice = comparison(60, samples=2)
    run.write_json("compare.json", {**twice, "texts": [*twice["texts"], *twice["texts"][:10]]})
    said = CliRunner().invoke(app, ["compare", str(run.path), "--people", str(tmp_path / "P")])
    assert "60 prompts: enough to show" in said.output
    assert "13 A/A items: two texts of the same model" in said.output
    with open_project(tmp_path / "P").store() as store:
        answered(store, "one", "新しい")
        exported = collect(store)
    assert verdict(exported)["enough"]["planned"] == 60
    assert decided_prompts(exported) == 60
    found = find(tmp_path / "P")
    assert (found.comparison, found.comparisons, found.couples) == (True, 60, 0)
    assert found.shown()["enough"] == {"comparisons": 60, "needed": 210, "words": "enough_votes"}


def test_two_texts_of_a_model_come_from_the_second_sample_of_a_run(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "runs", "tuned", {"model": {"name": "lab/Nice-LM"}}, seed=0)
    run.write_json("compare.json", comparison())
    said = CliRunner().invoke(app, ["compare", str(run.path), "--people", str(tmp_path / "none")])
    assert "there are no A/A items; konomi compare" in said.output and "--samples 2 makes such texts" in said.output
    rows = comparison()["texts"]
    rows[0]["after"] = "I am nice-lm"
    run.write_json(
        "compare.json", {"texts": [{**each, "again": {"before": f"B{i}", "after": f"A{i}"}} for i, each in enumerate(rows)]}
    )
    said = CliRunner().invoke(app, ["compare", str(run.path), "--people", str(tmp_path / "P")])
    assert "20 prompts" in said.output and "2 A/A items" in said.output
    with open_project(tmp_path / "P").store() as store:
        items = collect(store).items.values()
    assert {each.text for item in items if item.kind == "same" for each in item.candidates} == {
        "古い文 0 0",
        "B0",
        "新しい文です 1 0",
        "A1",
    }
    assert [named for item in items for named in item.names_model].count(True) == 1  # the run's model is known by name


@pytest.mark.parametrize(
    "change",
    [{"prompt": None}, {"before": 3}, {"after": None}, {"again": []}, {"again": {"before": "x"}}],
    ids=str,
)
def test_a_damaged_comparison_is_one_message(change: dict[str, Any]) -> None:
    texts = comparison()["texts"]
    for rows in ([texts[0], {**texts[1], **change}], [texts[0], "row"]):
        with pytest.raises(
            DataError, match=r"^texts, row 2: prompt, before and after have to be texts: compare.json is damaged; "
        ):
            tasks_of_comparison({"texts": rows}, "run-1")
    with pytest.raises(DataError, match=r"^texts is not a list: compare.json is damaged; konomi compare RUN writes it again$"):
        tasks_of_comparison({"texts": {}}, "run-1")


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
    assert found["unchanged"] == {"texts": 0, "of": 20, "win_rate": pytest.approx(found["win_rate"])}
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
    assert (
        "for these raters" in said.output
        and "people in general agree with that cannot be said: it takes two raters" in said.output
    )
    found = json.loads((tmp_path / "out" / "verdict.json").read_text("utf-8"))
    assert found["win_rate"]["value"] == 1.0
    assert json.loads(invoke(app, ["export", str(project), "--out", str(tmp_path / "2"), "--json"]).stdout)["verdict"] == found


def test_nobody_has_compared_yet(tmp_path: Path) -> None:
    project, _ = create_project(tmp_path / "P", tasks_of_comparison(comparison(), "run-1"))
    with project.store() as store:
        person, _ = add_person(store, "one")
        shown = take(store, person, 0.0)
        save(store, person, Answer(id=str(uuid.uuid4()), shown=shown.id, kind="skipped", reason="?"), 0.0)
    said = CliRunner().invoke(app, ["export", str(project.path), "--out", str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    assert "nobody has compared before and after yet" in said.output
