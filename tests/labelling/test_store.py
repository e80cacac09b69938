"""The store: what people are shown, what is saved of what they say, and what is refused."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from konomi.errors import DataError
from konomi.labelling.answers import answer_of, collect, comparisons, own_answers, save
from konomi.labelling.assignments import find_shown, next_task, progress_of
from konomi.labelling.database import Store
from konomi.labelling.import_tasks import add_tasks
from konomi.labelling.people import (
    add_person,
    all_people,
    end_session,
    find_person,
    forget,
    new_token,
    person_of,
    remember,
    revoke,
)
from konomi.labelling.records import COMMENT_LIMIT, Answer, Mine, Person, Refused, Saved
from people_at_work import NOW, answer_to, skip, store_of, take, tasks, work


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(tmp_path)


@pytest.fixture
def aki(store: Store) -> Person:
    return add_person(store, "Aki")[0]


def refused(code: str, message: str) -> Any:
    return pytest.raises(Refused, match=f"^{message}$", check=lambda error: error.code == code)


# answers


def test_an_answer_is_saved_once_and_as_it_was_meant(store: Store, aki: Person) -> None:
    shown = take(store, aki)
    assert [text.key for text in shown.texts] == ["a", "b", "c"]
    said = answer_to(
        shown, (3, 1, 1), flags={"b": ["unsafe", "broken"], "a": []}, comment="  良い \ud800", confidence=2, seconds=12.5
    )
    assert save(store, aki, said, NOW + 1) == Saved(said.id, shown.id, 1)
    assert answer_of(store, aki, shown.id) == said.model_copy(update={"flags": {"b": ["broken", "unsafe"]}})
    exported = collect(store)
    (judgement,) = exported.judgements
    item = exported.items[judgement.task]
    by_text = {text.text: text.key for text in shown.texts}
    keys = [by_text[candidate.text] for candidate in item.candidates]
    assert judgement.ranks is not None
    assert dict(zip(keys, judgement.ranks, strict=True)) == {"a": 3, "b": 1, "c": 1}
    assert dict(zip(keys, judgement.flags, strict=True)) == {"a": (), "b": ("broken", "unsafe"), "c": ()}
    assert [item.candidates[place].text for place in judgement.order] == [text.text for text in shown.texts]
    rest = (judgement.rater, judgement.kind, judgement.repeat, judgement.at, judgement.revision, judgement.seconds)
    assert rest == (aki.id, "ranked", False, NOW + 1, 1, 12.5)
    assert (judgement.comment, judgement.confidence, judgement.reason) == ("  良い \ufffd", 2, None)


def test_ranks_are_stored_as_places_with_gaps(store: Store, aki: Person) -> None:
    shown = work(store, aki, 1)[0]
    save(store, aki, answer_to(shown, (1, 1, 2)), NOW)
    assert answer_of(store, aki, shown.id).ranks == {"a": 1, "b": 1, "c": 3}  # type: ignore[union-attr]


def test_a_request_that_comes_again_is_saved_once(store: Store, aki: Person) -> None:
    shown = take(store, aki)
    said = answer_to(shown, comment="x")
    first = save(store, aki, said, NOW)
    assert save(store, aki, said, NOW + 99) == replace(first, again=True)
    assert save(store, aki, said.model_copy(update={"id": said.id.upper()}), NOW) == replace(first, again=True)
    with refused("conflict", f"answer {said.id} was saved with another content; a new answer needs a new id"):
        save(store, aki, said.model_copy(update={"comment": "y"}), NOW)
    other = take(store, aki)
    with refused("conflict", f"answer {said.id} was saved with another content; .*"):
        save(store, aki, answer_to(other, id=said.id), NOW)
    assert [each.comment for each in collect(store).judgements] == ["x"]
    store.freeze()
    assert save(store, aki, said, NOW).again  # what is saved is acknowledged for ever


def test_revisions_are_kept_and_the_latest_counts(store: Store, aki: Person) -> None:
    first, second = work(store, aki, 2)
    before = progress_of(store, aki, NOW)
    said = answer_to(first, (2, 1, 3))
    assert save(store, aki, said, NOW + 50).revision == 2
    assert save(store, aki, skip(first, reason="changed my mind"), NOW + 60).revision == 3
    assert save(store, aki, said, NOW + 70) == Saved(said.id, first.id, 2, again=True)
    latest = {each.revision: each for each in collect(store).judgements}
    assert {revision: each.kind for revision, each in latest.items()} == {1: "ranked", 3: "skipped"}
    assert (latest[3].reason, latest[3].at) == ("changed my mind", NOW + 60)
    with store.read() as db:
        kept = db.execute("SELECT revision, kind FROM answers WHERE shown = ? ORDER BY revision", (first.id,)).fetchall()
    assert kept == [(1, "ranked"), (2, "ranked"), (3, "skipped")]
    assert own_answers(store, aki) == [
        Mine(second.id, second.prompt, NOW + 1, "ranked", 1),
        Mine(first.id, first.prompt, NOW, "skipped", 3),
    ]
    assert own_answers(store, aki, 1)[0].shown == second.id
    after = progress_of(store, aki, NOW)
    assert (after.mine, after.team) == (before.mine, before.team - 1)


def test_an_answer_over_another_revision_is_refused(store: Store, aki: Person) -> None:
    shown = next_task(store, aki, NOW)
    assert shown is not None and shown.revision == 0
    one, other = answer_to(shown), answer_to(shown, comment="of another window")
    assert save(store, aki, one, NOW, seen=0).revision == 1
    assert save(store, aki, one, NOW, seen=0).again  # a request that comes again is no conflict
    with refused("conflict_revision", "the latest answer is revision 1; this one was made over 0: look at it first"):
        save(store, aki, other, NOW, seen=0)
    assert save(store, aki, other, NOW, seen=1).revision == 2


def test_a_skipped_task_stays_open_for_others(tmp_path: Path) -> None:
    store = store_of(tmp_path, 1, overlap=1)
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    shown = take(store, aki)
    assert next_task(store, ben, NOW) is None
    save(store, aki, skip(shown), NOW)
    assert next_task(store, aki, NOW) is None
    assert next_task(store, ben, NOW) is not None
    save(store, aki, answer_to(shown), NOW)  # and what was skipped may still be answered
    assert progress_of(store, aki, NOW).team == 1


@pytest.mark.parametrize(
    ("code", "given", "message"),
    [
        ("bad_id", {"id": "7"}, "answer id '7': a UUID is needed"),
        ("unknown_task", {"shown": "nothing\ud800"}, "no task 'nothing\ufffd' was shown to p-.*"),
        ("bad_kind", {"kind": "best"}, "kind 'best': one of ranked, all_bad, skipped is needed"),
        ("bad_ranks", {"ranks": {}}, "ranks for none of a, b, c: each needs one when ranked"),
        ("bad_ranks", {"ranks": {"a": 1, "b": 2}}, "ranks for a, b of a, b, c: each needs one when ranked"),
        ("bad_ranks", {"ranks": {"a": 1, "b": 2, "c": 3, "d": 4}}, "ranks for a, b, c, d of a, b, c: each needs one .*"),
        ("bad_ranks", {"ranks": {"a": 1, "b": 0, "c": 3}}, "rank 0: whole numbers from 1, the best, to 3 are needed"),
        ("bad_ranks", {"ranks": {"a": 1, "b": 4, "c": 3}}, "rank 4: whole .*"),
        ("bad_ranks", {"kind": "all_bad", "ranks": {"a": 1}}, "ranks for a of a, b, c: each needs one, or none .* when all_bad"),
        ("bad_ranks", {"kind": "skipped", "reason": "x"}, "ranks for a, b, c of a, b, c: none may have one when skipped"),
        ("bad_reason", {"kind": "skipped", "ranks": {}, "reason": " "}, "a skipped task needs a reason"),
        (
            "bad_flags",
            {"flags": {"d": ["broken"]}},
            r"flags \['broken'\] of 'd': one of unsafe, broken, reveals for one of a, b, c",
        ),
        ("bad_flags", {"flags": {"ab": ["broken"]}}, ".* of 'ab': .*"),
        ("bad_flags", {"flags": {"": ["broken"]}}, ".* of '': .*"),
        ("bad_flags", {"flags": {"a": ["funny"]}}, r"flags \['funny'\] of 'a': .*"),
        ("bad_confidence", {"confidence": 4}, "confidence 4: 1, 2 or 3 is needed, or none"),
        ("bad_seconds", {"seconds": -1.0}, "seconds -1.0: a number from 0 is needed"),
        ("bad_seconds", {"seconds": float("nan")}, "seconds nan: a number from 0 is needed"),
        ("too_long", {"comment": "あ" * (COMMENT_LIMIT + 1)}, "the comment has 2,001 characters; 2,000 are allowed"),
        ("too_long", {"reason": "x" * 201}, "the reason has 201 characters; 200 are allowed"),
    ],
)
def test_answers_that_are_not_taken(store: Store, aki: Person, code: str, given: dict[str, Any], message: str) -> None:
    shown = take(store, aki)
    with refused(code, message):
        save(store, aki, answer_to(shown, **given), NOW)
    assert collect(store).judgements == ()
    assert next_task(store, aki, NOW) == shown


def test_all_bad_with_and_without_ranks(store: Store, aki: Person) -> None:
    first, second = work(store, aki, 2)
    save(store, aki, answer_to(first, kind="all_bad", reason="all false"), NOW)
    save(store, aki, answer_to(second, kind="all_bad", ranks={}), NOW)
    assert sorted((each.kind, each.ranks is None, each.reason) for each in collect(store).judgements) == [
        ("all_bad", False, "all false"),
        ("all_bad", True, None),
    ]
    assert answer_of(store, aki, second.id).ranks == {}  # type: ignore[union-attr]
    assert progress_of(store, aki, NOW).team == 2
    long = answer_to(second, comment="あ" * COMMENT_LIMIT, reason="x" * 200, seconds=1e9)
    save(store, aki, long, NOW)
    assert answer_of(store, aki, second.id).seconds == 86_400.0  # type: ignore[union-attr]


def test_a_frozen_store_takes_no_answers(store: Store, aki: Person) -> None:
    (done,) = work(store, aki, 1)
    shown = take(store, aki)
    assert not progress_of(store, aki, NOW).frozen
    store.freeze()
    assert store.frozen
    assert progress_of(store, aki, NOW).frozen
    assert next_task(store, aki, NOW) is None
    for each in (shown, done):
        with refused("frozen", "the answers are final: none is taken any more"):
            save(store, aki, answer_to(each, (1, 1, 1)), NOW)
    assert find_shown(store, aki, done.id) == replace(done, revision=1)
    store.freeze(False)
    assert next_task(store, aki, NOW) == shown
    assert save(store, aki, answer_to(shown), NOW).revision == 1


# what is shown


def test_no_source_and_nothing_of_others_reaches_a_person(tmp_path: Path) -> None:
    store = store_of(tmp_path, 12)
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    others = [next_task(store, ben, NOW)]
    for n in range(12):
        shown = others[-1]
        assert shown is not None
        save(store, ben, answer_to(shown, comment="words of Ben", flags={"a": ["unsafe"]}, reason="Ben's reason"), NOW + n)
        others.append(next_task(store, ben, NOW + n))
    mine = work(store, aki)
    given: list[Any] = [*mine, *own_answers(store, aki), progress_of(store, aki, NOW)]
    given += [save(store, aki, answer_to(mine[0]), NOW), answer_of(store, aki, mine[0].id), person_of(store, "x")]
    text = json.dumps([each.model_dump() if isinstance(each, Answer) else asdict(each) for each in given if each is not None])
    assert "prompt 3" in text
    for hidden in ("secret-model", "lab/", "seed", "hidden column", "words of Ben", "Ben", "unsafe", ben.id):
        assert hidden not in text
    assert len(mine) > 12  # some of these are repeats, which nothing tells
    assert "repeat" not in text
    for shown in others:
        assert shown is not None
        assert find_shown(store, aki, shown.id) is None
        assert answer_of(store, aki, shown.id) is None
        with refused("unknown_task", f"no task '{re.escape(shown.id)}' was shown to {aki.id}"):
            save(store, aki, answer_to(shown), NOW)


def test_ids_are_random_and_the_order_is_kept(tmp_path: Path) -> None:
    store = store_of(tmp_path, 40, k=4)
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    shown = [*work(store, aki), *work(store, ben)]
    assert all(re.fullmatch(r"[\w-]{20}", each.id) for each in shown)
    assert len({each.id for each in shown}) == len(shown)
    for each in shown[:5]:
        assert find_shown(store, aki, each.id) == replace(each, revision=1)
    orders: dict[str, set[tuple[str, ...]]] = {}
    for each in shown:
        orders.setdefault(each.prompt, set()).add(tuple(text.text for text in each.texts))
    counts = {
        "different": sum(len(each) > 1 for each in orders.values()),
        "same": sum(len(each) == 1 for each in orders.values()),
    }
    assert counts["different"] > 30


def test_a_repeat_is_the_same_task_in_another_order(tmp_path: Path) -> None:
    store = store_of(tmp_path, 60, k=2, overlap=1)
    aki = add_person(store, "Aki")[0]
    shown = work(store, aki)
    again = [each for each in collect(store).judgements if each.repeat]
    assert len(again) == len(shown) - 60
    assert 4 <= len(again) <= 9
    first = {each.task: each for each in collect(store).judgements if not each.repeat}
    for each in again:
        assert each.order == first[each.task].order[::-1]
        assert each.ranks == first[each.task].ranks
    assert progress_of(store, aki, NOW).team == 60


# leases


def test_a_task_is_kept_until_its_lease_ends(tmp_path: Path) -> None:
    store = store_of(tmp_path, 1, overlap=1, lease_minutes=10)
    aki, ben, eve = (add_person(store, name)[0] for name in ("Aki", "Ben", "Eve"))
    shown = take(store, aki)
    assert next_task(store, ben, NOW + 599) is None
    assert next_task(store, aki, NOW + 599) == shown  # who asks again keeps it for another ten minutes
    assert next_task(store, ben, NOW + 1190) is None
    of_ben = take(store, ben, NOW + 1200)
    assert of_ben.prompt == shown.prompt
    assert next_task(store, aki, NOW + 1201) is None  # it is another's now
    assert save(store, aki, answer_to(shown), NOW + 1202).revision == 1  # but an answer is not thrown away
    assert save(store, ben, answer_to(of_ben), NOW + 1203).revision == 1
    assert next_task(store, eve, NOW + 9999) is None
    assert progress_of(store, ben, NOW).team == progress_of(store, ben, NOW).target == 1


def test_a_lease_that_ended_is_taken_up_again_while_there_is_room(tmp_path: Path) -> None:
    store = store_of(tmp_path, 3, overlap=2, lease_minutes=10)
    aki = add_person(store, "Aki")[0]
    shown = next_task(store, aki, NOW)
    assert next_task(store, aki, NOW + 100_000) == shown


# people


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
        ("name_taken", "A\u3000ki", "there is a person 'A ki' already; choose another name"),
        ("bad_name", "a\nb", r"name 'a\\nb': letters to call somebody by are needed"),
        ("bad_name", " ", "name '': letters to call somebody by are needed"),
        ("bad_name", "a\u202eb", r"name 'a\\u202eb': letters to call somebody by are needed"),
        ("too_long", "x" * 81, "the name has 81 characters; 80 are allowed"),
        ("name_taken", "Aki ", "there is a person 'Aki' already; choose another name"),
        ("name_taken", aki.id, f"there is a person '{aki.id}' already; choose another name"),
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


# progress


def test_progress(tmp_path: Path) -> None:
    store = store_of(tmp_path, 10, overlap=1.5, repeats=0.2)
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    start = progress_of(store, aki, NOW)
    assert 10 < start.target < 20
    assert (start.mine, start.left, start.team, start.per_hour, start.minutes_left) == (0, 10, 0, None, None)
    shown = take(store, aki)
    for n, seconds in enumerate((30.0, 10_000.0, 90.0)):  # one pause, which counts for ten minutes
        assert shown is not None
        save(store, aki, answer_to(shown, seconds=seconds), NOW + n)
        shown = next_task(store, aki, NOW + n)
    third = progress_of(store, aki, NOW)
    assert (third.mine, third.left, third.team) == (3, 7, 3)
    assert third.per_hour == pytest.approx(3600 / 240)
    assert third.minutes_left == pytest.approx(7 / 0.8 * 240 / 60)
    for person in (ben, aki):
        work(store, person)
    end = progress_of(store, aki, NOW)
    assert (end.left, end.minutes_left) == (0, 0.0)
    assert end.team == end.target == start.target
    assert end.mine + progress_of(store, ben, NOW).mine == len(collect(store).judgements)


# threads


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = store_of(tmp_path, 30, overlap=2, repeats=0)
    people = [add_person(store, f"person {n}")[0] for n in range(6)]
    threads = [threading.Thread(target=work, args=(store, person)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    judgements = collect(store).judgements
    assert len(judgements) == 60
    assert len({(each.task, each.rater) for each in judgements}) == 60
    # as long as anybody has one open its last answer is theirs, so that all get their two
    assert all(sum(each.task == task for each in judgements) == 2 for task in collect(store).items)


def test_one_id_from_two_threads_is_one_answer(store: Store, aki: Person) -> None:
    shown = take(store, aki)
    said = answer_to(shown)
    saved: list[Saved] = []
    threads = [threading.Thread(target=lambda: saved.append(save(store, aki, said, NOW))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.again for each in saved) == [False] + [True] * 7
    assert {each.revision for each in saved} == {1}


# speed


def test_work_goes_through_indexes(tmp_path: Path) -> None:
    store = store_of(tmp_path, 30)
    aki = add_person(store, "Aki")[0]
    db = store.connection
    asked: set[str] = set()
    db.set_trace_callback(lambda statement: asked.add(statement))
    shown = work(store, aki)
    save(store, aki, answer_to(shown[0]), NOW)
    find_shown(store, aki, shown[0].id), answer_of(store, aki, shown[0].id), own_answers(store, aki), person_of(store, "x")
    own_answers(store, aki, 5, shown[3].id), progress_of(store, aki, NOW)
    db.set_trace_callback(None)
    assert len(asked) > 300
    plans = [
        row[3] for each in asked if each[:6] in ("SELECT", "UPDATE", "DELETE") for row in db.execute(f"EXPLAIN QUERY PLAN {each}")
    ]
    assert any("tasks_in_turn" in plan for plan in plans)
    # the whole of it is counted out of an index alone, and the last answers are a few
    known = {"SCAN CONSTANT ROW", "SCAN tasks USING COVERING INDEX tasks_in_turn", "SCAN last"}
    assert {plan for plan in plans if "SCAN" in plan} <= known
    assert not [plan for plan in plans if "TEMP B-TREE" in plan]


def test_a_forgotten_person_can_do_nothing(store: Store, aki: Person) -> None:
    shown = take(store, aki)
    forget(store, "Aki")
    with refused("unknown_person", f"there is no person '{aki.id}'"):
        next_task(store, aki, NOW)
    with refused("unknown_task", ".*"):
        save(store, aki, skip(shown), NOW)
    assert add_tasks(store, tasks(5)).added == 1


def test_comparisons_are_counted_right_after_somebody_was_forgotten(store: Store, aki: Person) -> None:
    other = add_person(store, "Other")[0]
    work(store, aki, 2), work(store, other, 1)
    assert comparisons(store) == 9
    forget(store, "Other")
    third = add_person(store, "Third")[0]
    shown = take(store, third)
    save(store, third, answer_to(shown, (1, 1, 1)), NOW)  # as many answers as before, under the same numbers
    assert comparisons(store) == 6


@pytest.mark.parametrize("ranks", ["7", "null", '"ab"', '{"a": 1}', '[1, "x", 2]', "[null]"])
def test_ranks_that_are_none_are_damage(store: Store, aki: Person, ranks: str) -> None:
    work(store, aki, 1)
    with store.write() as db:
        db.execute("UPDATE answers SET ranks = ?", (ranks,))
    for _ in range(2):
        with pytest.raises(DataError, match=r"damaged, or not a database \(row 1 of the table answers is not as it was written"):
            comparisons(store)
