"""The figures of a project of rankings: what is in them, against the functions that they come from and against the truth."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from konomi.data.records import Candidate
from konomi.labelling.answers import collect, save
from konomi.labelling.assignments import next_task
from konomi.labelling.export import rankings
from konomi.labelling.import_tasks import create_store
from konomi.labelling.people import add_person
from konomi.labelling.queue import Settings
from konomi.labelling.records import Exported, NewTask
from konomi.labelling.summary import lines, statistics
from konomi.statistics.agreement import inter_rater
from people_at_work import NOW, answer_to, store_of, work


def judged(path: Path, noise: float, seed: int = 0) -> Exported:
    """40 tasks with a text of "good", "middling" and "poor" each, longer ones not better; three people with noise in them."""
    drawn = random.Random(seed)
    worth = {"good": 2.0, "middling": 1.0, "poor": 0.0}
    made = [
        NewTask(
            f"prompt {n}",
            tuple(Candidate(f"{n} {'x' * drawn.randint(1, 30)} {place}", {"model": name}) for place, name in enumerate(worth)),
        )
        for n in range(40)
    ]
    store, _ = create_store(path, made, Settings(overlap=3, repeats=0.2))
    with store:
        for name in ("a", "b", "c"):
            person = add_person(store, name)[0]
            at = NOW
            while (shown := next_task(store, person, at)) is not None:
                heard = {t.key: 2.0 - int(t.text[-1]) + drawn.gauss(0, noise) for t in shown.texts}
                ranks = [1 + sum(other > heard[t.key] for other in heard.values()) for t in shown.texts]
                save(store, person, answer_to(shown, ranks), at)
                at += 1
        return collect(store)


def test_the_better_model_comes_first_and_people_agree_as_far_as_they_do(tmp_path: Path) -> None:
    exported = judged(tmp_path / "l.sqlite3", noise=0.6)
    figures = statistics(exported)
    assert (figures["comparisons"], figures["ties"]) == (3 * 40 * 3, 0)
    assert figures["agreement"] == inter_rater(rankings(exported))
    assert figures["agreement"]["couples"] == 40 * 3 * 3
    assert 0.6 < figures["agreement"]["share"]["value"] < 0.95
    repeats = [each for each in exported.judgements if each.repeat]
    assert figures["oneself"]["couples"] == 3 * len(repeats) > 30
    assert figures["concordance"]["tasks"] == 40 and figures["concordance"]["people"] == 3
    assert [each["records"] for each in figures["people"]] == [
        sum(each.rater == rater for each in exported.judgements) for rater in sorted({each.rater for each in exported.judgements})
    ]
    for held in ("raw", "equal_length"):
        items = figures["models"][held]["items"]
        assert [each["item"] for each in items] == ["good", "middling", "poor"]
        assert items[0]["strength"]["low"] > items[2]["strength"]["high"]
    assert figures["models"]["equal_length"]["covariates"]["length"] is not None
    printed = lines(figures)
    assert printed[0] == "360 comparisons and 0 ties; about 2,000 are a beginning"
    assert printed[1].startswith("people agree with one another on ") and "of 360 pairs" in printed[1]
    assert printed[2].startswith("people agree with themselves on ")
    assert printed[3].startswith("liked better (Bradley-Terry strength in logits, 0 is the mean; 95 %): good +")


def test_people_without_noise_agree_in_everything(tmp_path: Path) -> None:
    figures = statistics(judged(tmp_path / "l.sqlite3", noise=0.0))
    assert figures["agreement"]["share"]["value"] == figures["oneself"]["share"]["value"] == 1
    assert figures["concordance"]["w"]["value"] == pytest.approx(1)
    assert [each["others"]["share"]["value"] for each in figures["people"]] == [1, 1, 1]


def test_one_person_one_model_and_nobody(tmp_path: Path) -> None:
    with store_of(tmp_path, 8, repeats=0.0) as store:
        work(store, add_person(store, "a")[0])
        figures = statistics(collect(store))
        assert figures["comparisons"] == 24
        assert figures["agreement"] is figures["oneself"] is figures["concordance"] is None
        assert figures["people"][0]["others"] is figures["people"][0]["oneself"] is None
        assert figures["models"]["raw"]["contests"] == 24
        assert len(lines(figures)) == 2
    one, _ = create_store(
        tmp_path / "one.sqlite3", [NewTask("p", (Candidate("a", {"model": "m"}), Candidate("b")))], Settings(repeats=0)
    )
    with one:
        assert statistics(collect(one))["comparisons"] == 0
        work(one, add_person(one, "a")[0])
        figures = statistics(collect(one))
        assert figures["models"] is None and len(lines(figures)) == 1


def test_two_tasks_that_share_texts_are_no_repeat(tmp_path: Path) -> None:
    texts = [Candidate(text, {"model": text}) for text in "abcd"]
    made = [NewTask("p", tuple(texts[:3])), NewTask("p", tuple(texts[1:]))]
    with create_store(tmp_path / "l.sqlite3", made, Settings(repeats=0))[0] as store:
        work(store, add_person(store, "a")[0])
        figures = statistics(collect(store))
    assert len(figures["people"]) == 1 and figures["people"][0]["records"] == 2
    assert figures["oneself"] is None and figures["people"][0]["oneself"] is None
