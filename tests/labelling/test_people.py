"""People: their tokens, names, and what is kept of them."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from konomi.labelling.database import Store
from konomi.labelling.people import (
    add_person,
    all_people,
    bring,
    end_session,
    find_person,
    forget,
    new_token,
    person_of,
    remember,
    revoke,
)
from konomi.labelling.records import Person
from people_at_work import refused, store_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(tmp_path)


@pytest.fixture
def aki(store: Store) -> Person:
    return add_person(store, "Aki")[0]


def test_a_token_lets_in_and_only_its_hash_is_kept(store: Store, tmp_path: Path) -> None:
    aki, token = add_person(store, "Aki", admin=True)
    assert aki == Person(aki.id, "Aki", admin=True)
    assert re.fullmatch("p-[0-9a-f]{10}", aki.id)
    assert len(token) >= 43  # 256 bits
    assert person_of(store, token) == aki
    for wrong in ("", token[:-1], token + "x", token.swapcase(), "\ud800", aki.id):
        assert person_of(store, wrong) is None
    store.close()
    assert token.encode() not in (tmp_path / "labels.sqlite3").read_bytes()


def test_the_people_of_another_project_come_with_their_invites(store: Store, aki: Person, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = store_of(tmp_path / "other")
    ben, token = add_person(other, "Ben")
    _, of_another_aki = add_person(other, "Aki")
    eve, of_eve = add_person(other, "Eve")
    bring(store, other)
    assert all_people(store) == [aki, ben, eve] and person_of(store, token) == ben
    assert person_of(store, of_another_aki) is None
    revoke(store, ben.id)
    forget(store, eve.id)
    bring(store, other)
    assert [each.name for each in all_people(store)] == ["Aki", "Ben"]
    assert person_of(store, token) is person_of(store, of_eve) is None
    other.close()


def test_tokens_are_given_and_revoked(store: Store) -> None:
    aki, invite = add_person(store, "Aki")
    ben, of_ben = add_person(store, "Ben")
    one, other, more = new_token(store, aki.id, session=True), new_token(store, aki.id, session=True), new_token(store, aki.id)
    assert all(person_of(store, token) == aki for token in (invite, one, other, more))
    end_session(store, one)
    end_session(store, invite)  # it is none
    assert [person_of(store, token) for token in (one, invite)] == [None, aki]
    revoke(store, aki.id)
    assert [person_of(store, token) for token in (invite, other, more, of_ben)] == [None, None, None, ben]
    assert [(each.name, each.active) for each in all_people(store)] == [("Aki", False), ("Ben", True)]
    assert person_of(store, new_token(store, aki.id)) == aki


def test_sessions_end_after_a_month_and_invites_do_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    aki, invite = add_person(store, "Aki")
    session = new_token(store, aki.id, session=True)
    later = time.time() + 30 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: later - 60)
    assert person_of(store, session) == aki
    monkeypatch.setattr(time, "time", lambda: later + 60)
    assert person_of(store, session) is None
    assert person_of(store, session.removeprefix("s.")) is None
    assert person_of(store, invite) == aki
    newer = new_token(store, aki.id, session=True)
    with store.read() as db:
        assert db.execute("SELECT count(*) FROM tokens").fetchone() == (2,)  # the old one is gone
    assert person_of(store, newer) == person_of(store, invite) == aki


def test_names(store: Store, aki: Person) -> None:
    assert add_person(store, "  花子 ")[0].name == "花子"
    assert find_person(store, "花子") == find_person(store, find_person(store, "花子").id)
    assert (
        add_person(store, "山田\u3000太郎")[0] == find_person(store, "山田 太郎") == find_person(store, " 山田\u3000\u00a0太郎")
    )
    add_person(store, "A ki")
    for code, name, message in (
        ("name_taken", "A\u3000ki", "the name 'A ki' is taken; choose another"),
        ("bad_name", "a\nb", r"name 'a\\nb': a name of visible characters is needed"),
        ("bad_name", " ", "name '': a name of visible characters is needed"),
        ("bad_name", "a\u202eb", r"name 'a\\u202eb': a name of visible characters is needed"),
        ("too_long", "x" * 81, "the name has 81 characters; 80 are allowed"),
        ("name_taken", "Aki ", "the name 'Aki' is taken; choose another"),
        ("name_taken", aki.id, f"the name '{aki.id}' is taken; choose another"),
    ):
        with refused(code, message):
            add_person(store, name)
    for call in (find_person, revoke, new_token, forget):
        with refused("unknown_person", "there is no person 'nobody'"):
            call(store, "nobody")  # type: ignore[operator]


def test_what_a_person_has_read_and_set_is_kept(store: Store, aki: Person) -> None:
    assert (aki.guidelines_seen, aki.shortcuts) == (None, True)
    assert remember(store, aki, guidelines_seen="v1") == replace(aki, guidelines_seen="v1")
    assert remember(store, aki, shortcuts=False) == replace(aki, guidelines_seen="v1", shortcuts=False)
    assert all_people(store) == [find_person(store, "Aki")] == [replace(aki, guidelines_seen="v1", shortcuts=False)]
