"""The JSON of the ranking page: what it says, what it never says, and bad input in the reader's language."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from konomi.labelling.answers import collect
from konomi.labelling.export import rankings
from konomi.labelling.people import all_people, find_person, forget
from konomi.report.advice import FEW_COMPARISONS
from konomi.statistics.aggregation import count_votes
from konomi.web.errors import catalogue
from konomi.web.figures import NEEDED_COMPARISONS, Found
from label_site import MODEL, Site, answer_to, make_project, refusal, wait_for


def work(client: TestClient, most: int = 1000, **more: Any) -> list[dict[str, Any]]:
    """Answer what there is, and return the tasks."""
    done = []
    while len(done) < most and (task := client.get("/api/next").json()["task"]):
        assert client.post("/api/answers", json=answer_to(task, **more)).json()["saved"] is True
        done.append(task)
    return done


def test_from_the_first_task_to_the_last(site: Site) -> None:
    client = site.person("Hana")
    me = client.get("/api/me").json()
    assert me == {
        "person": find_person(site.site.store, "Hana").id,
        "name": "Hana",
        "admin": False,
        "languages": ["ja", "en"],
        "lang": "ja",
        "title": "P",
        "asked": {"strength": False, "edit": False},
        "shortcuts": True,
        "guidelines_seen": None,
    }
    said = client.get("/api/next").json()
    task = said["task"]
    assert set(task) == {"id", "prompt", "lang", "texts", "revision"}
    assert [set(each) for each in task["texts"]] == [{"key", "text", "lang", "flags"}] * 3
    assert said["progress"]["target"] == 16
    assert client.get("/api/next").json()["task"] == task  # until it is answered
    answer = answer_to(task, comment="良い", confidence=2, flags={"a": ["unsafe"]})
    assert client.post("/api/answers", json=answer).json() == {"saved": True, "id": answer["id"], "revision": 1}
    assert client.get("/api/next").json()["task"]["id"] != task["id"]
    assert client.get("/api/progress").json()["mine"] == 1
    work(client)
    end = client.get("/api/next").json()
    assert end["task"] is None
    assert (end["progress"]["left"], end["progress"]["team"]) == (0, 8)
    mine = client.get("/api/mine").json()
    assert (len(mine["answers"]), mine["more"]) == (end["progress"]["mine"], False)


def test_all_own_answers_can_be_found(tmp_path: Path) -> None:
    site = Site(make_project(tmp_path / "P", count=120, repeats=0, overlap=1))
    client, other = site.person("Hana"), site.person("Jiro")
    done = [task["id"] for task in work(client, 119)]
    found: list[str] = []
    for more in (True, True, False):
        said = client.get("/api/mine", params={"before": found[-1]} if found else {}).json()
        assert said["more"] is more
        found += [each["shown"] for each in said["answers"]]
    assert found == done[::-1]
    for path in ("/api/mine?before=nothing", f"/api/mine?before={client.get('/api/next').json()['task']['id']}"):
        assert refusal(client.get(path)) == (404, "unknown_task")
    assert refusal(other.get(f"/api/mine?before={done[0]}")) == (404, "unknown_task")
    site.close()


def test_a_replayed_answer_is_one_answer(site: Site) -> None:
    client = site.person("Hana")
    answer = answer_to(client.get("/api/next").json()["task"])
    first = [client.post("/api/answers", json=answer).json() for _ in range(3)]
    assert first == [{"saved": True, "id": answer["id"], "revision": 1}] * 3
    assert client.post("/api/answers", json={**answer, "id": answer["id"].upper()}).json() == first[0]
    assert refusal(client.post("/api/answers", json={**answer, "comment": "other"})) == (409, "conflict")
    assert client.get("/api/progress").json()["mine"] == 1


def test_an_answer_is_edited(site: Site) -> None:
    client = site.person("Hana")
    (task,) = work(client, 1)
    found = client.get(f"/api/shown/{task['id']}").json()
    assert found["task"] == {**task, "revision": 1}
    assert found["answer"]["ranks"] == {"a": 1, "b": 2, "c": 3}
    assert found["answer"]["flags"] == {}
    changed = answer_to(task, kind="all_bad", ranks={}, reason="どれも壊れている", comment="\ud83d")  # half an emoji
    assert (
        client.post("/api/answers", content=json.dumps(changed), headers={"content-type": "application/json"}).json()["revision"]
        == 2
    )
    found = client.get(f"/api/shown/{task['id']}").json()["answer"]
    assert (found["kind"], found["ranks"], found["reason"], found["comment"]) == ("all_bad", {}, "どれも壊れている", "\ufffd")
    open_one = client.get("/api/next").json()["task"]["id"]
    assert client.get(f"/api/shown/{open_one}").json()["answer"] is None
    (mine,) = client.get("/api/mine").json()["answers"]
    assert (mine["shown"], mine["kind"], mine["revision"]) == (task["id"], "all_bad", 2)


def test_two_windows_do_not_overwrite_each_other(site: Site) -> None:
    client = site.person("Hana")
    task = client.get("/api/next").json()["task"]
    assert task["revision"] == 0
    one, other = answer_to(task, revision=0), answer_to(task, revision=0, ranks={"a": 2, "b": 1, "c": 1})
    assert client.post("/api/answers", json=one).json()["revision"] == 1
    assert refusal(client.post("/api/answers", json=other)) == (409, "conflict_revision")
    assert client.post("/api/answers", json=one).json()["revision"] == 1  # a replay is no conflict
    found = client.get(f"/api/shown/{task['id']}").json()
    assert (found["task"]["revision"], found["answer"]["ranks"]) == (1, one["ranks"])
    assert client.post("/api/answers", json={**other, "revision": 1}).json()["revision"] == 2
    assert client.post("/api/answers", json=answer_to(task)).json()["revision"] == 3  # others need not say it


def test_where_raters_differ_the_owner_decides(site: Site) -> None:
    for name, turn in (("Hana", 1), ("Jiro", -1)):
        client = site.person(name)
        while task := client.get("/api/next").json()["task"]:
            order = sorted(task["texts"], key=lambda each: each["text"])[::turn]
            ranks = {each["key"]: 1 + place for place, each in enumerate(order)}
            client.post("/api/answers", json=answer_to(task, ranks=ranks))
    owner = site.owner()
    found = owner.get("/api/disputes").json()
    assert (found["all"], found["open"]) == (8, 8)
    number = found["disputes"][0]["task"]
    one = owner.get(f"/api/disputes/{number}").json()
    assert (set(one["task"]), one["answer"]) == ({"id", "prompt", "lang", "texts", "revision"}, None)
    assert sorted(sum(each.values()) for each in one["rankings"]) == [6, 6]
    assert MODEL not in owner.get(f"/api/disputes/{number}").text and "Hana" not in owner.get(f"/api/disputes/{number}").text
    ranks = {"a": 1, "b": 2, "c": 2}
    body = {"ranks": ranks, "comment": "良い", "revision": 0}
    assert owner.post(f"/api/disputes/{number}", json=body).json() == {"saved": True, "revision": 1}
    assert owner.get(f"/api/disputes/{number}").json()["answer"] == {"ranks": ranks, "comment": "良い"}
    assert owner.get("/api/disputes").json()["open"] == 7
    for count, shown in ((3, 3), (8, 8), (100, 8), (-1, 0)):
        some = owner.get(f"/api/disputes?count={count}").json()
        assert [len(some["disputes"]), some["all"], some["open"]] == [shown, 8, 7]
    assert owner.get("/api/disputes").json()["disputes"][-1]["task"] == number  # what is decided comes last, and can be reached
    assert refusal(owner.get("/api/disputes?count=x")) == (400, "bad_request")
    for wrong, expected in (
        (body, (409, "conflict_revision")), ({**body, "revision": 1, "ranks": {"a": 1}}, (422, "bad_ranks")),
        ({"ranks": ranks}, (400, "bad_request")), ({**body, "more": 1}, (400, "bad_request")),
    ):  # fmt: skip
        assert refusal(owner.post(f"/api/disputes/{number}", json=wrong)) == expected
    for path in ("999", "x", "1" * 16):
        assert refusal(owner.get(f"/api/disputes/{path}")) == (404, "unknown_task")
        assert refusal(owner.post(f"/api/disputes/{path}", json=body)) == (404, "unknown_task")


def test_what_was_read_and_set_is_kept(site: Site) -> None:
    client = site.person("Hana")
    version = client.get("/api/guidelines").json()["version"]
    assert client.post("/api/me", json={"guidelines_seen": version}).json()["guidelines_seen"] == version
    assert client.post("/api/me", json={"shortcuts": False}).json()["shortcuts"] is False
    me = client.get("/api/me").json()
    assert (me["guidelines_seen"], me["shortcuts"]) == (version, False)
    assert refusal(client.post("/api/me", json={"guidelines_seen": "x" * 65})) == (400, "bad_request")
    assert refusal(client.post("/api/me", json={"shortcuts": 1})) == (400, "bad_request")


def test_guidelines_are_harmless(site: Site) -> None:
    assert site.project is not None
    guide = site.project.path / "guidelines.md"
    client = site.person("Hana")
    before = client.get("/api/guidelines").json()
    assert "並べてください" in before["html"]
    guide.write_text(
        "<script>x</script> [a](javascript:x) [b](data:text/html,x) ![c](http://x/y.png) [d](https://ok/) <b onclick=x>", "utf-8"
    )
    said = client.get("/api/guidelines").json()
    assert said["version"] != before["version"]
    html = said["html"]
    assert not any(part in html for part in ("<script", "<img", "<b ", 'href="j', 'href="d'))
    assert 'href="https://ok/"' in html
    guide.unlink()
    said = client.get("/api/guidelines?lang=en")
    assert refusal(said) == (500, "no_guidelines")
    assert str(guide) not in said.text


def test_people_come_and_go(site: Site) -> None:
    owner = site.owner()
    said = owner.post("/api/people", json={"name": "Hana"}).json()
    assert said["invite"].startswith("http://127.0.0.1:8000/i/")
    guest = site.client()
    assert guest.get(said["invite"], follow_redirects=False).headers["location"] == "/"
    assert guest.get("/api/me").json()["person"] == said["person"]["id"]
    assert site.client().get(said["invite"]).status_code == 200  # on a second device too
    assert [person["name"] for person in owner.get("/api/people").json()["people"]] == ["owner", "Hana"]
    gone = owner.delete(f"/api/people/{said['person']['id']}").json()
    assert gone["person"] == {**said["person"], "active": False}
    assert guest.get("/api/me").status_code == 401
    assert site.client().get(said["invite"]).status_code == 401
    again = owner.post(f"/api/people/{said['person']['id']}/invite", json={}).json()
    assert guest.get(again["invite"]).status_code == 200
    assert guest.get("/api/me").json()["name"] == "Hana"
    me = owner.get("/api/me").json()["person"]
    assert refusal(owner.delete(f"/api/people/{me}")) == (409, "yourself")
    assert refusal(owner.delete("/api/people/p-none")) == (404, "unknown_person")
    assert refusal(owner.post("/api/people", json={"name": "Hana"})) == (409, "name_taken")
    assert refusal(owner.post("/api/people", json={"name": " "})) == (422, "bad_name")
    assert refusal(owner.post("/api/people", json={"name": "x" * 81})) == (422, "too_long")


def test_somebody_who_is_called_owner_does_not_lock_the_owner_out(site: Site) -> None:
    site.person("owner"), site.person("owner 2")
    me = site.owner().get("/api/me").json()
    assert (me["name"], me["admin"]) == ("owner 3", True)


def test_the_owner_comes_in_again_as_the_same(site: Site) -> None:
    assert site.owner().get("/api/me").json()["person"] == site.owner().get("/api/me").json()["person"]


# -- bad input, in the reader's language ---------------------------------------------------------------------------------


BAD = {
    "unknown_task": ({"shown": "nothing"}, 404),
    "bad_id": ({"id": "1"}, 422),
    "bad_kind": ({"kind": "best"}, 422),
    "bad_ranks": ({"ranks": {"a": 1}}, 422),
    "bad_reason": ({"kind": "skipped", "ranks": {}}, 422),
    "bad_flags": ({"flags": {"a": ["nice"]}}, 422),
    "bad_confidence": ({"confidence": 4}, 422),
    "bad_seconds": ({"seconds": -1.0}, 422),
    "too_long": ({"comment": "あ" * 2001}, 422),
    "bad_request": ({"rank": {}}, 400),
}


def test_a_bad_answer_is_told_in_the_readers_language(site: Site) -> None:
    client = site.person("Hana")
    task = client.get("/api/next").json()["task"]
    for code, (wrong, status) in BAD.items():
        messages = {each: words[f"error_{code}"] for each, words in catalogue("errors").items()}
        for lang in ("ja", "en"):
            response = client.post("/api/answers", json=answer_to(task) | wrong, headers={"accept-language": f"{lang};q=0.9, fr"})
            assert refusal(response) == (status, code)
            assert response.json() == {"error": {"code": code, "message": messages[lang], "messages": messages}}
    assert client.get("/api/progress").json()["mine"] == 0


def test_numbers_that_json_should_not_hold(site: Site) -> None:
    client = site.person("Hana")
    answer = json.dumps(answer_to(client.get("/api/next").json()["task"]))
    for wrong, code in (("NaN", "bad_seconds"), ("1e999", "bad_seconds"), ('"3"', "bad_request"), ("true", "bad_request")):
        body = answer.replace('"seconds": 3.5', f'"seconds": {wrong}')
        assert body != answer
        assert refusal(client.post("/api/answers", content=body, headers={"content-type": "application/json"}))[1] == code


def test_a_frozen_project(site: Site) -> None:
    client = site.person("Hana")
    task = client.get("/api/next").json()["task"]
    done = answer_to(task)
    client.post("/api/answers", json=done)
    task = client.get("/api/next").json()["task"]
    site.site.store.freeze()
    for lang, words in catalogue("errors").items():
        said = client.post(f"/api/answers?lang={lang}", json=answer_to(task))
        assert refusal(said) == (409, "frozen")
        assert said.json()["error"]["message"] == words["error_frozen"]
    assert client.post("/api/answers", json=done).json()["saved"] is True  # it had been: the page may forget it
    end = client.get("/api/next").json()
    assert end["task"] is None and end["progress"]["frozen"] is True


def test_nothing_is_left_in_a_project(tmp_path: Path) -> None:
    """An empty project cannot be made; one in which all is done says so."""
    site = Site(make_project(tmp_path / "P", count=1, overlap=1))
    work(site.person("one"))
    said = site.person("other").get("/api/next").json()
    assert said["task"] is None
    assert (said["progress"]["left"], said["progress"]["team"], said["progress"]["target"]) == (0, 1, 1)
    site.close()


def test_a_store_that_is_damaged_meanwhile(tmp_path: Path) -> None:
    project = make_project(tmp_path / "P", count=200)
    site = Site(project)
    client = site.person("Hana")
    task = client.get("/api/next").json()["task"]
    data = bytearray(project.labels.read_bytes())
    data[4096:] = b"\x55" * (len(data) - 4096)
    data[24:28] = b"\x00\x00\xff\xff"  # the change counter: SQLite is to look again
    with open(project.labels, "r+b") as file:
        file.write(data)
    said = client.post("/api/answers", json=answer_to(task))
    assert refusal(said) == (500, "damaged")
    assert str(tmp_path) not in said.text
    site.close()


def test_a_store_that_another_program_keeps_locked(site: Site) -> None:
    client = site.person("Hana")
    task = client.get("/api/next").json()["task"]
    site.site.store.wait = 0.05
    assert site.project is not None
    other = sqlite3.connect(site.project.labels, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    answer = answer_to(task)
    said = client.post("/api/answers", json=answer)
    assert refusal(said) == (503, "busy") and said.headers["retry-after"] == "5"
    other.execute("ROLLBACK")
    other.close()
    assert client.post("/api/answers", json=answer).json()["saved"] is True


def test_the_language_of_a_page_is_chosen(site: Site) -> None:
    client = site.person("Hana")
    assert '<html lang="en"' in client.get("/", headers={"accept-language": "en"}).text  # the browser's
    assert '<html lang="ja"' in client.get("/", headers={"accept-language": "fr"}).text  # the project's
    assert '<html lang="en"' in client.get("/?lang=en").text
    client.cookies.set("lang", "en", domain="127.0.0.1")
    assert '<html lang="en"' in client.get("/").text
    assert '<html lang="en"' in client.get("/?lang=xx").text
    stranger = site.client()
    for lang, words in (("en", "invite link"), ("ja", "招待リンク")):  # a page that says no, to who may never have been here
        assert words in stranger.get("/", headers={"accept-language": lang}).text
        assert words in site.client(cookies={"lang": lang}).get("/", headers={"accept-language": "en"}).text
    refused = stranger.get("/none", headers={"accept-language": "ja"}).text
    assert 'href="/static/label.css"' in refused and '<a href="/">最初のページへ</a>' in refused
    assert client.get("/api/none", headers={"accept-language": "fr"}).json()["error"]["message"] == "There is nothing here."


# -- blind, and together -------------------------------------------------------------------------------------------------


def test_no_response_names_a_model_or_says_what_others_said(site: Site) -> None:
    owner, one, other = site.owner(), site.person("Ichiro-san"), site.person("Jiro-san")
    invite = owner.post("/api/people", json={"name": "Saburo-san"}).json()
    everything: list[str] = []

    def look(client: TestClient) -> None:
        shown = client.get("/api/next").json()["task"]["id"]
        pages = ("/", "/guidelines", f"/i/{'x' * 43}", "/api/none", "/watch", "/people")
        asked = ("me", "next", "mine", "progress", "guidelines", f"shown/{shown}", "shown/x", "people", "runs", "runs/0/samples")
        for path in (*pages, *(f"/api/{each}" for each in asked)):
            said = client.get(path)
            everything.append(f"{said.headers}\n{said.text}")

    for _ in range(6):
        task = one.get("/api/next").json()["task"]
        said = one.post("/api/answers", json=answer_to(task, comment="ICHIRO-SAID-THIS", reason="ICHIRO-REASON"))
        everything.append(said.text)
        look(one)
        task = other.get("/api/next").json()["task"]
        other.post("/api/answers", json=answer_to(task, ranks=dict.fromkeys("abc", 1)))
        look(other)
    of_others = [text for text in everything if "Jiro-san" in text]
    assert of_others
    for text in everything:
        assert not any(
            secret in text for secret in (MODEL, "tsubaki", "seed", "secret-column", "labels.sqlite3", str(site.project))
        )
        assert invite["invite"] not in text and "Saburo-san" not in text
        ids = {person.name: person.id for person in all_people(site.site.store)}
        assert not any(ids[name] in text for name in ("owner", "Saburo-san"))
        assert not ("Ichiro-san" in text and "Jiro-san" in text)
    look_other = [text for text in everything if ids["Jiro-san"] in text or "Jiro-san" in text]
    assert not any("ICHIRO" in text or ids["Ichiro-san"] in text for text in look_other)
    everything.clear()
    look(other)
    assert not any("ICHIRO" in text for text in everything)


@pytest.mark.usefixtures("figures_at_once")
def test_figures_come_a_little_later(tmp_path: Path) -> None:
    site = Site(make_project(tmp_path / "P", count=8, repeats=0))
    one, other = site.person("one"), site.person("other")
    site.site.figures.every = 0.0

    def found(comparisons: int) -> Any:
        site.site.figures._at = 0.0  # at once
        said = one.get("/api/progress", headers={"accept-language": "en"}).json()
        return said if said["enough"] and said["enough"]["comparisons"] == comparisons else None

    work(one), work(other, 6)
    assert found(42)["agreement"] is None  # the count is there at once
    wait_for(lambda: found(42) and site.site.figures.latest)
    assert site.site.figures.latest.couples == 18
    assert found(42)["agreement"] is None  # of 18 pairs: it could tell what one other person said
    work(other)
    assert found(48)
    said = wait_for(lambda: found(48)["agreement"] and found(48))
    assert set(said["agreement"]) == {"share", "low", "high", "couples"}
    assert said["agreement"]["couples"] == 24
    assert said["enough"] == {"comparisons": 48, "needed": 2000, "words": "enough_some"}
    assert site.site.figures.latest.people is None  # the owner has not asked
    owner = site.owner()

    def seen() -> Any:
        site.site.figures._at = 0.0
        return [each["figures"] for each in owner.get("/api/people").json()["people"] if each["figures"]]

    assert [each["records"] for each in wait_for(seen)] == [8, 8]
    site.close()


def test_few_prompts_and_unrounded_shares_are_not_told_to_who_ranks() -> None:
    some = Found(False, 100, 2000, 2 / 3, 0.5123, None, couples=20, prompts=5)
    assert some.shown()["agreement"] == {"share": 0.67, "low": 0.51, "high": None, "couples": 20}
    for few in (replace(some, couples=19), replace(some, prompts=4), replace(some, share=None)):
        assert few.shown()["agreement"] is None


def test_the_order_is_ones_own(site: Site) -> None:
    one, other = site.person("one"), site.person("other")
    orders = [{task["prompt"]: [each["text"] for each in task["texts"]] for task in work(each)} for each in (one, other)]
    both = orders[0].keys() & orders[1].keys()
    assert len(both) == 8
    assert any(orders[0][prompt] != orders[1][prompt] for prompt in both)


def test_guidelines_are_in_the_readers_language(site: Site) -> None:
    client = site.person("Hana")

    def read(lang: str) -> str:
        said = client.get("/api/guidelines", headers={"accept-language": lang}).json()
        versions.add(said["version"])
        return str(said["html"])

    versions: set[str] = set()
    assert "put them in order" in read("en") and "並べて" not in read("en") and "Guidelines" not in read("en")
    assert "並べて" in read("ja") and "put them in order" not in read("ja") and "並べて" in read("fr")
    assert len(versions) == 1  # who has read them in one language need not read them again
    assert site.project is not None
    guide = site.project.path / "guidelines.md"
    for text in (
        "# Guidelines\nyes\n# 例\nはい",
        "はい\n## ガイドライン\nyes\n## Guidelines",
        "# Guidelines\na\n# Guidelines\nはい",
    ):
        guide.write_text(text, "utf-8")  # no part for each language: all of it is for everybody
        assert "はい" in read("en") and "はい" in read("ja"), text
    guide.write_text("both\n\n# Guidelines  \nyes\n\n# ガイドライン\nはい", "utf-8")
    versions.clear()
    for _ in range(2):
        assert read("en") == "<p>both</p>\n<p>yes</p>\n" and read("ja") == "<p>both</p>\n<p>はい</p>\n"
        guide.write_bytes(guide.read_bytes().replace(b"\n", b"\r\n"))  # the same, saved by an editor of Windows
    assert len(versions) == 1


def test_comparisons_are_counted_as_they_come(site: Site) -> None:
    one, other = site.person("one"), site.person("other")
    store = site.site.store

    def told(client: TestClient) -> tuple[Any, ...]:
        said = client.get("/api/progress", headers={"accept-language": "en"}).json()
        exported = rankings(collect(store))
        assert said["enough"]["comparisons"] == sum(c.in_favour + c.against for c in count_votes(exported))
        return said["mine"], said["skipped"], said["enough"]["comparisons"], said["enough"]["words"]

    assert NEEDED_COMPARISONS == FEW_COMPARISONS
    assert told(one) == (0, 0, 0, "enough_none")
    task = one.get("/api/next").json()["task"]
    one.post("/api/answers", json=answer_to(task))
    assert told(one) == (1, 0, 3, "enough_some")
    one.post("/api/answers", json=answer_to(task, ranks=dict.fromkeys("abc", 1)))  # a revision: a tie of all
    assert told(one)[:3] == (1, 0, 0)
    one.post("/api/answers", json=answer_to(task, ranks={"a": 1, "b": 1, "c": 3}))
    one.post("/api/answers", json=answer_to(one.get("/api/next").json()["task"], kind="skipped", ranks={}, reason="x"))
    other.post("/api/answers", json=answer_to(other.get("/api/next").json()["task"]))
    assert told(one)[:3] == (2, 1, 5)
    forget(store, "one")
    assert told(other)[:3] == (1, 0, 3)
