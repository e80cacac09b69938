"""The stage in which people rank: when the page opens and closes, what is written, what is refused."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from konomi.config import LabelJob
from konomi.data.formats import read_comparisons
from konomi.errors import ConfigError, DataError, RunError
from konomi.jobs.label import run_label
from konomi.labelling.assignments import next_task
from konomi.labelling.people import add_person, find_person, forget, new_token
from konomi.labelling.project import create_project, open_project, tasks_of
from konomi.labelling.queue import Settings
from konomi.runs.observer import Observer
from konomi.web.app import make_app
from konomi.web.serve import serve
from konomi.web.session import Site
from label_site import candidates_file
from people_at_work import work


class Heard(Observer):
    """What was said, and somebody who reads it."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    warn = say

    def progress(self, what: str, done: int, total: int, figures: Any = None) -> None:
        self.said.append(f"{done} of {total} {what}")


def job(tmp_path: Path, **label: Any) -> LabelJob:
    candidates = candidates_file(tmp_path / "c.jsonl") if not (tmp_path / "c.jsonl").exists() else tmp_path / "c.jsonl"
    label = {"project": str(tmp_path / "people"), **label}
    return LabelJob.model_validate({"candidates": str(candidates), "label": label, "run": {"name": "rank", "mlflow": False}})


def answered(tmp_path: Path, limit: int) -> None:
    """A project of the candidates, with so many answers of one person."""
    project, _ = create_project(
        tmp_path / "people", tasks_of(candidates_file(tmp_path / "c.jsonl")), settings=Settings(overlap=1, repeats=0)
    )
    with project.store() as store:
        work(store, add_person(store, "a")[0], limit)


@pytest.mark.parametrize("label", [{}, {"comparisons": 24}])
def test_where_there_is_enough_no_page_opens(tmp_path: Path, label: dict[str, Any]) -> None:
    answered(tmp_path, 8)
    heard = Heard()
    result = run_label(job(tmp_path, strength=True, **label), tmp_path / "runs", heard)
    (warned,) = [line for line in heard.said if line.startswith("label.strength = true: ")]
    assert warned.endswith('does not ask for it; set "strength": true under "label" in its project.json')
    assert not [line for line in heard.said if "http" in line]
    assert (result["status"], result["comparisons"]) == ("finished", 24)
    assert len(read_comparisons(Path(result["rankings"]))) == 8
    assert json.loads((tmp_path / "runs" / "rank" / "run.json").read_text("utf-8"))["status"] == "finished"


def test_the_page_is_open_until_every_task_has_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("konomi.web.serve.EVERY", 0.05)
    monkeypatch.setattr("konomi.web.serve.LINGER", 0.05)
    answered(tmp_path, 6)
    heard = Heard()

    def person() -> None:
        while not any("http" in line for line in heard.said):
            time.sleep(0.05)
        with open_project(tmp_path / "people").store() as store:
            work(store, find_person(store, "a"))

    other = threading.Thread(target=person, daemon=True)
    other.start()
    result = run_label(job(tmp_path), tmp_path / "runs", heard)
    other.join(60)
    assert not other.is_alive()
    assert result["comparisons"] == 24
    assert [line for line in heard.said if line.startswith("24 comparisons")]
    progress = [line for line in heard.said if line.endswith(" of 8 answers")]
    assert progress[0] == "6 of 8 answers" and progress[-1] == "8 of 8 answers" and len(set(progress)) == len(progress)


def test_a_closed_collection_is_taken_as_it_is_and_one_of_nobody_refused(tmp_path: Path) -> None:
    answered(tmp_path, 3)
    with open_project(tmp_path / "people").store() as store:
        store.freeze()
    assert run_label(job(tmp_path), tmp_path / "runs")["comparisons"] == 9
    with (tmp_path / "c.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"version": 1, "prompt": "new", "candidates": [{"text": "a"}, {"text": "b"}]}\n')
    for number in range(2):  # it is no less closed the second time
        with pytest.raises(DataError, match=r"people: the collection is closed, so nobody could answer 1 new task; reopen"):
            run_label(job(tmp_path), tmp_path / f"closed-{number}")
    candidates_file(tmp_path / "c.jsonl")
    with open_project(tmp_path / "people").store() as store:
        forget(store, find_person(store, "a").id)
    with pytest.raises(DataError, match="nobody has put two texts in order yet"):
        run_label(job(tmp_path), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "rank" / "run.json").read_text("utf-8"))["status"] == "failed"


def test_the_next_round_lets_in_the_people_of_the_last_one(tmp_path: Path) -> None:
    answered(tmp_path, 8)
    (tmp_path / "people").rename(tmp_path / "last")
    with open_project(tmp_path / "last").store() as store:
        add_person(store, "b")
    (tmp_path / "last" / "guidelines.md").write_text("Be kind.", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError):  # the project is there, its page is not
        run_label(job(tmp_path, people=str(tmp_path / "last"), port=taken.getsockname()[1]), tmp_path / "runs")
    with open_project(tmp_path / "people").store() as store:
        assert {find_person(store, name).name for name in ("a", "b")} == {"a", "b"}
    assert open_project(tmp_path / "people").guidelines() == "Be kind."


def test_what_cannot_be_served_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add --allow-network"):
        run_label(job(tmp_path, host="0.0.0.0"), tmp_path / "runs")
    with pytest.raises(ConfigError, match="https://"):
        run_label(job(tmp_path, public_url="http://rank.example"), tmp_path / "runs")
    (tmp_path / "c.jsonl").write_text('{"version": 1, "prompt": "p", "candidates": []}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"c\.jsonl"):
        run_label(job(tmp_path), tmp_path / "runs")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "people").exists()


def test_a_server_that_ends_by_itself_hands_out_no_more_and_still_takes_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(tmp_path, 0)
    asked = 0

    def until(site: Site) -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise RunError("busy")  # is asked again
        return True

    monkeypatch.setattr("konomi.web.serve.EVERY", 0.05)
    monkeypatch.setattr("konomi.web.serve.LINGER", 0.05)
    assert serve(open_project(tmp_path / "people"), say=lambda _: None, until=until)
    assert asked == 2
    app = make_app(open_project(tmp_path / "people"))
    app.state.site.closing = True
    from starlette.testclient import TestClient

    from label_site import BASE, OURS, answer_to

    client = TestClient(app, base_url=BASE, headers=OURS)
    store = app.state.site.store
    person = add_person(store, "b")[0]
    shown = next_task(store, person, time.time())
    client.cookies.set(app.state.site.cookie, new_token(store, person.id, session=True), domain="127.0.0.1")
    end = client.get("/api/next").json()
    assert end["task"] is None and end["progress"]["frozen"] is True
    task = {"id": shown.id, "texts": [{"key": each.key} for each in shown.texts]}
    assert client.post("/api/answers", json=answer_to(task)).json()["saved"] is True
    app.state.site.close()
