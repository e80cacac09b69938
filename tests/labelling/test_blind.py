"""Before/after as tasks, and the answers to them as votes: which side won must not get lost on the way."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from command_line import konomi
from konomi.errors import DataError
from konomi.labelling.answers import collect, save
from konomi.labelling.assignments import next_task
from konomi.labelling.blind import decided_prompts, is_comparison, tasks_of_comparison, verdict, votes_of
from konomi.labelling.database import Store
from konomi.labelling.export import rankings
from konomi.labelling.import_tasks import add_tasks
from konomi.labelling.people import add_person
from konomi.labelling.project import create_project, open_project
from konomi.labelling.records import MESSAGES, Answer, Exported
from konomi.runs.directory import RunDir
from konomi.web.figures import find
from people_at_work import NOW, skip, take


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


def test_what_people_said_keeps_the_conversation(tmp_path: Path) -> None:
    rows = comparison(10, samples=2)["texts"][:20]
    talks = [[{"role": "system", "content": each}, {"role": "user", "content": "今日は"}] for each in "ST"]
    for number, row in enumerate(rows):
        row |= {"prompt": "今日は", "messages": talks[number % 2], "chat": True}
    tasks = tasks_of_comparison({"texts": rows}, "run-1")
    assert [task.columns[MESSAGES] for task in tasks[:20]] == talks * 10
    assert [(task.kind, task.columns[MESSAGES]) for task in tasks[20:]] == [("same", talk) for talk in talks]
    project, _ = create_project(tmp_path / "P", tasks)
    with project.store() as store:
        answered(store, "one", "新しい")
        said = rankings(collect(store))
    assert len(said) == 22 and all(each.messages in talks for each in said)
    with pytest.raises(DataError, match=r"compare.json: texts, row 2: message 1 of 'messages' is a text; \{"):
        tasks_of_comparison({"texts": [rows[0], {**rows[1], "messages": ["x"]}]}, "run-1")


@pytest.mark.parametrize("texts", [[], [{**comparison()["texts"][0], "after": "古い文 0 0 "}], comparison()["texts"][-1:]])
def test_nothing_to_compare(texts: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match="no held-out prompt with two different texts: there is nothing to compare blind"):
        tasks_of_comparison({"texts": texts}, "run-1")


def answered_project(path: Path, samples: int = 1) -> Exported:
    """One person likes what is new, the other finds all the same."""
    project, _ = create_project(path, tasks_of_comparison(comparison(20, samples), "run-1"))
    with project.store() as store:
        answered(store, "one", "新しい")
        answered(store, "other", "文")  # which stands in every text
        return collect(store)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run whose before/after is to be compared in the project P."""
    monkeypatch.chdir(tmp_path)
    return RunDir.create(tmp_path / "runs", "tuned", {"model": {"name": "lab/Nice-LM"}}, seed=0)


def project_of(run: RunDir, texts: list[dict[str, Any]], project: str = "P") -> str:
    """Write the before/after of a run and make a project of it; return what is printed."""
    run.write_json("compare.json", {"texts": texts})
    return konomi("compare", str(run.path), "--people", project, code=0).output


def collected(answers: bool = True) -> Exported:
    with open_project(Path("P")).store() as store:
        if answers:
            answered(store, "one", "新しい")
        return collect(store)


def test_texts_that_training_did_not_change_are_told_and_count_as_ties(run: RunDir) -> None:
    texts = comparison()["texts"][:20]
    printed = project_of(run, [*texts[:10], *({**each, "after": each["before"]} for each in texts[10:])])
    assert "10 prompts: enough to show a true win rate of " in printed  # of those that are shown
    with open_project(Path("P")).store() as store:
        again = {"texts": [*texts[:1], {**texts[19], "after": texts[19]["before"]}]}
        assert add_tasks(store, tasks_of_comparison(again, "x")).known == 1
    found = verdict(collected())
    assert (found["votes"], found["win_rate"]["value"]) == (10, 1.0)
    unchanged = found["unchanged"]
    assert (unchanged["texts"], unchanged["of"], unchanged["win_rate"]["value"]) == (10, 20, pytest.approx(0.75))
    assert unchanged["win_rate"]["low"] == pytest.approx(0.65, abs=0.06)  # 20 prompts, resampled together
    assert unchanged["win_rate"]["high"] == pytest.approx(0.85, abs=0.06)
    line = "; 10 of 20 texts are the same before and after, and nobody was shown them: with these as ties 75.0 % ("
    assert line in konomi("export", "P", "--out", "out", code=0).output


def test_what_is_planned_counts_prompts(run: RunDir) -> None:
    twice = comparison(60, samples=2)["texts"]
    printed = project_of(run, [*twice, *twice[:10]])
    assert "60 prompts: enough to show" in printed
    assert "13 A/A items: two texts of the same model" in printed
    exported = collected()
    assert verdict(exported)["enough"]["planned"] == decided_prompts(exported) == 60
    found = find(Path("P"))
    assert (found.comparison, found.comparisons, found.couples) == (True, 60, 0)
    assert found.shown()["enough"] == {"comparisons": 60, "needed": 210, "words": "enough_votes"}


def test_two_texts_of_a_model_come_from_the_second_sample_of_a_run(run: RunDir) -> None:
    rows = comparison()["texts"]
    printed = project_of(run, rows, "none")
    assert "there are no A/A items; konomi compare" in printed and "--samples 2 makes such texts" in printed
    rows[0]["after"] = "I am nice-lm"
    printed = project_of(run, [{**each, "again": {"before": f"B{i}", "after": f"A{i}"}} for i, each in enumerate(rows)])
    assert "20 prompts" in printed and "2 A/A items" in printed
    items = collected(answers=False).items.values()
    same = {each.text for item in items if item.kind == "same" for each in item.candidates}
    assert same == {"古い文 0 0", "B0", "新しい文です 1 0", "A1"}
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
    exported = answered_project(tmp_path / "P", samples=2)
    assert is_comparison(exported)
    votes = votes_of(exported)
    one = exported.judgements[0].rater
    raters = {vote.rater for vote in votes}
    assert len(raters) == 2
    for vote in votes:
        if vote.same:
            assert vote.gap is None and vote.share == 0.5
            continue
        assert "古い" in vote.before and "新しい" in vote.after
        assert vote.gap == (1.0 if int(vote.prompt.removeprefix("今日は")) % 4 else -1.0)
    # the one who likes what is new says so wherever it stood
    likes_new = next(rater for rater in raters if all(v.share == 1.0 for v in votes if v.rater == rater and not v.same))
    firsts = {vote.after_first for vote in votes if vote.rater == likes_new and not vote.same}
    assert firsts == {True, False}
    for vote, judgement in zip(votes, exported.judgements, strict=True):
        item = exported.items[judgement.task]
        assert vote.after_first == (item.candidates[judgement.order[0]].text == vote.after)
    assert one in raters


def test_the_verdict(tmp_path: Path) -> None:
    found = verdict(answered_project(tmp_path / "P"))
    # one person likes all that is new, the other finds no difference
    assert (found["wins"], found["ties"], found["losses"], found["people"]) == (20, 20, 0, 2)
    assert found["win_rate"]["value"] == pytest.approx(0.75)
    assert found["sign_test"]["for"] == 20
    assert found["enough"]["planned"] == 20
    assert found["unchanged"] == {"texts": 0, "of": 20, "win_rate": pytest.approx(found["win_rate"])}
    assert found["reward_model"]["agreement"]["value"] == pytest.approx((20 * 0.5 + 15) / 40)


def test_from_a_run_to_win_rates(run: RunDir) -> None:
    compare = ("compare", str(run.path), "--people", "P")
    assert "there is no before/after yet; konomi compare" in konomi(*compare, code=2).output
    run.write_json("compare.json", comparison())
    assert "leave the other options out" in konomi(*compare, "--seed", "1", code=2).output
    printed = konomi(*compare, code=0).output
    assert "konomi label P" in printed and "20 prompts: enough to show a true win rate of " in printed
    with open_project(Path("P")).store() as store:
        person = add_person(store, "other")[0]
        save(store, person, skip(take(store, person)), NOW)
    assert "nobody has compared before and after yet" in konomi("export", "P", "--out", "none", code=0).output
    collected()
    printed = konomi("export", "P", "--out", "out", code=0).output
    assert "after wins 100.0 % (" in printed and "20 wins, 0 ties, 0 losses in 20 votes" in printed
    assert "for these raters" in printed and "people in general agree with that cannot be said: it takes two raters" in printed
    found = json.loads(Path("out/verdict.json").read_text("utf-8"))
    assert found["win_rate"]["value"] == 1.0
    assert json.loads(konomi("export", "P", "--out", "2", "--json", code=0).stdout)["verdict"] == found
